"""Format measurements and findings as text for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from tf_gossip_pga.launch.doctor.finding import Finding
from tf_gossip_pga.launch.doctor.measurements import COMPARED, Host, Link, Measurements

_MOST_HOSTS = 8  # with more hosts, show only the slowest links
_SLOWEST = 10  # how many of the slowest links to show

# Over a link with so long a round trip, in ms, TCP takes a large part of the measurement to reach
# its full rate.
_LONG_MS = 10.0


def report(found: Measurements, findings: Sequence[Finding]) -> str:
    """Return the whole report: tables of hosts and links, then the findings.

    Args:
      found: the measurements.
      findings: what is wrong according to the measurements.
    """
    parts = [_table(_hosts(found))]
    if found.links:
        parts.append("\n".join(_links(found)))
    if found.folder is None:
        parts.append("Checkpoint folder: not checked. To check it, give --checkpoint-dir=DIR.")
    else:
        parts.append(f"Checkpoint folder: {found.folder.path}")
    parts += _findings(findings)
    if not any(each.stops_training for each in findings):
        parts.append(_plan(found))
    return "\n\n".join(parts)


def _hosts(found: Measurements) -> Iterator[Sequence[str]]:
    yield ("host", *COMPARED, "cores", "memory", "GPUs", "clock", "ports")
    for host in found.hosts:
        facts = host.facts
        if facts is None:
            yield (host.name, *["?"] * (len(COMPARED) + 5))
            continue
        yield (
            host.name,
            *(facts.versions[name] or "none" for name in COMPARED),
            str(facts.cores),
            f"{facts.memory_bytes / 2**30:.1f} GiB",
            str(facts.gpus),
            "?" if host.clock_s is None else f"{host.clock_s:+.2f} s",
            _ports(host),
        )


def _ports(host: Host) -> str:
    return ", ".join(map(str, host.ports)) or "?"


def _links(found: Measurements) -> Iterator[str]:
    """Yield the heading and the table of links."""
    links = found.links
    if len(found.hosts) > _MOST_HOSTS:
        measured = sorted(
            (link for link in links if link.mbit is not None), key=lambda link: link.mbit or 0.0
        )
        yield f"{len(links)} links. The slowest {_SLOWEST}:"
        links = measured[:_SLOWEST]
    yield _table(
        [("from", "to", "interface", "server", "channel", "round trip", "rate")]
        + [_link(each) for each in links]
    )


def _link(link: Link) -> Sequence[str]:
    interfaces = [f"{each.local} {each.interface}" for each in link.attempts if each.local]
    return (
        link.source,
        link.target,
        interfaces[0] if interfaces else "?",
        *(each.outcome for each in link.attempts),
        "?" if link.round_trip_ms is None else f"{link.round_trip_ms:.2f} ms",
        "?" if link.mbit is None else f"{link.mbit:.0f} Mbit/s",
    )


def _table(rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield headings and findings, numbered throughout."""
    problems = [each for each in findings if each.stops_training]
    others = [each for each in findings if not each.stops_training]
    number = 0
    for heading, those in (
        (f"{len(problems)} problem{'s' * (len(problems) > 1)} would stop training:", problems),
        ("Worth knowing:", others),
    ):
        if those:
            yield heading
        for finding in those:
            number += 1
            yield "\n   ".join([f"{number}. {finding.seen}", *finding.remedy.splitlines()])


def _plan(found: Measurements) -> str:
    """Return the last lines of a report without problems, with a command that plans the training.

    The command plans for the lowest rate and the median latency that were measured.
    """
    measured = {link.mbit: link for link in found.links if link.mbit is not None}
    times = [link.round_trip_ms for link in found.links if link.round_trip_ms is not None]
    if not measured or not times:
        return "No problems."
    nodes = sum(host.slots for host in found.hosts)
    mbit = min(measured)
    # A message takes half a round trip.
    latency_ms = statistics.median(times) / 2
    lines = [
        f"No problems. Plan: gossip-pga plan --nodes={nodes} --mbit={mbit:.0f} "
        f"--latency_ms={latency_ms:.2g} --parameters=… --compute_ms=…"
    ]
    round_trip_ms = measured[mbit].round_trip_ms
    if round_trip_ms is not None and round_trip_ms >= _LONG_MS:
        lines.append(
            f"With round trips of {round_trip_ms:.0f} ms, the measured rate is a lower bound: a "
            "longer transfer may be faster."
        )
    return "\n".join(lines)
