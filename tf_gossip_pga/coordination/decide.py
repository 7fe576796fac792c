"""Decide from the others' answers what a worker that wants a new view does next.

The functions are pure: the caller passes the answers and the time.

All times are in seconds on the same clock.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing, View

Answers = Mapping[int, Standing | Absence]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt of a worker to agree with the others on the members of a new view.

    Attributes:
      rank: this worker's rank.
      view: the current view.
      number: number of the wanted view.
      fit: number of the `fit` that this worker is in.
      min_workers: how many members the wanted view must have at least.
      patience_s: how long to wait for a worker that answers but does not want the view yet. If this
        is shorter than `silent_s`, `silent_s` applies instead.
      silent_s: how long a worker may show no sign of life before the view is formed without it.
    """

    rank: int
    view: View
    number: int
    fit: int
    min_workers: int
    patience_s: float
    silent_s: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a worker remembers of the others' answers and questions.

    Attributes:
      silent_since: for each rank that does not answer now, when its answer was first missing.
      late_since: for each rank that answers but does not want the new view yet, when its first such
        answer arrived.
      asked_by: when each rank last asked this worker a question.
      gone: dead ranks that cannot have begun a view without this worker (see `contacts`).
    """

    silent_since: Mapping[int, float] = dataclasses.field(default_factory=dict[int, float])
    late_since: Mapping[int, float] = dataclasses.field(default_factory=dict[int, float])
    asked_by: Mapping[int, float] = dataclasses.field(default_factory=dict[int, float])
    gone: frozenset[int] = frozenset()

    def updated(
        self,
        attempt: Attempt,
        answers: Answers,
        now: float,
        asked_by: Mapping[int, float],
        gone: frozenset[int],
    ) -> Memory:
        """Return what this worker remembers once `answers` have arrived, at the time `now`."""
        silent = [rank for rank, each in answers.items() if each is Absence.SUSPECTED]
        late_since = {
            rank: since
            for rank, since in self.late_since.items()
            if rank not in _willing(attempt, answers)
        }
        return Memory(
            {rank: self.silent_since.get(rank, now) for rank in silent},
            {**dict.fromkeys(_late(attempt, answers), now), **late_since},
            dict(asked_by),
            gone,
        )

    def for_next_attempt(self) -> Memory:
        """Return a memory for the attempt to form the next view. It keeps only `late_since`."""
        return Memory(late_since=self.late_since)

    def silence_s(self, rank: int, attempt: Attempt, now: float) -> float:
        """Return for how many seconds an unresponsive rank has shown no sign of life.

        A question from the rank counts as a sign of life, but only for `patience_s` after the
        rank's first missing answer. Without this limit, the others would wait forever for a rank
        whose packets pass a firewall in one direction only.
        """
        since = self.silent_since[rank]
        asked = min(self.asked_by.get(rank, since), since + attempt.patience_s)
        return max(0.0, now - max(since, asked))  # the rank may have asked after `now`


@dataclasses.dataclass(frozen=True)
class Wait:
    """Ask the others again: these ranks are undecided, or the leader has not decided yet."""

    ranks: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Adopt:
    """Become a member of the view that the leader has decided on."""

    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Lead:
    """Decide on these members, as the leader."""

    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Finish:
    """Stop, because a worker has finished training and nothing is left to do together."""


@dataclasses.dataclass(frozen=True)
class Fail:
    """End this worker with a `WorkerLost` error that gives this reason."""

    reason: str


Decision = Wait | Adopt | Lead | Finish | Fail


def decide(attempt: Attempt, answers: Answers, memory: Memory, now: float) -> Decision:
    """Return the next action of a worker that wants a new view.

    Every member of the current view is in one of these states::

        willing    wants the same view, in the same `fit`
        undecided  has been silent only briefly, or answers and may still become willing
        away       has shown no sign of life for `silent_s`, has not become willing for
                   `patience_s`, or is dead: it may have continued without this worker
        no side    is dead and `gone` (see `Memory`), or has left `fit` by an exception

    The willing and the away members are the two sides of a possible partition. The willing members
    may continue only if they are the larger side. (`_why_not` explains what happens in a tie.)

    The lowest willing rank is the leader. It decides as soon as no member is undecided and all
    willing workers have reached one another. The other willing workers adopt the leader's list of
    members. If two willing workers have not reached each other for `silent_s`, one of them counts
    as away (see `_cover`).

    Args:
      attempt: the view that the worker wants, and how long to wait for the others.
      answers: the last answer of each other worker.
      memory: the memory after these answers (see `Memory.updated`).
      now: when the answers arrived.
    """
    if any(_has_finished(attempt, each) for each in answers.values()):
        return Finish()
    willing = _willing(attempt, answers)
    away = _away(attempt, answers, memory, now)
    undecided = _undecided(attempt, answers, memory) - away
    leader = min(willing)
    if leader != attempt.rank:
        return _follow(attempt, leader, answers[leader], undecided)
    torn = _torn(willing, answers)
    undecided |= {higher for (_, higher), since_s in torn.items() if since_s < attempt.silent_s}
    if undecided:
        return Wait(frozenset(undecided))
    left_out = _cover(torn, leader)
    willing, away = willing - left_out, away | left_out
    reason = _why_not(attempt, willing, away, answers)
    return Fail(reason) if reason else Lead(tuple(sorted(willing)))


def excluding(rank: int, view: View, own: Standing, answers: Answers) -> int | None:
    """Return a rank whose answer shows that it has begun a view without this worker, or None.

    Args:
      rank: this worker's rank.
      view: this worker's current view.
      own: this worker's standing.
      answers: the last answer of each other worker.
    """
    # The latest view that may contain this worker.
    newest = own.wants if own.is_member else own.wants - 1
    for other, each in answers.items():
        if isinstance(each, Standing) and each.view > view.number:
            lists = (each.view_members, each.members)
            without_this = any(ranks is not None and rank not in ranks for ranks in lists)
            if without_this or each.view > newest:
                return other
    return None


def begun_by(rank: int, own: Standing, answers: Answers) -> int | None:
    """Return the most exchanges that any member has completed, or None until the view may begin.

    The view is the one that this worker wants and has joined. Its leader begins it when all members
    have joined it. The other members begin it when the leader has begun it. They take the number of
    exchanges from the leader, because they may have missed another member's answer.

    Args:
      rank: this worker's rank.
      own: this worker's standing.
      answers: the last answer of each other worker.
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
    """Return whether all these ranks want the view with this number or a later one."""
    found = [answers.get(rank) for rank in ranks]
    return all(isinstance(each, Standing) and each.wants >= number for each in found)


def excluded_text(rank: int, by: int) -> str:
    """Return the error message of an excluded worker."""
    return (
        f"Rank {rank} was excluded: it did not respond in time, and rank {by} has continued "
        "without it. To rejoin, restart it with initialize(join=True)."
    )


def _has_finished(attempt: Attempt, answer: Standing | Absence) -> bool:
    return isinstance(answer, Standing) and answer.finished >= attempt.fit


def _willing(attempt: Attempt, answers: Answers) -> set[int]:
    wanting = {
        rank
        for rank, each in answers.items()
        if isinstance(each, Standing)
        and each.in_fit
        and (each.wants, each.fit) == (attempt.number, attempt.fit)
    }
    return {attempt.rank} | wanting


def _late(attempt: Attempt, answers: Answers) -> set[int]:
    """Return the ranks that answer and are not willing yet, but may still become willing.

    These ranks are inside the `fit` of the attempt, or have not called that `fit` yet.
    """
    willing = _willing(attempt, answers)
    return {
        rank
        for rank, each in answers.items()
        if isinstance(each, Standing)
        and rank not in willing
        and (each.fit < attempt.fit or (each.fit == attempt.fit and each.in_fit))
    }


def _away(attempt: Attempt, answers: Answers, memory: Memory, now: float) -> set[int]:
    silent = {
        rank
        for rank in memory.silent_since
        if memory.silence_s(rank, attempt, now) >= attempt.silent_s
    }
    late = {
        rank
        for rank in _late(attempt, answers)
        if now >= memory.late_since[rank] + max(attempt.patience_s, attempt.silent_s)
    }
    dead = {rank for rank, each in answers.items() if each is Absence.DEAD} - memory.gone
    # A joining worker that was not admitted is not a member, so it is on no side of a partition.
    return (silent | late | dead) & set(attempt.view.members)


def _undecided(attempt: Attempt, answers: Answers, memory: Memory) -> set[int]:
    may_come = set(memory.silent_since) | _late(attempt, answers)
    return may_come & set(attempt.view.members)


def _torn(willing: set[int], answers: Answers) -> dict[Pair, float]:
    """Return pairs of willing ranks that cannot reach each other, and for how many seconds.

    The lower rank of a pair comes first.
    """
    torn: dict[Pair, float] = {}
    for rank, each in answers.items():
        if rank in willing and isinstance(each, Standing):
            for other, silent_s in each.silent:
                if other in willing:
                    pair = min(rank, other), max(rank, other)
                    torn[pair] = max(silent_s, torn.get(pair, 0.0))
    return torn


def _cover(pairs: Iterable[Pair], leader: int) -> set[int]:
    """Return ranks to leave out, so that the remaining ranks can all reach one another.

    The ranks of each given pair cannot reach each other. Until no pair is left, repeatedly pick the
    rank that is in the most pairs (the highest one in a tie), but never the leader. If one rank is
    unreachable for all others, only that rank is left out.
    """
    left: set[Pair] = set(pairs)
    found: set[int] = set()
    while left:
        counts = collections.Counter(rank for pair in left for rank in pair if rank != leader)
        worst = max(counts, key=lambda rank: (counts[rank], rank))
        found.add(worst)
        left = {pair for pair in left if worst not in pair}
    return found


def _follow(
    attempt: Attempt, leader: int, answer: Standing | Absence, undecided: set[int]
) -> Decision:
    members = answer.members if isinstance(answer, Standing) else None
    if members is None:
        return Wait(frozenset(undecided))
    if attempt.rank in members:
        return Adopt(members)
    return Fail(excluded_text(attempt.rank, leader))


def _why_not(attempt: Attempt, willing: set[int], away: set[int], answers: Answers) -> str | None:
    """Return why the willing workers may not continue, or None if they may.

    The workers that are away may be alive and about to continue without the willing ones. Of these
    two sides, only the one with more workers may continue. If both sides are equally large, only
    the side with the lowest rank may continue.
    """
    ahead = len(willing) - len(away)
    if ahead < 0 or (ahead == 0 and min(away) < min(willing)):
        dead = [rank for rank in away if answers.get(rank) is Absence.DEAD]
        ended = (
            f" This worker knows only that {named(dead)} ended, not what happened while rank "
            f"{attempt.rank} was stopped, busy or cut off."
        )
        return (
            f"Rank {attempt.rank} ends: it cannot regroup with {named(away)}, which may be "
            f"continuing without {named(willing)}. Only the side with more workers continues, or "
            f"the side with the lowest rank if both are equally large.{ended if dead else ''}"
        )
    if len(willing) < attempt.min_workers:
        return (
            f"Rank {attempt.rank} ends: {len(willing)} of {len(attempt.view.members)} workers "
            f"survive, fewer than min_workers={attempt.min_workers}. Restart the job."
        )
    return None
