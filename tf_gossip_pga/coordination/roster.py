"""Define and compare the reports that starting workers exchange, without using sockets.

In the roll call (`roll_call`), each worker sends its current `Report`, as a line of JSON, to every
other worker.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from tf_gossip_pga.coordination.reports import shortened

_Value = TypeVar("_Value")

# Maximum length of a report's line: enough for the addresses of several thousand workers.
REPORT_BYTES = 1 << 18

_TEXT = 2000  # characters kept of each text in a received report

# Length of the longest list of addresses that a message quotes in full. Of a longer list, it quotes
# only the entries that differ between workers.
_QUOTED = 8


@dataclasses.dataclass(frozen=True)
class Report:
    """A starting process's report about itself.

    Attributes:
      rank: its rank.
      nonce: random characters that identify the process. A restarted worker has different ones.
      host: name of its machine.
      pid: its process id there.
      addresses: `"host:port"` of all workers in rank order, from its `TF_CONFIG`.
      facts: facts that must be equal on all ranks, by name, e.g. `{"version of Keras": "3.15.1"}`.
      gpu: name of the GPU that it can exchange from, unique on its machine, or an empty string.
      machine: id of its machine, or an empty string. Several machines may have the same `host`.
      missing: the ranks that it has not met, that is, that have not answered its calls yet.
      complete: whether it knows that all workers have met each other.
      failure: why it cannot start, as a sentence, or an empty string if it can.
    """

    rank: int
    nonce: str
    host: str
    pid: int
    addresses: tuple[str, ...]
    facts: Mapping[str, str]
    gpu: str = ""
    machine: str = ""
    missing: tuple[int, ...] = ()
    complete: bool = False
    failure: str = ""

    @property
    def process(self) -> str:
        """The process in words: `"process 17 on host1"`."""
        return f"process {self.pid} on {self.host}"

    def to_line(self) -> bytes:
        """Return the line of JSON that carries this report."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def from_line(line: bytes) -> Report:
    """Return the report that a line of JSON carries.

    Raises:
      ValueError: the line is not a report, so its sender does not take part in the roll call.
    """
    try:
        fields = json.loads(line)
        report = Report(
            rank=_whole(fields["rank"]),
            nonce=_text(fields["nonce"]),
            host=_text(fields["host"]),
            pid=_whole(fields["pid"]),
            addresses=tuple(_text(each) for each in _list(fields["addresses"])),
            gpu=_text(fields.get("gpu", "")),
            machine=_text(fields.get("machine", "")),
            facts={_text(name): _text(fact) for name, fact in fields["facts"].items()},
            missing=tuple(_whole(each) for each in _list(fields["missing"])),
            complete=fields["complete"] is True,
            failure=_text(fields["failure"]),
        )
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a report: {error}") from None
    if not all(rank < len(report.addresses) for rank in (report.rank, *report.missing)):
        raise ValueError("not a report: it names a rank that is not in its list of addresses")
    return report


def difference(reports: Collection[Report]) -> str:
    """Return sentences that say what the reports disagree on, or an empty string if they agree."""
    lists = _holders([(report, report.addresses) for report in reports])
    if len(lists) > 1:
        quoted = (f"\n  {who}: {_quoted(each, list(lists))}" for each, who in lists.items())
        return (
            "the workers have different lists of addresses:"
            f"{''.join(quoted)}\nGive all of them the same list, in the same order."
        )
    for name in sorted({name for report in reports for name in report.facts}):
        values = _holders([(report, report.facts.get(name, "none")) for report in reports])
        if len(values) > 1:
            quoted = "; ".join(f"{value} on {who}" for value, who in values.items())
            return f"the workers differ in the {name}, which must be the same: {quoted}."
    return ""


def _holders(values: Iterable[tuple[Report, _Value]]) -> dict[_Value, str]:
    """Return, for each value, a description of the processes that hold it, in rank order."""
    holders: dict[_Value, list[str]] = {}
    for report, value in sorted(values, key=lambda each: (each[0].rank, each[0].nonce)):
        holders.setdefault(value, []).append(f"rank {report.rank} ({report.process})")
    return {value: " and ".join(shortened(who)) for value, who in holders.items()}


def _quoted(addresses: Sequence[str], lists: Sequence[Sequence[str]]) -> str:
    """Return a list of addresses as text. Of a long list, show only where the lists differ."""
    if len(addresses) <= _QUOTED:
        return ", ".join(addresses)
    odd = [
        f"rank {rank} at {address}"
        for rank, address in enumerate(addresses)
        if any(each[rank : rank + 1] != addresses[rank : rank + 1] for each in lists)
    ]
    return f"{len(addresses)} addresses, with {', '.join(shortened(odd))}"


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    value = value[:_TEXT]
    if value.isprintable():
        return value
    return "".join(each for each in value if each.isprintable() or each == "\n")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value  # pyright: ignore[reportUnknownVariableType]
