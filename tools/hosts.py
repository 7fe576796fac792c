"""Create hosts on one machine, connected by a network.

    with hosts.create(["host0", "host1"], folder) as cluster:
        cluster[0].run(["ping", "-c1", "host1"])

Creating hosts requires root, iproute2 and util-linux.

Each host has a network, a host name, an `/etc/hosts`, a `/run` and process ids of its own (Linux
namespaces). Each host shares all other files with this machine. A bridge in another namespace
connects the hosts. If a rate is given, token buckets (tc tbf) limit the traffic of each host in
both directions, like a full-duplex port of a switch.

The first process of each host reads from a pipe of this process, and ends when the pipe closes. The
kernel then ends all other processes of the host and removes its network. So no process and no
network is left, even if this process is killed. The files in the hosts' folder remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

# As in a switch with a small buffer: how many bytes may pass at once, how long a packet may wait.
_BUCKET = "burst 256kb latency 50ms"

_HOLD = "echo ready; exec cat"
_START_S = 300.0  # deadline for a command that prepares a host


class NoHostsError(RuntimeError):
    """Raised when this machine cannot create hosts. The message states the reason."""


@dataclasses.dataclass(frozen=True)
class Host:
    """Namespaces that act as a host.

    Attributes:
      name: the host's name, which all hosts can resolve.
      address: its IP address.
      process: id of the process that keeps the namespaces open.
    """

    name: str
    address: str
    process: int

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs the given one on this host, in the current directory."""
        return [*self._enter(), "env", "-C", os.getcwd(), *command]

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start a command on this host. `options` are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(command), **options)

    def run(self, command: Sequence[str] | str) -> str:
        """Run a command on this host, and return its output. A string is run by a shell.

        Raises:
          NoHostsError: the command failed.
        """
        arguments = ["sh", "-ec", command] if isinstance(command, str) else list(command)
        return _output([*self._enter(), *arguments])

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes on this host, by their ids on this host."""
        listed = "for each in /proc/[0-9]*; do echo $each $(tr '\\0' ' ' < $each/cmdline); done"
        lines = self.run(f"exec 2> /dev/null; set +e; {listed}; true").splitlines()
        split = [line.removeprefix("/proc/").partition(" ") for line in lines]
        return {int(number): command for number, _, command in split if command}

    def shape(self, mbit: float) -> None:
        """Limit what this host sends to `mbit` Mbit/s."""
        self.run(f"tc qdisc replace dev eth0 root tbf rate {mbit}mbit {_BUCKET}")

    def _enter(self) -> list[str]:
        spaces = ["--net", "--uts", "--mount", "--pid"]
        return ["nsenter", f"--target={self.process}", *spaces, "--"]


@contextlib.contextmanager
def create(
    names: Sequence[str], folder: pathlib.Path, mbit: float | None = None
) -> Iterator[list[Host]]:
    """Create hosts, and remove them at the end of the context.

    Args:
      names: the hosts' names.
      folder: an empty folder for the hosts' files. It is not removed.
      mbit: link bandwidth per direction, in Mbit/s. Default: unlimited.

    Raises:
      NoHostsError: this process is not root, or a tool or a kernel feature is missing.
    """
    check()
    addresses = [f"10.0.{index // 250}.{index % 250 + 1}" for index in range(len(names))]
    pairs = list(zip(names, addresses, strict=True))
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in pairs)]
    for name in names:  # a file for each host, so that one host's can change
        (folder / f"hosts.{name}").write_text("\n".join(lines) + "\n")
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_held(["--net"], ""))
        _output(_in_network(switch, "ip link add bridge type bridge"))
        _output(_in_network(switch, "ip link set bridge up"))
        found: list[Host] = []
        for name, address in pairs:
            spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]
            held = stack.enter_context(_held(spaces, _prepared(name, folder)))
            found.append(Host(name, address, held))
            _connect(switch, found[-1], len(found), mbit)
        yield found


def check() -> None:
    """Raise `NoHostsError` if this machine cannot create namespaces."""
    if os.geteuid() != 0:
        raise NoHostsError("creating hosts requires root")
    missing = [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]
    if missing:
        raise NoHostsError(
            f"creating hosts requires {', '.join(missing)} (part of iproute2 or util-linux)"
        )
    _output(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"])


def _prepared(name: str, folder: pathlib.Path) -> str:
    """Return the shell commands that prepare a host from inside."""
    own = shlex.quote(str(folder / f"hosts.{name}"))
    return (
        f"echo {shlex.quote(name)} > /proc/sys/kernel/hostname; "
        f"mount --bind {own} /etc/hosts; mount -t tmpfs tmpfs /run; "
    )


@contextlib.contextmanager
def _held(spaces: Sequence[str], prepare: str) -> Iterator[int]:
    """Yield the id of a process in new namespaces. Both end with the context or this process.

    Args:
      spaces: options of `unshare`.
      prepare: shell commands to run first.
    """
    holder = subprocess.Popen(
        ["unshare", *spaces, "sh", "-ec", prepare + _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not end it before the processes on the host
    )
    stdin, stdout = cast(IO[bytes], holder.stdin), cast(IO[bytes], holder.stdout)
    stderr = cast(IO[bytes], holder.stderr)
    try:
        if stdout.readline() != b"ready\n":
            words = stderr.read().decode(errors="replace").strip()
            raise NoHostsError(f"the kernel did not create a namespace ({words})")
        yield _first_child(holder.pid) if "--fork" in spaces else holder.pid
    finally:
        stdin.close()
        holder.wait()
        stdout.close()
        stderr.close()


def _first_child(process: int) -> int:
    """Return the id, on this machine, of a process's only child."""
    children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(children[0])


def _connect(switch: int, host: Host, number: int, mbit: float | None) -> None:
    """Connect a host to the bridge through a link. If `mbit` is given, limit it at both ends."""
    port = f"port{number}"
    _output(
        _in_network(switch, f"ip link add {port} type veth peer name eth0 netns {host.process}")
    )
    _output(_in_network(switch, f"ip link set {port} master bridge up"))
    host.run(f"ip link set lo up; ip address add {host.address}/16 dev eth0; ip link set eth0 up")
    if mbit is not None:
        limit = f"root tbf rate {mbit}mbit {_BUCKET}"
        _output(_in_network(switch, f"tc qdisc add dev {port} {limit}"))
        host.shape(mbit)


def _in_network(process: int, command: str) -> list[str]:
    return ["nsenter", f"--target={process}", "--net", *command.split()]


def _output(command: Sequence[str]) -> str:
    """Run a command, and return its output. Raise `NoHostsError` if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_START_S
        )
    except subprocess.TimeoutExpired:
        raise NoHostsError(f"{shlex.join(command)!r} took more than {_START_S:.0f} s") from None
    if done.returncode:
        raise NoHostsError(f"{shlex.join(command)!r} failed: {done.stderr.strip()}")
    return done.stdout
