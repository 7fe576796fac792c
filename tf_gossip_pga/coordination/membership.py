"""Agree on the members of views: run `protocol` over TCP and with the real clock."""

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
    """One worker's current view, and its part in forming the next one.

    Args:
      channel: sends requests to the other workers.
      status: this worker's status, which tells which `fit` this worker is in.
      rank: this worker's rank.
      size: number of workers at the start.
      timing: every deadline of the control plane.
      call_off: function that takes a reason and aborts this worker's exchanges. Called when another
        worker wants a new view, or when others have continued without this worker.
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
        """The current view."""
        return self._protocol.view

    def watch(self) -> None:
        """Start asking the others periodically whether they are alive."""
        if self._pinging is None:
            self._pinging = threading.Thread(target=self._ping, name="gossip-ping", daemon=True)
            self._pinging.start()

    def begin_fit(self, patience_s: float | None) -> None:
        """Record that a `fit` begins.

        Args:
          patience_s: how long workers that form a view wait for busy workers. None if the loss of a
            worker ends training, so that no view is ever formed.
        """
        if patience_s is None:
            self._pinging = None
        else:
            self._protocol.contacts.patience_s = max(patience_s, self._timing.silent_s)
            self.watch()

    def end_fit(self) -> None:
        """Record that this worker has finished training in its current `fit`."""
        self._protocol.finished = self._status.tell().fits
        self._protocol.contacts.patience_s = self._timing.silent_s  # the next fit may change it

    def meet(self) -> None:
        """Record that an exchange of all members of the view has succeeded."""
        self._protocol.contacts.record_exchange(time.monotonic())

    def restrict(self, members: Collection[int]) -> None:
        """Treat only these ranks as members of the current view.

        A joining worker uses this to be the only member of its own view until it is admitted. The
        loss of another worker then does not affect it.
        """
        self._protocol.view = View(self.view.number, tuple(sorted(members)))

    def regroup(
        self, completed: int, min_workers: int, timeout_s: float, join: Callable[[View], None]
    ) -> int:
        """Form the next view with all surviving workers, and join it.

        Args:
          completed: number of exchanges that this worker has completed.
          min_workers: minimum number of members.
          timeout_s: how long to wait for workers that are alive but busy.
          join: function that makes this process a member of the view that it receives.

        Returns:
          The largest number of exchanges that any member has completed.

        Raises:
          TrainingFinished: another worker has finished training, so nothing is left to do together.
          WorkerLost: too few workers survive, or others have continued without this worker.
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
        """Form a view of members and joining workers. All of them must call this.

        Args:
          view_number: the number of the current view plus one.
          members: members of the current view, which have just completed the same exchange.
          joining: the ranks to admit.
          join: as in `regroup`.

        Raises:
          ViewAbandoned: another worker was lost in the meantime, or did not join in time. The
            members may regroup.
          WorkerLost: others have continued without this worker.
        """
        self._run(self._protocol.grow(view_number, members, joining), join)

    def recheck(self) -> None:
        """Call off this worker's exchanges if another worker already wants a newer view."""
        self._protocol.recheck()

    def _ping(self) -> None:
        """Ask the others periodically whether they are alive. Runs on the thread of `watch`."""
        while self._pinging is threading.current_thread():
            try:
                self._run(self._protocol.ping(), lambda view: None)
            except Exception:  # this thread must survive: it tracks which workers are alive
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
        """Return this worker's standing to a worker that asks. Runs on the channel's thread."""
        asker = messages.checked(request, self._size, rank=Rank, wants=int, fit=int)
        own = self._status.tell()
        standing = self._protocol.answer(**asker, own_fit=own.fits, in_fit=own.in_fit)
        return dataclasses.asdict(standing)
