"""Find addresses on this machine that no other program takes before a worker listens on them.

The operating system assigns ports from one range to programs that ask for any port, and to outgoing
connections. A port of that range may be taken a second after it was free. Ports below the range are
not assigned. Only even ports are returned, because a worker's channel listens on the port after its
own.
"""

import functools
import itertools
import os
import pathlib
import random
import socket
from collections.abc import Iterator

_SLICE = 1000  # ports of a test process
_SLICES = 10  # test processes that have ports of their own


def free(count: int) -> list[str]:
    """Return free addresses, `host:port`; calls in a row return different ones.

    Args:
      count: number of addresses.
    """
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
    first = max(1024, int(given) - 2 - _SLICE * (1 + int(worker) % _SLICES))
    # Let sessions that run at the same time begin at different ports.
    offset = random.SystemRandom().randrange(0, _SLICE, 2)
    even = first + first % 2
    return itertools.cycle([even + (offset + index) % _SLICE for index in range(0, _SLICE, 2)])
