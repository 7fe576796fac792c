"""What fits, on machines with the files that Linux shows, and without."""

import os

import pytest

from tf_gossip_pga.tools import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes the machine one with these two files, or without one of them."""

    def make(meminfo: str | None, limit: str | None):
        for name, text in (("_KNOWN", meminfo), ("_LIMIT", limit)):
            path = tmp_path / name
            monkeypatch.setattr(memory, name, path)
            if text is not None:
                path.write_text(text)

    return make


MEMINFO = "MemTotal:       8000 kB\nMemAvailable:      3000 kB\n"


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        (MEMINFO, None, 3000 * 1024),
        (MEMINFO, "max\n", 3000 * 1024),
        (MEMINFO, "2000000\n", 2_000_000),
        (MEMINFO, "9000000\n", 3000 * 1024),
        (None, "2000000\n", 2_000_000),
    ],
)
def test_available_is_what_linux_and_a_container_leave(machine, meminfo, limit, expected):
    machine(meminfo, limit)
    assert memory.available() == expected
    memory.check(expected, "this")
    with pytest.raises(MemoryError, match=r"^this needs about 0\.0 GiB of memory, but this mach"):
        memory.check(expected + 1, "this")


@pytest.mark.parametrize("meminfo", [None, "MemTotal:       8000 kB\n"])
def test_elsewhere_all_memory_is_available(machine, meminfo):
    machine(meminfo, None)
    assert memory.available() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
