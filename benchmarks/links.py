"""Create hosts on one machine: network namespaces behind links of a given bandwidth.

    with links.hosts(8, mbit=250) as hosts:       # in the process that starts the workers
        launch.run([…, hosts.flag], workers=8)

    links.join(flag)                              # in each worker, before its first socket

Creating hosts requires root, iproute2 and util-linux.

Each host is a network namespace with one interface. A bridge in another namespace connects them.
Token buckets (tc tbf) limit the traffic of each host in both directions, like a full-duplex port of
a switch. The namespaces are unnamed, so the kernel removes them and their links when their last
process has ended, even if the benchmark is killed.
"""

import contextlib
import ctypes
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import IO, cast

from tf_gossip_pga.cluster import tf_config as cluster_lib

_PORT = 2222
_CLONE_NEWNET = 0x40000000  # linux/sched.h
# How many bytes may pass at once, and how long a packet may wait: a switch with a small buffer.
_BUCKET = ["burst", "256kb", "latency", "50ms"]


class NoHostsError(RuntimeError):
    """Raised when this machine cannot create hosts. The message states the reason."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Network namespaces that act as hosts.

    Attributes:
      processes: for each rank, the id of the process that keeps its host's namespace open.
    """

    processes: tuple[int, ...]

    @property
    def flag(self) -> str:
        """The argument of `join`."""
        return ",".join(map(str, self.processes))


@contextlib.contextmanager
def hosts(count: int, mbit: float) -> Iterator[Hosts]:
    """Create hosts, and remove them at the end of the context.

    Args:
      count: number of hosts.
      mbit: link bandwidth per direction, in Mbit/s.

    Raises:
      NoHostsError: this process is not root, or a tool or a kernel feature is missing.
    """
    missing = [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]
    if os.geteuid() != 0:
        raise NoHostsError("creating hosts requires root")
    if missing:
        raise NoHostsError(
            f"creating hosts requires {', '.join(missing)} (part of iproute2 or util-linux)"
        )
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_namespace())
        _inside(switch, "ip link add bridge type bridge")
        _inside(switch, "ip link set bridge up")
        found = []
        for rank in range(count):
            found.append(stack.enter_context(_namespace()))
            _connect(switch, found[-1], rank, mbit)
        yield Hosts(tuple(found))


def join(flag: str) -> None:
    """Move this thread to the host of its rank, and write the hosts' addresses to `TF_CONFIG`.

    Threads that this thread starts later are on that host, too. Sockets that are already open do
    not move.

    Args:
      flag: `Hosts.flag`.
    """
    processes = flag.split(",")
    rank = cluster_lib.from_tf_config(os.environ["TF_CONFIG"]).rank
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{processes[rank]}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns failed")
    finally:
        os.close(namespace)
    addresses = [f"{address(each)}:{_PORT}" for each in range(len(processes))]
    os.environ["TF_CONFIG"] = cluster_lib.to_tf_config(addresses, rank)


def address(rank: int) -> str:
    """Return the IP address of a rank's host."""
    return f"10.0.0.{rank + 1}"


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Yield the id of a process in a new network namespace. Both end with this process."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not reach it, because the workers must end first
    )
    stdin, stdout = cast(IO[bytes], holder.stdin), cast(IO[bytes], holder.stdout)
    try:
        if stdout.readline() != b"ready\n":
            raise NoHostsError("the kernel did not create a network namespace")
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        stdin.close()
        stdout.close()


def _connect(switch: int, host: int, rank: int, mbit: float) -> None:
    """Connect a host to the switch through a link that is limited to `mbit` at both ends."""
    limit = ["root", "tbf", "rate", f"{mbit}mbit", *_BUCKET]
    port = f"port{rank}"
    _inside(switch, f"ip link add {port} type veth peer name eth0 netns {host}")
    _inside(switch, f"ip link set {port} master bridge up")
    _inside(switch, f"tc qdisc add dev {port} {' '.join(limit)}")
    _inside(host, "ip link set lo up")
    _inside(host, f"ip address add {address(rank)}/24 dev eth0")
    _inside(host, "ip link set eth0 up")
    _inside(host, f"tc qdisc add dev eth0 {' '.join(limit)}")


def _inside(process: int, command: str) -> None:
    """Run a command in the namespace of a process."""
    done = subprocess.run(
        ["nsenter", f"--target={process}", "--net", *command.split()],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoHostsError(f"{command!r} failed: {done.stderr.strip()}")
