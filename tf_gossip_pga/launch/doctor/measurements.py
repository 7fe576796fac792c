"""Hold everything that the doctor has measured, for `findings` and for `--json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_gossip_pga.cluster import ports as ports_lib

# The outcomes of an attempt to connect to a port. `Attempt.detail` says more.
OPEN = "open"
REFUSED = "refused"  # the host, or a firewall, answers that nothing listens
DROPPED = "no answer"
UNREACHABLE = "unreachable"  # a router or a firewall answers that it does not let packets pass
ELSEWHERE = "another host"  # an examiner answers, but that of another host
STRANGER = "another program"

# Python, and the packages whose versions are compared, by their names in Python's package index.
PYTHON, TENSORFLOW, PACKAGE = "python", "tensorflow", "tf_gossip_pga"
COMPARED = (PYTHON, TENSORFLOW, "keras", "numpy", PACKAGE)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Describe a host as its examiner sees it.

    Attributes:
      host_name: what the host calls itself.
      machine: an id that two names of the same machine share.
      python: the path of the examiner's Python.
      versions: the version of each of `COMPARED`, or None if it is not installed.
      cores: number of processors that a process may use.
      memory_bytes: available memory.
      gpus: number of GPUs.
      addresses: the addresses to which each host's name resolves on this host. The list is empty
        if the name does not resolve.
      unresolved: for each name that does not resolve on this host, the reason.
    """

    host_name: str
    machine: str
    python: str
    versions: dict[str, str | None]
    cores: int
    memory_bytes: int
    gpus: int
    addresses: dict[str, list[str]]
    unresolved: dict[str, str]


# The requests that an examiner answers, by function of `Examiner`, in words for messages.
REQUESTS = {
    "describe": "describe itself",
    "clock": "read its clock",
    "listen": "listen on its ports",
    "call": "connect to the other hosts",
    "measure": "measure a connection",
    "write": "write to the checkpoint folder",
    "read": "read from the checkpoint folder",
}

# Why a host's examiner, the process that measures there for the doctor, is not available.
ENDED, SILENT, FAILED, OTHER_VERSION = "ended", "silent", "failed", "other version"


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Describe why a host's examiner is not available.

    Attributes:
      kind: its process has `ENDED`, it was `SILENT` until the deadline, a request `FAILED`, or it
        has an `OTHER_VERSION` of this package than the doctor.
      request: the request that it has not answered, a name of `REQUESTS`.
      words: what it answered, or what the command that started it printed to standard error. With
        `OTHER_VERSION`: its version, or an empty string if it does not tell it.
      code: exit code of that command, or None if it has not ended or could not be started.
    """

    kind: str
    request: str
    words: str
    code: int | None = None


@dataclasses.dataclass
class Host:
    """Hold what was measured on one host.

    Attributes:
      name: the name under which the other hosts call it.
      slots: number of workers to run there.
      prefix: the words that run a command on this host if they precede it, e.g. `"ssh user@a"`.
      facts: the examiner's description of the host, or None without an examiner.
      trouble: why there is no examiner, or why it has stopped answering. None: it answers.
      clock_s: how far the host's clock is ahead of the doctor's, in seconds.
      clock_error_s: the largest possible error of `clock_s`, in seconds.
      ports: the ports on which its examiner listens: server and channel.
      taken: for each port on which the examiner was to listen but could not, the reason.
    """

    name: str
    slots: int = 1
    prefix: str = ""
    facts: Facts | None = None
    trouble: Trouble | None = None
    clock_s: float | None = None
    clock_error_s: float | None = None
    ports: list[int] = dataclasses.field(default_factory=list)
    taken: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Attempt:
    """Describe one attempt to connect to a port of another host.

    Attributes:
      port: the port.
      outcome: `OPEN`, or one of the other outcomes.
      detail: the system's words, or the name of another host that has answered.
      local: the address from which the connection was made, if it was made.
      interface: the network interface with that address.
    """

    port: int
    outcome: str
    detail: str = ""
    local: str = ""
    interface: str = ""


@dataclasses.dataclass
class Link:
    """Hold what was measured from one host to another.

    Attributes:
      source: the host that connects and sends.
      target: the host that listens and receives.
      attempts: the connections to the target's ports, in the order of `Host.ports`.
      round_trip_ms: median time of a byte to the target and back, in ms.
      mbit: rate at which the target receives, in Mbit/s.
      failure: why `round_trip_ms` or `mbit` could not be measured although the target has an open
        port. Empty if both were measured.
    """

    source: str
    target: str
    attempts: list[Attempt]
    round_trip_ms: float | None = None
    mbit: float | None = None
    failure: str = ""

    @property
    def open_port(self) -> int | None:
        """The first open port of the target, or None."""
        return next((each.port for each in self.attempts if each.outcome == OPEN), None)

    def add(self, round_trip_ms: float | None, mbit: float | None, failure: str) -> None:
        """Add a measurement. Of several successful measurements, the best counts.

        Args:
          round_trip_ms: the measured `round_trip_ms`, or None.
          mbit: the measured `mbit`, or None.
          failure: the new `failure`.
        """
        self.failure = failure
        if round_trip_ms is not None:
            self.round_trip_ms = min(round_trip_ms, self.round_trip_ms or round_trip_ms)
        if mbit is not None:
            self.mbit = max(mbit, self.mbit or 0.0)


@dataclasses.dataclass
class Folder:
    """Hold what was measured of the checkpoint folder.

    Attributes:
      path: the folder as given.
      writer: the host whose file the other hosts tried to read. Empty if no host could write.
      unwritable: for each host that cannot write to the folder, the reason.
      unread: for each host that cannot read the writer's file, the reason.
    """

    path: str
    writer: str = ""
    unwritable: dict[str, str] = dataclasses.field(default_factory=dict)
    unread: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ports:
    """The ports that the first worker of each host would use.

    Attributes:
      server: the port of TensorFlow's server.
      channel: the port of the control channel.
      chosen: the variables with which the user has chosen ports: `TF_GOSSIP_PGA_PORT`,
        `TF_GOSSIP_PGA_CHANNEL_PORT`. Without the first, each job has another port `server`.
      variables: for each of the two ports, the variable with which the user can choose it.
    """

    server: int
    channel: int
    chosen: tuple[str, ...] = ()
    variables: tuple[str, str] = (ports_lib.PORT, ports_lib.CHANNEL_PORT)

    @property
    def numbers(self) -> list[int]:
        """Both ports: server and channel."""
        return [self.server, self.channel]

    def variable(self, port: int) -> str:
        """Return the variable with which the user can choose one of the ports."""
        return self.variables[self.numbers.index(port)]

    def is_fixed(self, port: int) -> bool:
        """Return whether every job uses this port, because the user has chosen it."""
        return ports_lib.PORT in self.chosen or (
            port == self.channel and ports_lib.CHANNEL_PORT in self.chosen
        )


@dataclasses.dataclass
class Measurements:
    """Hold everything that was measured.

    Attributes:
      hosts: all hosts, in the order given.
      ports: the ports that workers would use.
      links: what was measured between each ordered pair of hosts with examiners.
      folder: the checkpoint folder, or None if it was not checked.
    """

    hosts: list[Host]
    ports: Ports
    links: list[Link] = dataclasses.field(default_factory=list)
    folder: Folder | None = None

    def host(self, name: str) -> Host:
        """Return the host with a name."""
        return next(host for host in self.hosts if host.name == name)

    def examined(self) -> list[tuple[Host, Facts]]:
        """Return the hosts with examiners, and their facts."""
        return [(host, host.facts) for host in self.hosts if host.facts is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return dataclasses.asdict(self)
