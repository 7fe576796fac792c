"""Decide what to do with what the others have answered: pure functions, without clock or channel.

Moments are numbers on any one clock, in seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing, View

Answers = Mapping[int, Standing | Absence]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a worker tries to agree on with the others.

    Attributes:
      rank: this worker's.
      view: the present one.
      number: that of the wanted view.
      min_workers: how many members it must have.
      deadline: until when to wait for workers that answer and do not want the view yet.
      silent_s: how long a worker may give no answer before the view is formed without it.
    """

    rank: int
    view: View
    number: int
    min_workers: int
    deadline: float
    silent_s: float

    def is_over(self, since: float, now: float) -> bool:
        """Return whether what began at `since` has lasted too long."""
        return now > min(since + self.silent_s, self.deadline)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What earlier answers of the same attempt have shown.

    Attributes:
      silent_since: when each rank that gives no answer gave none for the first time.
      torn_since: the same for pairs of ranks, the lower first, that want the view and cannot reach
        each other.
    """

    silent_since: Mapping[int, float] = dataclasses.field(default_factory=dict[int, float])
    torn_since: Mapping[Pair, float] = dataclasses.field(default_factory=dict[Pair, float])

    def updated(self, attempt: Attempt, answers: Answers, now: float) -> Memory:
        """Return the memory after these answers."""
        silent = [rank for rank, each in answers.items() if each is Absence.SUSPECTED]
        torn = _torn(_willing(attempt, answers), answers)
        return Memory(
            {rank: self.silent_since.get(rank, now) for rank in silent},
            {pair: self.torn_since.get(pair, now) for pair in torn},
        )


@dataclasses.dataclass(frozen=True)
class Wait:
    """Ask again: these ranks, or the leader, are not ready."""

    ranks: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Adopt:
    """Become a member of the view that the leader has decided on."""

    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Lead:
    """Decide, as the leader, on these members."""

    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Finish:
    """Stop: a worker has trained to the end, so that nothing is left to do together."""


@dataclasses.dataclass(frozen=True)
class Fail:
    """End with this reason."""

    reason: str


Decision = Wait | Adopt | Lead | Finish | Fail


def decide(attempt: Attempt, answers: Answers, memory: Memory, now: float) -> Decision:
    """Return what a worker that wants a view does next.

    Every member of the present view is one of these:

        willing    wants the same view
        suspected  has given no answer for `silent_s`: it may live on the other side of a cut
        undecided  has given no answer, but not for long; or answers and does not want the view yet
        nobody     dead; or has left `fit`; or answers and did not come before the deadline

    The lowest willing rank is the leader. It decides as soon as nobody is undecided; the others
    adopt what it has decided. Where two willing ranks do not reach each other for `silent_s`, the
    higher one is excluded.

    Args:
      attempt: what to agree on.
      answers: the last answer of each other worker.
      memory: up to these answers; see `Memory.updated`.
      now: the moment of the answers.
    """
    if any(_has_finished(each) for each in answers.values()):
        return Finish()
    willing = _willing(attempt, answers)
    suspected = _suspected(attempt, memory, now)
    undecided = _undecided(attempt, answers, memory, now)
    for (_, higher), since in memory.torn_since.items():
        if attempt.is_over(since, now):
            willing.discard(higher)
        else:
            undecided.add(higher)
    leader = min(willing)
    if leader != attempt.rank:
        return _follow(attempt, leader, answers[leader], undecided)
    if undecided:
        return Wait(frozenset(undecided))
    reason = _why_not(attempt, willing, suspected)
    return Fail(reason) if reason else Lead(tuple(sorted(willing)))


def excluding(rank: int, view: View, own: Standing, answers: Answers) -> int | None:
    """Return a rank that has begun a view without this worker, or None."""
    newest = own.wants if own.is_member else own.wants - 1  # this worker may be in that one
    for other, each in answers.items():
        if isinstance(each, Standing) and each.view > view.number:
            lists = (each.view_members, each.members)
            without_this = any(ranks is not None and rank not in ranks for ranks in lists)
            if without_this or each.view > newest:
                return other
    return None


def begun_by(rank: int, own: Standing, answers: Answers) -> int | None:
    """Return the most exchanges any member has completed, once the view may begin; else None.

    The leader begins when all members have joined. The others begin when the leader has begun, and
    take the number from it: they may have missed a member's answer.
    """
    members = own.members or ()
    leader = min(members)
    joined = {
        other: each
        for other, each in answers.items()
        if isinstance(each, Standing) and each.is_member and each.members == members
    }
    if rank == leader:
        if set(joined) >= set(members) - {rank}:
            return max([own.completed, *(each.completed for each in joined.values())])
        return None
    if leader in joined and joined[leader].view == own.wants:
        return joined[leader].most_completed
    return None


def all_want(number: int, ranks: Iterable[int], answers: Answers) -> bool:
    """Return whether all these ranks want a view of this number or a later one."""
    found = [answers.get(rank) for rank in ranks]
    return all(isinstance(each, Standing) and each.wants >= number for each in found)


def excluded_text(rank: int, by: int) -> str:
    """Return what a worker ends with that the others have excluded."""
    return (
        f"Rank {rank}: rank {by} and others have gone on without it, since it did not "
        "answer for long. Start it again, to join them (initialize(join=True))."
    )


def _has_finished(answer: Standing | Absence) -> bool:
    return isinstance(answer, Standing) and not answer.in_fit and answer.has_finished


def _willing(attempt: Attempt, answers: Answers) -> set[int]:
    wanting = {
        rank
        for rank, each in answers.items()
        if isinstance(each, Standing) and each.in_fit and each.wants == attempt.number
    }
    return {attempt.rank} | wanting


def _suspected(attempt: Attempt, memory: Memory, now: float) -> set[int]:
    # A joining worker that was not taken in is no side of a cut.
    silent = memory.silent_since.items()
    members = attempt.view.members
    return {rank for rank, since in silent if rank in members and attempt.is_over(since, now)}


def _undecided(attempt: Attempt, answers: Answers, memory: Memory, now: float) -> set[int]:
    silent = set(memory.silent_since) - _suspected(attempt, memory, now)
    late = {
        rank
        for rank, each in answers.items()
        if isinstance(each, Standing)
        and each.in_fit
        and each.wants != attempt.number
        and now < attempt.deadline
    }
    return (silent | late) & set(attempt.view.members)


def _torn(willing: set[int], answers: Answers) -> set[Pair]:
    """Return pairs of willing ranks, the lower first, of which one does not reach the other."""
    return {
        (min(rank, other), max(rank, other))
        for rank, each in answers.items()
        if rank in willing and isinstance(each, Standing)
        for other in each.silent
        if other in willing
    }


def _follow(
    attempt: Attempt, leader: int, answer: Standing | Absence, undecided: set[int]
) -> Decision:
    members = answer.members if isinstance(answer, Standing) else None
    if members is None:
        return Wait(frozenset(undecided))
    if attempt.rank in members:
        return Adopt(members)
    return Fail(excluded_text(attempt.rank, leader))


def _why_not(attempt: Attempt, willing: set[int], suspected: set[int]) -> str | None:
    """Return why these may not go on, or None.

    Suspected workers may decide the same about these. The side with more workers goes on, or of
    equal sides that with the lowest rank.
    """
    ahead = len(willing) - len(suspected)
    if ahead < 0 or (ahead == 0 and min(suspected) < min(willing)):
        return (
            f"Rank {attempt.rank}: {named(suspected)} cannot be reached, and may be going on "
            f"without {named(willing)}: the side with more workers goes on, or of equal sides "
            "that with the lowest rank. This side ends."
        )
    if len(willing) < attempt.min_workers:
        return (
            f"Rank {attempt.rank}: {len(willing)} of {len(attempt.view.members)} workers are left, "
            f"fewer than min_workers={attempt.min_workers}. Start the job again."
        )
    return None
