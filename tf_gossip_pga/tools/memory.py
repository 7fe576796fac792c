"""Check whether enough memory is available before a computation allocates it."""

import os
import pathlib

_KNOWN = pathlib.Path("/proc/meminfo")
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # a container's limit (cgroup v2), or "max"


def check(needed: int, what: str) -> None:
    """Raise `MemoryError` unless `needed` bytes of memory are available.

    Args:
      needed: the memory needed, in bytes.
      what: description of the computation, with which the error message begins.
    """
    has = available()
    if needed > has:
        raise MemoryError(
            f"{what} needs about {needed / 2**30:,.1f} GiB of memory, but this machine has "
            f"{has / 2**30:.1f} GiB available. Use fewer nodes, trials, samples or parameters."
        )


def available() -> int:
    """Return the available memory in bytes, as Linux reports it, up to the container's limit.

    If the system does not report its available memory, its total memory counts as available.
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
