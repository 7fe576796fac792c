"""Conclude from measurements what is wrong between hosts: names, ports and rates."""

from __future__ import annotations

import collections
import ipaddress
import statistics
from collections.abc import Iterator, Sequence

from tf_gossip_pga.cluster.ports import END, FIRST
from tf_gossip_pga.launch.doctor.finding import Finding, command_on, listed
from tf_gossip_pga.launch.doctor.measurements import (
    DROPPED,
    ELSEWHERE,
    OPEN,
    REFUSED,
    STRANGER,
    UNREACHABLE,
    Attempt,
    Facts,
    Link,
    Measurements,
)

_SLOW = 4  # a link is slow if the usual rate is more than this many times its rate

# What was seen of a port, as a predicate, by the outcome of attempts to connect to it.
_SEEN = {
    DROPPED: "does not answer {sources}: a firewall drops the packets",
    REFUSED: "refuses connections from {sources} although the examiner listens: a firewall rejects "
    "them, or the name leads to another machine",
    UNREACHABLE: "cannot be reached from {sources} ({detail}): a firewall or a router rejects the "
    "packets",
    STRANGER: "is answered by another program when {sources} connects ({detail})",
}


def names(found: Measurements) -> Iterator[Finding]:
    """Yield findings for names that do not resolve, or that resolve to a loopback address."""
    for (seen, name), misled in _misnamed(found).items():
        address = _address_of(name, found) or "ADDRESS"
        commands = [
            command_on(found.host(each), _edit(name, facts, address)) for each, facts in misled
        ]
        sources = [source for source, _ in misled]
        is_own = sources == [name] and name not in misled[0][1].unresolved
        yield Finding(
            "name",
            list(dict.fromkeys([*sources, name])),
            f"On {listed(sources)}, {seen}",
            "\n".join(commands),
            # Workers whose own name leads to the loopback interface listen on all interfaces. If
            # other hosts resolve the name wrongly, too, they have findings of their own.
            stops_training=not is_own,
        )


def _misnamed(found: Measurements) -> dict[tuple[str, str], list[tuple[str, Facts]]]:
    """Return, by problem and name, the hosts on which the name has the problem, and their facts."""
    wrong: dict[tuple[str, str], list[tuple[str, Facts]]] = collections.defaultdict(list)
    if len(found.hosts) == 1:  # no other host uses its name
        return wrong
    for host, facts in found.examined():
        for other in found.hosts:
            if seen := _name(host.name, other.name, facts):
                wrong[seen, other.name].append((host.name, facts))
    return wrong


def _name(host: str, name: str, facts: Facts) -> str:
    """Return what is wrong with a name on a host, or an empty string."""
    if name in facts.unresolved:
        return f"the name {name} does not resolve: {facts.unresolved[name]}."
    if not _is_loopback(name, facts):
        return ""
    address = facts.addresses[name][0]
    if host == name:
        return (
            f"its own name resolves to {address}. Training works if all other hosts resolve this "
            "name correctly, but a program that reports this address to other hosts sends them "
            "back to themselves."
        )
    return f"the name {name} resolves to {address}, which leads back to the same host."


def _edit(name: str, facts: Facts, address: str) -> str:
    """Return the command that corrects the address of a name in /etc/hosts."""
    wrong = facts.addresses[name][0] if facts.addresses[name] else ""
    if wrong.startswith("127.") and wrong != "127.0.0.1":  # keep localhost's line
        pattern = wrong.replace(".", r"\.")
        return f'sudo sed -i "s/^{pattern}\\b/{address}/" /etc/hosts'
    return f'sudo sed -i "1i {address} {name}" /etc/hosts'


def _is_loopback(name: str, facts: Facts) -> bool:
    addresses = facts.addresses.get(name)
    return bool(addresses) and _is_local(addresses[0])


def _address_of(name: str, found: Measurements) -> str:
    """Return the address by which most other hosts know a host, or an empty string."""
    known = [
        facts.addresses[name][0]
        for _, facts in found.examined()
        if facts.addresses.get(name) and not _is_loopback(name, facts)
    ]
    known += [each.local for link in found.links if link.source == name for each in link.attempts]
    counts = collections.Counter(each for each in known if each and not _is_local(each))
    return counts.most_common(1)[0][0] if counts else ""


def _is_local(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def ports(found: Measurements) -> Iterator[Finding]:
    """Yield findings for ports of a host to which some other hosts cannot connect."""
    misnamed = {
        (source, name) for (_, name), misled in _misnamed(found).items() for source, _ in misled
    }
    closed: dict[tuple[str, str, str], dict[str, list[int]]] = {}
    for link in found.links:
        for attempt in _failed(link, found):
            if (link.source, link.target) not in misnamed:
                key = (link.target, attempt.outcome, attempt.detail)
                sources = closed.setdefault(key, collections.defaultdict(list))
                sources[link.source].append(attempt.port)
    for (target, outcome, detail), sources in closed.items():
        by_ports: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
        for source, numbers in sources.items():
            by_ports[tuple(numbers)].append(source)
        for numbers, those in by_ports.items():
            yield _closed(target, outcome, detail, numbers, those, found)


def _failed(link: Link, found: Measurements) -> Iterator[Attempt]:
    """Yield the failed attempts to connect to the ports that workers would use."""
    for attempt in link.attempts:
        # If a port was taken, the examiner listened on another one, to which attempts do not count.
        if attempt.outcome != OPEN and attempt.port in found.ports.numbers:
            yield attempt


def _closed(
    target: str,
    outcome: str,
    detail: str,
    numbers: Sequence[int],
    sources: list[str],
    found: Measurements,
) -> Finding:
    """Return the finding that some ports of a host are closed to other hosts."""
    if outcome == ELSEWHERE:
        return Finding(
            "name",
            [*sources, target],
            f"On {listed(sources)}, the name {target} leads to {detail} instead.",
            "\n".join(command_on(found.host(each), f"getent hosts {target}") for each in sources),
        )
    what = listed(
        f"{number} ({'control channel' if number == found.ports.channel else 'server'})"
        for number in numbers
    )
    seen = _SEEN[outcome].format(sources=listed(sources), detail=detail)
    # Unless the user has chosen a port, each job has another one in this range. Open all of them.
    wanted = [
        str(number) if found.ports.is_fixed(number) else f"{FIRST}-{END - 1}" for number in numbers
    ]
    options = " ".join(f"--add-port={each}/tcp" for each in dict.fromkeys(wanted))
    remedy = command_on(found.host(target), f"sudo firewall-cmd {options}")
    variables = dict.fromkeys(found.ports.variable(number) for number in numbers)
    settings = " ".join(f"{variable}=PORT" for variable in variables)
    return Finding(
        "port",
        [*sources, target],
        f"Port{'s' * (len(numbers) > 1)} {what} of {target} {seen}.",
        f"{remedy}\nOr open it in the network rules of your cloud, or choose open ports: export "
        f"{settings}",
    )


def failures(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each link that broke while it was measured."""
    silent = {host.name for host in found.hosts if host.trouble is not None}
    for link in found.links:
        if link.failure and not silent & {link.source, link.target}:
            interface = next((each.interface for each in link.attempts if each.interface), "eth0")
            yield Finding(
                "link",
                [link.source, link.target],
                f"The connection from {link.source} to {link.target} opens but fails when it "
                f"carries data ({link.failure}). Large packets may be lost on the way.",
                "Try smaller packets: "
                + command_on(found.host(link.source), f"sudo ip link set dev {interface} mtu 1400"),
            )


def usual_mbit(found: Measurements) -> float:
    """Return the usual rate of a link: the median, over hosts, of the rate of its fastest link.

    The result is the rate of fast links even if most links are slow because they begin or end at
    the same slow host.

    Returns:
      The rate in Mbit/s; 0 if none was measured.
    """
    fastest: dict[str, float] = {}
    for link in found.links:
        for name in (link.source, link.target):
            fastest[name] = max(fastest.get(name, 0.0), link.mbit or 0.0)
    return statistics.median(fastest.values()) if fastest else 0.0


def slow(found: Measurements) -> list[Link]:
    """Return the links whose rate is less than a quarter of the usual rate (`usual_mbit`)."""
    usual = usual_mbit(found)
    return [link for link in found.links if link.mbit is not None and link.mbit * _SLOW < usual]


def rates(found: Measurements) -> Iterator[Finding]:
    """Yield a finding for each host whose links are all slow, and for each other slow link."""
    usual = usual_mbit(found)
    slow_links = slow(found)
    explained: list[Link] = []
    for host in found.hosts:
        for role, other, verb in (
            ("source", "target", "sends to {} at only"),
            ("target", "source", "receives from {} at only"),
        ):
            own = [each for each in found.links if getattr(each, role) == host.name]
            own = [each for each in own if each.mbit is not None]
            if len(own) > 1 and all(each in slow_links for each in own):
                explained += own
                seen = verb.format(listed(getattr(each, other) for each in own))
                yield _slow(f"{host.name} {seen}", [host.name], own, usual, found)
    for link in slow_links:
        if link not in explained:
            seen = f"{link.source} sends to {link.target} at only"
            yield _slow(seen, [link.source, link.target], [link], usual, found)


def _slow(
    seen: str, hosts: list[str], links: Sequence[Link], usual: float, found: Measurements
) -> Finding:
    """Return the finding that links are slow. The remedy concerns the first host."""
    host = found.host(hosts[0])
    own = [link for link in found.links if link.source == host.name]
    interfaces = [each.interface for link in own for each in link.attempts if each.interface]
    name = interfaces[0] if interfaces else "eth0"
    shown = command_on(host, f"sudo ethtool {name}; tc qdisc show dev {name}")
    fastest = max(link.mbit or 0.0 for link in links)
    return Finding(
        "rate",
        hosts,
        f"{seen} {fastest:.0f} Mbit/s; a usual link carries {usual:.0f} Mbit/s.",
        f"Compare its interface with that of another host: {shown}",
        stops_training=False,
    )
