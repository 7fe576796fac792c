"""Measure on hosts that share this machine, behind links of a given bandwidth (see tools/hosts.py).

with links.hosts(8, mbit=250) as hosts:       # in the process that starts the workers
launch.run([…, hosts.flag], workers=8)

links.join(flag)                              # in each worker, before its first socket
"""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

from tf_gossip_pga.cluster import tf_config as cluster_lib
from tools import hosts as hosts_lib
from tools.hosts import NoHostsError

__all__ = ["Hosts", "NoHostsError", "hosts", "join"]

_PORT = 2222
_CLONE_NEWNET = 0x40000000  # linux/sched.h


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Hosts, one for each rank.

    Attributes:
      processes: for each rank, the id of the process that keeps its host's namespaces open.
      addresses: for each rank, the IP address of its host.
    """

    processes: tuple[int, ...]
    addresses: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The argument of `join`."""
        return ",".join(
            f"{process}@{address}"
            for process, address in zip(self.processes, self.addresses, strict=True)
        )


@contextlib.contextmanager
def hosts(count: int, mbit: float) -> Iterator[Hosts]:
    """Create hosts, and remove them at the end of the context.

    Args:
      count: number of hosts.
      mbit: link bandwidth per direction, in Mbit/s.

    Raises:
      NoHostsError: this process is not root, or a tool or a kernel feature is missing.
    """
    names = [f"host{rank}" for rank in range(count)]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        found = stack.enter_context(hosts_lib.create(names, folder, mbit))
        yield Hosts(tuple(each.process for each in found), tuple(each.address for each in found))


def join(flag: str) -> None:
    """Move this thread to the network of its rank's host, and write the hosts to `TF_CONFIG`.

    Threads that this thread starts later are in that network, too. Sockets that are already open do
    not move.

    Args:
      flag: `Hosts.flag`.
    """
    pairs = [each.partition("@")[::2] for each in flag.split(",")]
    rank = cluster_lib.from_tf_config(os.environ["TF_CONFIG"]).rank
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pairs[rank][0]}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns failed")
    finally:
        os.close(namespace)
    addresses = [f"{address}:{_PORT}" for _, address in pairs]
    os.environ["TF_CONFIG"] = cluster_lib.to_tf_config(addresses, rank)
