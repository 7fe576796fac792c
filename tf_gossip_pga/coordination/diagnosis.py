"""Find who keeps a worker waiting, and word it: from answers alone, without asking anybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tf_gossip_pga.coordination.messages import parse_answer
from tf_gossip_pga.coordination.reports import shortened
from tf_gossip_pga.coordination.status import Absence, Whereabouts


@dataclasses.dataclass(frozen=True)
class Findings:
    """What asking all other workers has shown.

    Attributes:
      ranks: those that keep this one waiting.
      never: whether one of them will never come, since it has ended or left `fit`.
      text: about each of them, in one line.
      suspected: whether one of them gives no answer.
    """

    ranks: tuple[int, ...] = ()
    never: bool = False
    text: str = ""
    suspected: bool = False

    @property
    def names(self) -> str:
        """`"rank 3"`, or `"rank 1 and rank 3"`; a long list is cut."""
        return " and ".join(shortened([f"rank {rank}" for rank in self.ranks]))


def diagnose(
    answers: Mapping[int, dict[str, Any] | Absence],
    own: Whereabouts,
    last_heard_s: Mapping[int, float],
    ending: Collection[int] = (),
) -> Findings:
    """Return who keeps this worker waiting, and why.

    Args:
      answers: of the other workers to the question where they are; empty where nobody is known.
      own: where this worker is.
      last_heard_s: how many seconds ago each of the others showed that it lives.
      ending: ranks that end because they have lost another, so that they are not to blame.
    """
    if not answers:
        return Findings(text="the others cannot be asked before all have started")
    # It names no ranks, so that their number does not matter.
    found = {rank: parse_answer(Whereabouts, each, size=0) for rank, each in answers.items()}
    late = {
        rank: where
        for rank, where in found.items()
        if isinstance(where, Absence) or where.exchanges < own.exchanges
    }
    if not late:
        return _elsewhere(found, own)
    # Those that wait themselves are late because of others.
    causes = {rank: where for rank, where in late.items() if not _waits(where)} or late
    lost = {rank: where for rank, where in causes.items() if _is_lost(where, own)}
    never = any(_never_comes(where, own) for where in causes.values())
    if never:  # then a worker that is only slow is not to blame
        causes = {rank: where for rank, where in lost.items() if rank not in ending} or lost
    sentences = [
        f"rank {rank} {_predicate(where, own, last_heard_s.get(rank, 0.0))}"
        for rank, where in causes.items()
    ]
    return Findings(
        ranks=tuple(causes),
        never=never,
        suspected=Absence.SUSPECTED in causes.values(),
        text="; ".join(shortened(sentences)),
    )


def _elsewhere(found: Mapping[int, Whereabouts | Absence], own: Whereabouts) -> Findings:
    """Return those that wait at another exchange of the same number: neither will ever end."""
    there = {
        rank: where.waits_at
        for rank, where in found.items()
        if isinstance(where, Whereabouts)
        and where.exchanges == own.exchanges
        and where.waits_at not in (None, own.waits_at)
    }
    if not there or own.waits_at is None:
        return Findings()
    text = "; ".join(shortened([f"rank {rank} waits at {place}" for rank, place in there.items()]))
    return Findings(tuple(there), never=True, text=f"{text}: the ranks took different ways")


def _waits(where: Whereabouts | Absence) -> bool:
    return isinstance(where, Whereabouts) and where.waits_at is not None


def _is_lost(where: Whereabouts | Absence, own: Whereabouts) -> bool:
    return isinstance(where, Absence) or _never_comes(where, own)


def _never_comes(where: Whereabouts | Absence, own: Whereabouts) -> bool:
    """Return whether a late worker will not take part in what this one waits for."""
    if isinstance(where, Absence):
        return where is Absence.DEAD
    left = where.fits == own.fits and not where.in_fit
    return own.in_fit and (left or where.fits > own.fits)


def _predicate(where: Whereabouts | Absence, own: Whereabouts, last_heard_s: float) -> str:
    """Return what a late worker does, as the rest of a sentence that begins with its name."""
    if where is Absence.SUSPECTED:
        return f"{where.value}; last heard from it {last_heard_s:.0f} s ago"
    if isinstance(where, Absence):
        return where.value
    if _never_comes(where, own):
        return f"has left fit; {where.where_s:.0f} s ago it was {where.where}"
    if where.waits_at is not None:
        return f"has not reached it; it has waited {where.waits_s:.0f} s at {where.waits_at}"
    if not where.in_fit:
        return f"has not called fit with GossipPGA {'again' if where.fits else 'yet'}"
    return f"has not reached it; for {where.where_s:.0f} s it has been {where.where}"
