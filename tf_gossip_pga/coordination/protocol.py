"""Agree on the members of a new view, in generators that leave the network to their driver.

The generators yield *effects*: to ask the other workers, to pause, to join a view, or to report a
text. The driver of a generator performs each effect, and sends the answers to an `Ask` back into
the generator. `membership` drives the generators with the real channel and clock. A simulation in
the tests drives them with a virtual network and clock. The protocol is specified in
docs/protocol.md.

A worker whose exchange has failed wants the next view. It asks the others until it can decide on
the members (`decide`). The lowest rank that wants the view is the leader, and the others adopt its
list of members. Each worker on the list makes itself a member, and says so in its answers. Once all
workers on the list have done this, the leader begins the view, and the others follow. If any of
these steps fails, the workers that took part want the view with the next higher number.

The protocol has two properties. First, no exchange of a view begins before every member has joined
the view. This is necessary because the members' TensorFlow servers query the server of one member,
the group leader. If an exchange reaches the group leader too early, this server forgets the
exchange and never completes it. Second, no worker is a member of two views at once, because a list
of members takes effect only once all workers on it have adopted it.

Between losses, each worker asks the others periodically (`ping`), so it knows whether a dead worker
may have continued without it (`contacts`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, TypeVar

from tf_gossip_pga.coordination import decide as decide_lib
from tf_gossip_pga.coordination.contacts import Contacts
from tf_gossip_pga.coordination.messages import parse_answer
from tf_gossip_pga.coordination.reports import Waiting, named
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import Standing, View
from tf_gossip_pga.errors import TrainingFinished, ViewAbandoned, WorkerLost


@dataclasses.dataclass(frozen=True)
class Ask:
    """Ask all workers that the driver knows for their standing. It sends back answers by rank.

    Attributes:
      wants: number of the view that this worker wants, or 0 for none. The workers that are asked
        call off their exchanges to form this view.
    """

    wants: int


@dataclasses.dataclass(frozen=True)
class Pause:
    """Wait for this many seconds."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Join:
    """Make this process a member of the view."""

    view: View


@dataclasses.dataclass(frozen=True)
class Report:
    """Show a text to the user."""

    text: str


Effect = Ask | Pause | Join | Report
RawAnswers = dict[int, dict[str, Any] | Absence]
_Result = TypeVar("_Result")
Steps = Generator[Effect, RawAnswers, _Result]


class Protocol:
    """One worker's part in the agreement on the members.

    Args:
      rank: this worker's rank.
      size: number of workers at the start.
      timing: every deadline of the control plane.
      clock: returns the current time, in seconds.
      call_off: function that takes a reason and aborts this worker's exchanges. Called when another
        worker wants a new view, or when others have continued without this worker.

    Attributes:
      view: the current view. A joining worker is alone in its view until it is admitted.
      finished: number of the last `fit` in which this worker has finished training. The caller sets
        this number.
      contacts: when this worker and the others last communicated. The caller records exchanges
        here.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timing: Timing,
        clock: Callable[[], float],
        call_off: Callable[[str], None],
    ) -> None:
        self.view = View(0, tuple(range(size)))
        self.finished = 0
        self._rank = rank
        self._size = size
        self._timing = timing
        self._clock = clock
        self._call_off = call_off
        self._wanted = 0  # the latest view that any worker wants
        self._standing = Standing()
        self.contacts = Contacts(timing.silent_s)
        self._memory = decide_lib.Memory()

    def answer(self, rank: int, wants: int, fit: int, own_fit: int, in_fit: bool) -> Standing:
        """Return this worker's standing to another worker, which may want a new view. Thread-safe.

        Args:
          rank: rank of the worker that asks.
          wants: number of the view that the asking worker wants, or 0 for none.
          fit: how many times the asking worker has called `fit`.
          own_fit: how many times this worker has called `fit`.
          in_fit: whether this worker is still inside its last `fit`.
        """
        now = self._clock()
        self.contacts.asked_by[rank] = now
        if rank in self.view.members and fit > self.finished:
            if wants > self._standing.wants:
                # Nobody waits for a worker that has left the asker's fit by an exception.
                has_left = own_fit > fit or (own_fit == fit and not in_fit)
                self.contacts.record_wanted(-math.inf if has_left else now)
            if wants > self._wanted:
                self._wanted = wants
                self._call_off("another rank has lost a worker")
        standing, now_is = self._standing, (own_fit, in_fit, self.finished)
        if (standing.fit, standing.in_fit, standing.finished) == now_is:
            return standing
        return dataclasses.replace(standing, fit=own_fit, in_fit=in_fit, finished=self.finished)

    def ping(self) -> Steps[None]:
        """Ask the other members whether they are alive, unless they recently showed that they are.

        A separate thread drives this generator.
        """
        view = self.view
        others = view.others(self._rank)
        now = self._clock()
        oldest_s = max((self.contacts.age_s(rank, now) for rank in others), default=0.0)
        if self._standing.wants > view.number or oldest_s < self._timing.ping_every_s:
            return
        raw = yield Ask(0)
        answers = {rank: parse_answer(Standing, each, self._size) for rank, each in raw.items()}
        if self.view != view:
            return
        self.contacts.answer(others, answers, now, self._clock())
        if decide_lib.excluding(self._rank, view, self._standing, answers) is not None:
            self.contacts.record_wanted(-math.inf)
            self._call_off("other workers have continued without this rank")

    def recheck(self) -> None:
        """Call off this worker's exchanges if another worker already wants a newer view."""
        if self._wanted > self.view.number:
            self._call_off("another rank has lost a worker")

    def regroup(self, completed: int, min_workers: int, timeout_s: float, fit: int) -> Steps[int]:
        """Form the next view with all surviving workers, as `Membership.regroup` does."""
        number = max(self._wanted, self.view.number + 1)
        self._memory = decide_lib.Memory()
        for _ in range(self._timing.attempts):
            self.contacts.record_regrouping(self._clock())
            standing = self._standing_at(number, completed, fit)
            attempt = decide_lib.Attempt(
                rank=self._rank,
                view=self.view,
                number=number,
                fit=fit,
                min_workers=min_workers,
                patience_s=timeout_s,
                silent_s=self._timing.silent_s,
            )
            try:
                return (yield from self._form(attempt, standing))
            except ViewAbandoned:  # another worker was lost meanwhile
                number = max(self._wanted, number + 1)
        raise WorkerLost(
            f"Rank {self._rank} ends: the surviving workers did not agree on the members in "
            f"{self._timing.attempts} attempts. Check the network between them, and restart the "
            "job."
        )

    def grow(self, number: int, members: Sequence[int], joining: Sequence[int]) -> Steps[None]:
        """Form a view of members and joining workers, as `Membership.grow` does."""
        self.view = View(number - 1, tuple(members))
        self.contacts.forget()  # a joining worker's rank belonged to a different process before
        standing = self._standing_at(number)
        deadline = self._clock() + self._timing.admit_s
        others = [rank for rank in members if rank != self._rank]
        try:
            # No member may leave TensorFlow's cluster while another still runs an exchange.
            yield from self._until(
                standing,
                others,
                deadline,
                lambda answers: decide_lib.all_want(number, others, answers) or None,
                joining,
            )
            view = View(number, tuple(sorted({*members, *joining})))
            yield Join(view)
            standing = dataclasses.replace(standing, members=view.members, is_member=True)
            yield from self._until_begun(standing, deadline, joining)
        except ViewAbandoned:
            self._wanted = max(self._wanted, number + 1)
            raise
        self._begin(standing, 0)

    def _form(self, attempt: decide_lib.Attempt, standing: Standing) -> Steps[int]:
        self._wanted = max(self._wanted, attempt.number)
        members = yield from self._agree(attempt, standing)
        yield Join(View(attempt.number, members))
        standing = dataclasses.replace(standing, members=members, is_member=True)
        deadline = self._clock() + self._timing.silent_s
        most_completed = yield from self._until_begun(standing, deadline)
        self._begin(standing, most_completed)
        return most_completed

    def _agree(self, attempt: decide_lib.Attempt, standing: Standing) -> Steps[tuple[int, ...]]:
        """Agree with the other workers on the members of the wanted view, and return the list."""
        self._memory = memory = self._memory.for_next_attempt()
        waiting = Waiting(self._timing.report_s, self._clock())
        # First report all others as silent, so that no leader decides before they have answered.
        unheard = dict.fromkeys(attempt.view.others(self._rank), 0.0)
        standing = dataclasses.replace(standing, silent=tuple(unheard.items()))
        while True:
            answers = yield from self._poll(standing)
            now = self._clock()
            contacts = self.contacts
            self._memory = memory = memory.updated(
                attempt, answers, now, contacts.asked_by, contacts.gone
            )
            silent = {rank: memory.silence_s(rank, attempt, now) for rank in memory.silent_since}
            standing = dataclasses.replace(standing, silent=tuple(silent.items()))
            self._standing = standing
            match decide_lib.decide(attempt, answers, memory, now):
                case decide_lib.Adopt(members):
                    return members
                case decide_lib.Lead(members):
                    self._standing = dataclasses.replace(standing, members=members)
                    return members
                case decide_lib.Fail(reason):
                    raise WorkerLost(reason)
                case decide_lib.Finish():
                    raise TrainingFinished
                case decide_lib.Wait(ranks):
                    if ranks and (waited_s := waiting.due(now)):
                        yield Report(
                            f"Rank {self._rank} has waited {waited_s:.0f} s for {named(ranks)} to "
                            "regroup after the loss of a worker."
                        )
            yield Pause(self._timing.poll_s)

    def _until_begun(
        self, standing: Standing, deadline: float, joining: Collection[int] = ()
    ) -> Steps[int]:
        """Wait until the wanted view may begin. Return the most exchanges any member completed."""
        begun = functools.partial(decide_lib.begun_by, self._rank, standing)
        others = [rank for rank in standing.members or () if rank != self._rank]
        return (yield from self._until(standing, others, deadline, begun, joining))

    def _until(
        self,
        standing: Standing,
        others: Sequence[int],
        deadline: float,
        happened: Callable[[decide_lib.Answers], _Result | None],
        joining: Collection[int] = (),
    ) -> Steps[_Result]:
        """Ask `others` until `happened(their answers)` is not None, and return its value.

        Raises:
          ViewAbandoned: one of `others` is dead or outside `fit`, or the deadline has passed. Only
            the ranks in `joining` may be outside `fit`, because they may not have called it yet.
        """
        waiting = Waiting(self._timing.report_s, self._clock())
        while True:
            found = yield from self._poll(standing, calls_off=not joining)
            answers = {rank: each for rank, each in found.items() if rank in others}
            if _is_lost(answers, joining) or self._clock() > deadline:
                raise ViewAbandoned
            result = happened(answers)
            if result is not None:
                return result
            if waited_s := waiting.due(self._clock()):
                late = named(_late(standing, others, answers))
                waited = f"Rank {self._rank} has waited {waited_s:.0f} s"
                yield Report(f"{waited} for {late} to enter view {standing.wants}.")
            yield Pause(self._timing.poll_s)

    def _poll(self, standing: Standing, calls_off: bool = True) -> Steps[decide_lib.Answers]:
        """Ask the others for their standing.

        Args:
          standing: this worker's standing, which others receive as an answer from now on.
          calls_off: whether the others must call off their exchanges for the wanted view.

        Raises:
          ViewAbandoned: another worker wants a later view.
          WorkerLost: another worker has begun a view without this one.
        """
        self._standing = standing
        asked = self._clock()
        raw = yield Ask(standing.wants if calls_off else 0)
        answers = {rank: parse_answer(Standing, each, self._size) for rank, each in raw.items()}
        self.contacts.answer(self.view.others(self._rank), answers, asked, self._clock())
        by = decide_lib.excluding(self._rank, self.view, standing, answers)
        if by is not None:
            raise WorkerLost(decide_lib.excluded_text(self._rank, by))
        # If other workers regroup for a view of the same number, abandon the admission.
        if self._wanted > standing.wants - (not calls_off):
            raise ViewAbandoned
        return answers

    def _begin(self, standing: Standing, most_completed: int) -> None:
        self.view = View(standing.wants, standing.members or ())
        self._wanted = max(self._wanted, standing.wants)
        self.contacts.begin()
        self._standing = dataclasses.replace(
            standing,
            view=standing.wants,
            view_members=standing.members,
            most_completed=most_completed,
        )

    def _standing_at(self, wants: int, completed: int = 0, fit: int = 1) -> Standing:
        """Return this worker's standing when it starts to want a view after the current one."""
        return Standing(
            view=self.view.number,
            view_members=self.view.members,
            wants=wants,
            completed=completed,
            fit=fit,
        )


def _is_lost(answers: decide_lib.Answers, joining: Collection[int]) -> bool:
    """Return whether a worker has died, or is outside `fit` and not joining."""
    left = any(
        isinstance(each, Standing) and not each.in_fit and rank not in joining
        for rank, each in answers.items()
    )
    return left or Absence.DEAD in answers.values()


def _late(standing: Standing, others: Sequence[int], answers: decide_lib.Answers) -> set[int]:
    """Return the ranks that this worker still waits for.

    First, wait for the ranks that do not want the view yet. Once all ranks want the view, wait for
    those that have not joined it. Once all have joined it, wait for all of `others` to begin it.
    """
    known = {rank: each for rank, each in answers.items() if isinstance(each, Standing)}
    away = {r for r in others if r not in known or known[r].wants != standing.wants}
    return away or {r for r in others if not known[r].is_member} or set(others)
