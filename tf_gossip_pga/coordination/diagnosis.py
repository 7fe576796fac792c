"""Find and describe the workers that an exchange waits for, from the other workers' answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tf_gossip_pga.coordination.messages import parse_answer
from tf_gossip_pga.coordination.reports import shortened
from tf_gossip_pga.coordination.status import LEFT, Absence, Departure, Whereabouts

Where = Whereabouts | Absence | Departure  # what is known about another worker


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of asking all other workers what they are doing.

    Attributes:
      ranks: the ranks that keep this worker waiting in an exchange.
      never: whether one of these ranks will never reach that exchange, e.g. because it has ended,
        has left `fit`, or waits in a different exchange.
      text: one line that describes each of these ranks.
      suspected: whether one of these ranks does not answer.
      reached_s: for how many seconds all ranks have been in that exchange. 0 if one is late.
    """

    ranks: tuple[int, ...] = ()
    never: bool = False
    text: str = ""
    suspected: bool = False
    reached_s: float = 0.0

    @property
    def names(self) -> str:
        """`"rank 3"`, or `"rank 1 and rank 3"`. A long list is shortened."""
        return " and ".join(shortened([f"rank {rank}" for rank in self.ranks]))


def diagnose(
    answers: Mapping[int, dict[str, Any] | Absence],
    own: Whereabouts,
    last_heard_s: Mapping[int, float],
    ending: Collection[int] = (),
    departed: Mapping[int, Departure] | None = None,
) -> Findings:
    """Return which workers keep this worker waiting, and why.

    Args:
      answers: the other workers' answers to the request "status", by rank. There are none until all
        workers have started.
      own: this worker's own status.
      last_heard_s: how many seconds ago each other worker last showed a sign of life, by rank.
      ending: ranks that are ending because they lost another worker, and so are not to blame.
      departed: the departures that workers have reported, by rank.
    """
    departed = departed or {}
    if not answers:
        return Findings(text="the other workers cannot be asked until all have started")
    found = {rank: _parsed(answer, departed.get(rank)) for rank, answer in answers.items()}
    late = {rank: where for rank, where in found.items() if _is_late(where, own)}
    if not late:
        return _elsewhere(found, own)
    # A late rank that itself waits for others is not the cause: blame those that do not wait.
    causes = {r: where for r, where in late.items() if not _waits(where, own)} or late
    lost = {rank: where for rank, where in causes.items() if _is_lost(where, own)}
    never = any(_never_comes(where, own) for where in causes.values())
    if never:  # then do not blame a worker that is only slow
        causes = {rank: where for rank, where in lost.items() if rank not in ending} or lost
    # The end of one worker interrupts the exchanges of others: do not blame these others.
    if any(_has_ended(where) for where in causes.values()):
        causes = {rank: where for rank, where in causes.items() if not _was_interrupted(where)}
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


def _parsed(answer: dict[str, Any] | Absence, departure: Departure | None) -> Where:
    # A status contains no ranks, so the size does not matter.
    found = parse_answer(Whereabouts, answer, size=0)
    # An ending process is silent for a moment before its sockets close, so a silent worker that has
    # reported its end counts as ended.
    is_over = found is Absence.DEAD or (found is Absence.SUSPECTED and departure and departure.ends)
    return departure if departure and is_over else found


def _is_late(where: Where, own: Whereabouts) -> bool:
    """Return whether a worker is missing from the exchange that this worker waits in."""
    if not isinstance(where, Whereabouts):
        return True
    if where.view > own.view or _cannot_exchange(where):
        return True
    return where.exchanges < own.exchanges


def _cannot_exchange(where: Whereabouts) -> bool:
    """Return whether a worker can begin no more exchanges in its view: an exception ended one."""
    return where.unfinished is not None and where.waits_at is None and not where.in_fit


def _has_ended(where: Where) -> bool:
    return where is Absence.DEAD or isinstance(where, Departure)


def _was_interrupted(where: Where) -> bool:
    """Return whether an exchange failed in a worker that reports no exception of its own."""
    return isinstance(where, Whereabouts) and _cannot_exchange(where) and not where.left


def _elsewhere(found: Mapping[int, Where], own: Whereabouts) -> Findings:
    """Return the ranks that have begun as many exchanges as this worker, but wait in another one.

    If there are such ranks, neither their exchange nor this worker's will ever complete.
    """
    here = [
        (rank, where)
        for rank, where in found.items()
        if isinstance(where, Whereabouts)
        and where.exchanges == own.exchanges
        and _waits(where, own)
    ]
    there = {rank: where.waits_at for rank, where in here if where.waits_at != own.waits_at}
    if not there or own.waits_at is None:
        return Findings(reached_s=min([own.waits_s, *(where.waits_s for _, where in here)]))
    text = "; ".join(shortened([f"rank {rank} waits at {place}" for rank, place in there.items()]))
    return Findings(tuple(there), never=True, text=f"{text}: the ranks are in different exchanges")


def _waits(where: Where, own: Whereabouts) -> bool:
    """Return whether a worker waits for others, and is not in a later view than this worker."""
    if not isinstance(where, Whereabouts) or where.view > own.view:
        return False
    return where.waits_at is not None


def _is_lost(where: Where, own: Whereabouts) -> bool:
    return isinstance(where, Absence) or _never_comes(where, own)


def _never_comes(where: Where, own: Whereabouts) -> bool:
    """Return whether a late worker will never reach the exchange that this worker waits in."""
    if not isinstance(where, Whereabouts):
        return where is not Absence.SUSPECTED
    if where.view > own.view or _cannot_exchange(where):
        return True
    left = where.fits == own.fits and not where.in_fit
    return own.in_fit and (left or where.fits > own.fits)


def _predicate(where: Where, own: Whereabouts, last_heard_s: float) -> str:
    """Return a predicate that describes a late worker, to follow its name in a sentence."""
    if where is Absence.SUSPECTED:
        return f"{where.value}; last heard from {last_heard_s:.0f} s ago"
    if isinstance(where, Absence):
        return where.value
    if isinstance(where, Departure):
        return where.text
    if where.view > own.view:
        return "has continued without this worker"
    if _cannot_exchange(where):
        return _broken_off(where)
    if _never_comes(where, own):
        return f"{where.left or LEFT}; {where.where_s:.0f} s ago it was {where.where}"
    if where.waits_at is not None:
        return (
            f"has not reached it, and has itself waited {where.waits_s:.0f} s at {where.waits_at}"
        )
    if where.left and not own.left:
        return f"has not reached it: it {where.left}"
    if not where.in_fit:
        return f"has not called fit with GossipPGA {'again' if where.fits else 'yet'}"
    return f"has not reached it, and for {where.where_s:.0f} s has been {where.where}"


def _broken_off(where: Whereabouts) -> str:
    if where.can_regroup:
        return f"has lost a worker at {where.unfinished}"
    how = where.left or "was interrupted"
    return f"{how} in {where.unfinished}, and must be restarted before it can exchange again"
