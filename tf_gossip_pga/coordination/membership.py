"""Run the agreement on who the members are (`protocol`) over the real channel and clock."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import messages
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.messages import Message, Rank
from tf_gossip_pga.coordination.protocol import (
    Ask,
    Effect,
    Join,
    Pause,
    Protocol,
    RawAnswers,
    Report,
    Steps,
)
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View

_Result = TypeVar("_Result")


class Membership:
    """One worker's knowledge of who the members are.

    Args:
      channel: through which it asks the others.
      status: of this worker, for whether it still trains.
      rank: this worker's.
      size: number of workers at first.
      timing: how long to wait for what.
      call_off: called with a reason when another worker wants a new view.
    """

    def __init__(
        self,
        channel: Channel,
        status: Status,
        rank: int,
        size: int,
        timing: Timing,
        call_off: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._status = status
        self._rank = rank
        self._size = size
        self._timing = timing
        self._protocol = Protocol(rank, size, timing, time.monotonic, call_off)
        self._pinging: threading.Thread | None = None
        channel.handlers["regroup"] = self._answer

    @property
    def view(self) -> View:
        """The present view."""
        return self._protocol.view

    def watch(self) -> None:
        """Know of the others, from now on, whether they live: ask them once in a while."""
        if self._pinging is None:
            self._pinging = threading.Thread(target=self._ping, name="gossip-ping", daemon=True)
            self._pinging.start()

    def begin_fit(self, patience_s: float | None) -> None:
        """Note that a `fit` begins.

        Args:
          patience_s: how long workers that form a view wait for those that do something else; None
            where a loss ends training, so that no view is ever formed.
        """
        if patience_s is None:
            self._pinging = None
        else:
            self._protocol.contacts.patience_s = max(patience_s, self._timing.silent_s)
            self.watch()

    def end_fit(self) -> None:
        """Note that this worker has trained to the end of its present `fit`."""
        self._protocol.finished = self._status.tell().fits
        self._protocol.contacts.patience_s = self._timing.silent_s  # the next fit may have another

    def meet(self) -> None:
        """Note that an exchange with all members of the view has succeeded."""
        self._protocol.contacts.meet(time.monotonic())

    def restrict(self, members: Collection[int]) -> None:
        """Regard only these ranks as members of the present view.

        A joining worker is the only member it knows until it is taken in: the losses of others do
        not concern it.
        """
        self._protocol.view = View(self.view.number, tuple(sorted(members)))

    def regroup(
        self, completed: int, min_workers: int, timeout_s: float, join: Callable[[View], None]
    ) -> int:
        """Form the next view with all surviving workers; this one is a member when it returns.

        Args:
          completed: exchanges this worker has completed.
          min_workers: how many members there must be.
          timeout_s: how long to wait for workers that live and do something else.
          join: called with the view, makes this process a member.

        Returns:
          The most exchanges that any member has completed.

        Raises:
          TrainingFinished: there is nothing left to do together.
          WorkerLost: too few are left, or others have gone on without this worker.
        """
        fit = self._status.tell().fits
        return self._run(self._protocol.regroup(completed, min_workers, timeout_s, fit), join)

    def grow(
        self,
        view_number: int,
        members: Sequence[int],
        joining: Sequence[int],
        join: Callable[[View], None],
    ) -> None:
        """Form a view of members and joining workers; all of them call it.

        Args:
          view_number: one more than that of the present view.
          members: those of the present view, which have just completed the same exchange.
          joining: the ranks to take in.
          join: as in `regroup`.

        Raises:
          ViewAbandoned: another worker was lost meanwhile, or did not come; members may regroup.
          WorkerLost: others have gone on without this worker.
        """
        self._run(self._protocol.grow(view_number, members, joining), join)

    def recheck(self) -> None:
        """Call off what has begun if another worker already wants a newer view."""
        self._protocol.recheck()

    def _ping(self) -> None:
        """Ask the others once in a while. One thread a process, nearly always asleep."""
        while self._pinging is threading.current_thread():
            try:
                self._run(self._protocol.ping(), lambda view: None)
            except Exception:  # without this thread nobody would know who lives
                traceback.print_exc()
            time.sleep(self._timing.ping_every_s)

    def _run(self, steps: Steps[_Result], join: Callable[[View], None]) -> _Result:
        try:
            effect = next(steps)
            while True:
                effect = steps.send(self._perform(effect, join))
        except StopIteration as end:
            return end.value

    def _perform(self, effect: Effect, join: Callable[[View], None]) -> RawAnswers:
        match effect:
            case Ask(wants):
                fit = self._status.tell().fits
                return self._channel.ask_all("regroup", rank=self._rank, wants=wants, fit=fit)
            case Pause(seconds):
                time.sleep(seconds)
            case Join(view):
                join(view)
            case Report(text):
                logger.info(text)
        return {}

    def _answer(self, request: Message) -> Message:
        """Answer another worker. On the channel's thread."""
        asker = messages.checked(request, self._size, rank=Rank, wants=int, fit=int)
        own = self._status.tell()
        standing = self._protocol.answer(**asker, own_fit=own.fits, in_fit=own.in_fit)
        return dataclasses.asdict(standing)
