"""Compare what something needs with the memory that is available, before it is allocated."""

import os
import pathlib

_KNOWN = pathlib.Path("/proc/meminfo")
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container, by cgroup v2; or "max"


def check(needed: int, what: str) -> None:
    """Raise `MemoryError` unless `needed` bytes of memory are available for `what`."""
    has = available()
    if needed > has:
        raise MemoryError(
            f"{what} needs about {needed / 2**30:,.1f} GiB of memory, and this machine has "
            f"{has / 2**30:.1f} available: take fewer nodes, trials, samples or parameters."
        )


def available() -> int:
    """Return the available memory in bytes: as Linux reports it, at most a container's limit.

    Return the size of all memory where the system does not report what is available.
    """
    try:
        lines = _KNOWN.read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        has = 1024 * int(kib)
    except (OSError, StopIteration):
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(has, int(_LIMIT.read_text()))
    except (OSError, ValueError):
        return has
