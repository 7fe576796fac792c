"""Addresses on this machine that nobody else takes before a worker listens on them.

The operating system gives ports from one range to whoever asks for any, outgoing connections
included. A port of that range that was free a second ago may be taken, the more so on a busy
machine; below the range nobody gets a port by chance.
"""

import functools
import itertools
import os
import pathlib
import socket
from collections.abc import Iterator

_SLICE, _SLICES = (
    1000,
    10,
)  # ports of a test process, and how many have their own


def free(count: int) -> list[str]:
    """Return so many `host:port` that nobody listens on, none of them twice in a row."""
    found = []
    while len(found) < count:
        port = next(_ports())
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(f"127.0.0.1:{port}")
    return found


@functools.cache
def _ports() -> Iterator[int]:
    given = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = max(1024, int(given) - _SLICE * (1 + int(worker) % _SLICES))
    # Two sessions at once begin at different places of the slice.
    offset = 7 * os.getpid() % _SLICE
    return itertools.cycle([first + (offset + index) % _SLICE for index in range(_SLICE)])
