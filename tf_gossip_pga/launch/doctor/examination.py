"""Let an examiner on each host measure, and collect what the examiners have measured.

An examiner is a process that the doctor starts on a host (see `examiner`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tf_gossip_pga import __version__
from tf_gossip_pga.cluster import ports
from tf_gossip_pga.launch.doctor import contact, link_checks
from tf_gossip_pga.launch.doctor.contact import Answer, Contact, NoAnswerError
from tf_gossip_pga.launch.doctor.measurements import (
    FAILED,
    OTHER_VERSION,
    Attempt,
    Facts,
    Folder,
    Host,
    Link,
    Measurements,
    Ports,
    Trouble,
)
from tf_gossip_pga.launch.doctor.starting import Target

_CLOCKS = 5  # readings of each clock
_SHARE = 64  # for each 64 hosts, examiners get as much time again for an answer


def wanted_ports(targets: Sequence[Target], environment: Mapping[str, str]) -> Ports:
    """Return the ports that the first worker on each host would use.

    If the user has chosen no ports, return those of a random job.

    Args:
      targets: the hosts.
      environment: the environment variables.

    Raises:
      ValueError: a variable does not hold a port, or there are too few ports.
    """
    most = max(each.slots for each in targets)
    first = ports.first(environment, secrets.token_hex(8), most)
    ports.of_task(first, most - 1)  # raises if the last worker would have no port
    # For workers over ssh, the launcher removes the variable that sets the port of the channel.
    is_over_ssh = any(each.prefix.startswith("ssh ") for each in targets)
    variables = (ports.PORT, ports.PORT if is_over_ssh else ports.CHANNEL_PORT)
    channel = None if is_over_ssh else ports.channel(environment)
    chosen = [ports.PORT] * (ports.PORT in environment)
    chosen += [ports.CHANNEL_PORT] * (channel is not None)
    return Ports(first, channel or first + 1, tuple(chosen), variables)


def examine(targets: Sequence[Target], wanted: Ports, folder: str | None = None) -> Measurements:
    """Examine hosts, and return what was measured.

    Every wait has a deadline. At the end, no examiner runs any more.

    Args:
      targets: the hosts.
      wanted: the ports to listen on, from `wanted_ports`.
      folder: the checkpoint folder. Default: check no folder.
    """
    hosts = [Host(each.name, each.slots, each.prefix) for each in targets]
    found = Measurements(hosts, wanted)
    contacts: dict[str, Contact] = {}
    starter = ThreadPoolExecutor(1)  # so that Ctrl-C cannot interrupt the start of a process
    try:
        for started in [starter.submit(_start, contacts, each) for each in targets]:
            started.result()
        examination = _Examination(found, contacts)
        examination.describe()
        examination.read_clocks()
        examination.listen()
        examination.call()
        examination.measure()
        if folder is not None:
            examination.try_folder(folder)
    finally:
        starter.shutdown(cancel_futures=True)
        contact.end_all(contacts.values())
    return found


def _start(contacts: dict[str, Contact], target: Target) -> None:
    contacts[target.name] = Contact(target.command)


class _Examination:
    """The steps of an examination. Each step adds its results to the measurements.

    Args:
      found: the measurements.
      contacts: the examiners, by host. An examiner that has not answered is not asked again.
    """

    def __init__(self, found: Measurements, contacts: Mapping[str, Contact]):
        self._found = found
        self._contacts = contacts
        self._names = [host.name for host in found.hosts]
        self._token = secrets.token_hex(8)
        shares = 1 + len(contacts) // _SHARE
        self._start_s, self._answer_s = contact.START_S * shares, contact.ANSWER_S * shares

    def _available(self) -> list[str]:
        return [host.name for host in self._found.hosts if host.trouble is None]

    def _ask(
        self, request: str, arguments: Mapping[str, Mapping[str, Any]], seconds: float
    ) -> dict[str, Answer]:
        """Send a request to several hosts at once, and return the answers of those that answer.

        Args:
          request: the request.
          arguments: the arguments for each host.
          seconds: how long to wait for the answers.
        """
        sent = {
            name: self._contacts[name].send(request, **each) for name, each in arguments.items()
        }
        ends = time.monotonic() + seconds
        answers: dict[str, Answer] = {}
        for name, request_id in sent.items():
            try:
                answers[name] = self._contacts[name].receive(request_id, ends)
            except NoAnswerError as error:
                self._found.host(name).trouble = error.trouble
        return answers

    def _ask_all(self, request: str, seconds: float, **arguments: Any) -> dict[str, Answer]:
        """Send the same request to all available hosts."""
        return self._ask(request, dict.fromkeys(self._available(), arguments), seconds)

    def describe(self) -> None:
        """Let each host describe itself."""
        answers = self._ask_all("describe", self._start_s, names=self._names)
        for name, answer in answers.items():
            host = self._found.host(name)
            # With another version of this package, the answers may have another form.
            if (version := answer.result.get("version")) != __version__:
                host.trouble = Trouble(OTHER_VERSION, "describe", str(version or ""))
                continue
            try:
                host.facts = Facts(**answer.result["facts"])
            except TypeError as error:  # other code with the same version
                host.trouble = Trouble(FAILED, "describe", str(error))

    def read_clocks(self) -> None:
        """Compare each host's clock with that of this machine, and keep the most exact result."""
        for _ in range(_CLOCKS):
            for name, answer in self._ask_all("clock", self._answer_s).items():
                host = self._found.host(name)
                error_s = (answer.received - answer.sent) / 2
                if host.clock_error_s is None or error_s < host.clock_error_s:
                    host.clock_error_s = error_s
                    host.clock_s = answer.result - (answer.sent + answer.received) / 2

    def listen(self) -> None:
        """Let each host listen on its ports."""
        arguments = {
            name: {"name": name, "token": self._token, "ports": self._found.ports.numbers}
            for name in self._available()
        }
        for name, answer in self._ask("listen", arguments, self._answer_s).items():
            host = self._found.host(name)
            host.ports = answer.result["ports"]
            host.taken = {int(port): why for port, why in answer.result["taken"].items()}

    def call(self) -> None:
        """Let each host connect to the ports of all other hosts whose names it can resolve."""
        available = set(self._available())
        listening = {host.name: host.ports for host in self._found.hosts if host.name in available}
        arguments: dict[str, dict[str, Any]] = {}
        for host, facts in self._found.examined():
            if host.name in available:
                # A name server that does not answer would delay the answer to this request, too.
                skipped = {host.name, *facts.unresolved}
                targets = {name: listening[name] for name in listening if name not in skipped}
                arguments[host.name] = {"targets": targets}
        for name, answer in self._ask("call", arguments, self._answer_s).items():
            self._found.links += [
                Link(name, target, [Attempt(**each) for each in attempts])
                for target, attempts in answer.result.items()
            ]

    def measure(self) -> None:
        """Measure latency and rate of all links with an open port."""
        self._measure(self._found.links)
        # Measure slow links again, because other programs may have used them the first time.
        self._measure(link_checks.slow(self._found))

    def _measure(self, links: Sequence[Link]) -> None:
        """Measure links. Each host takes part in at most one measurement at a time."""
        by_pair = {(link.source, link.target): link for link in links}
        for pairs in rounds(self._names):
            available = set(self._available())
            chosen = [by_pair[each] for each in pairs if each in by_pair and available >= set(each)]
            arguments = {
                link.source: {"host": link.target, "port": link.open_port}
                for link in chosen
                if link.open_port is not None
            }
            answers = self._ask("measure", arguments, self._answer_s)
            for link in chosen:
                if link.source in answers:
                    link.add(**answers[link.source].result)

    def try_folder(self, path: str) -> None:
        """Let each host write a file to the folder, and read that of the first host that could."""
        self._found.folder = folder = Folder(path)
        text = secrets.token_hex(16)
        arguments = {
            name: {"folder": path, "token": self._token, "name": name, "text": text}
            for name in self._available()
        }
        answers = self._ask("write", arguments, self._answer_s)
        folder.unwritable = {name: each.result for name, each in answers.items() if each.result}
        writers = [name for name in answers if name not in folder.unwritable]
        if not writers:
            return
        folder.writer = writers[0]
        file = {"folder": path, "token": self._token, "name": folder.writer, "text": text}
        results = self._ask_all("read", self._answer_s, **file)
        folder.unread = {name: each.result for name, each in results.items() if each.result}


def rounds(names: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """Yield all ordered pairs of names, in rounds in which each name occurs at most once.

    Args:
      names: different names.

    Example:
      >>> list(rounds(["a", "b"]))
      [[('a', 'b')], [('b', 'a')]]
    """
    circle: list[str | None] = [*names, *[None] * (len(names) % 2)]
    for _ in range(len(circle) - 1):
        halves = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        pairs = [(first, second) for first, second in halves if first and second]
        yield pairs
        yield [(second, first) for first, second in pairs]
        circle = [circle[0], circle[-1], *circle[1:-1]]  # all names but the first move by one
