"""Run the exchanges of a cluster whose members change: workers are lost, and join again.

The exchanges of one `fit` are one sequence, counted alike by all members. After a loss the
surviving workers form a new view and agree on the largest count. A worker that is behind skips the
exchanges that others have completed, after all have reconciled what the loss made different. Before
the first of them is completed, the survivors start once more instead.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.admission import Admission
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.joining import Invitation
from tf_gossip_pga.coordination.membership import Membership
from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.coordination.sequence import Sequence
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.coordination.watchdog import Watchdog
from tf_gossip_pga.errors import (
    ExchangeBroken,
    TrainingFinished,
    ViewAbandoned,
    ViewChanged,
    WorkerLost,
)
from tf_gossip_pga.exchange.runtime import Runtime, Transport
from tf_gossip_pga.exchange.session import MISSED, FixedSession


@dataclasses.dataclass(frozen=True)
class LossPolicy:
    """What a lost worker means.

    Attributes:
      min_workers: how many workers must survive for training to go on.
      patience_s: how long the surviving workers wait for those of them that are busy.
      reconcile: called with the number of exchanges that this worker has completed, once the
        surviving workers have a new view; gives them one model and one state. All of them call it,
        where one of them has completed any exchange.
    """

    min_workers: int
    patience_s: float
    reconcile: Callable[[int], None]


class ElasticSession(FixedSession):
    """The session of a worker in a cluster whose members change.

    Args:
      cluster: this process's place.
      transport: how exchanges travel.
      runtime: TensorFlow's server.
      channel: what the other workers are asked through.
      status: what others are told of this process.
      watchdog: what looks after the exchange under way.
      membership: this worker's part in the agreement on the members.
      timing: every deadline of the control plane.
      is_joining: whether this worker joins a running job.

    Attributes:
      is_joining: whether this worker waits to be taken in by the others.
      admission: what this worker and joining workers tell each other.
    """

    def __init__(
        self,
        cluster: Cluster,
        transport: Transport,
        runtime: Runtime,
        channel: Channel,
        status: Status,
        watchdog: Watchdog,
        membership: Membership,
        timing: Timing | None = None,
        is_joining: bool = False,
    ):
        self._runtime = runtime
        self._membership = membership
        self._policy: LossPolicy | None = None  # None: a loss ends training
        self._starts: list[Callable[[], None]] = []  # what this `fit` has started with so far
        super().__init__(cluster, transport, channel, status, watchdog, timing)
        self._sequence = Sequence(self.timing.futile_regroups)
        self.is_joining = is_joining
        self.all_workers = runtime.strategy
        self.admission = Admission(cluster, channel, status, self.timing)
        membership.watch()  # the callback may say that a loss is survived

    @property
    def view(self) -> View:
        """Return the present members and how often they have changed."""
        return self._membership.view

    @property
    def size(self) -> int:
        """Return the number of members; on a joining worker, which is alone yet, of all workers."""
        return self.cluster.size if self.is_joining else super().size

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return what every member passed, in rank order; see `FixedSession.gather`.

        Raises:
          RuntimeError: also for a call of the user's script inside of a `fit` that survives losses,
            which could not be run again after a loss.
        """
        if self._policy is not None and self._status.tell().in_fit:
            _check_not_of_script(doing)
        return super().gather(value, doing, timeout_s)

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer questions; later than in the first `fit`, none."""
        return super().unreachable() if self._status.tell().fits == 1 else []

    def heard_all(self):
        """Note that an exchange with all members has just succeeded."""
        super().heard_all()
        self._membership.meet()

    # ---- The sequence of exchanges --------------------------------------------------------------

    def begin_sequence(self, policy: LossPolicy | None, completed: int = 0):
        """Begin a `fit`: count exchanges from here on.

        Args:
          policy: what a lost worker means from now on; None: it ends training.
          completed: where the count begins, for a worker that has joined others.
        """
        self._policy = policy
        self._starts = []
        self._sequence = Sequence(self.timing.futile_regroups, completed)
        self._membership.begin_fit(policy.patience_s if policy else None)

    def end_sequence(self):
        """Note that this rank has trained to the end, together with all others."""
        self._policy = None
        self._membership.end_fit()
        self._status.end_fit()

    def start(self, exchange: Callable[[], None]):
        """Run exchanges that belong to the start of a `fit`.

        Where a worker is lost before the first of the sequence is completed, the surviving workers
        run all that they have passed here once more, in this order. After that, which is where a
        callback has exchanged already, `exchange` is the next of the sequence.
        """
        if not self._sequence.is_at_start:
            self.run(exchange)
            return
        self._starts.append(exchange)
        while True:
            with contextlib.suppress(ViewChanged):
                if self._sequence.must_reconcile:
                    self._reconcile()
                else:
                    exchange()
                return

    def run(self, exchange: Callable[[], Any]) -> Any:
        """Run the next exchange of the sequence.

        Where a worker is lost and the others go on, the surviving workers reconcile and run the
        exchange again.

        Returns:
          What `exchange` returned; `MISSED`, without calling it, if the other ranks already
          completed it.
        """
        sequence = self._sequence
        while True:
            try:
                if sequence.must_reconcile:
                    self._reconcile()
                result = MISSED if sequence.skips_next else exchange()
                sequence.complete()
                return result
            except ViewChanged:
                continue

    def attempt(self, action: Callable[[], None]):
        """Call `action()`, exchanges outside of the sequence.

        If the view changes meanwhile, leave the rest of them out: the next exchange of the sequence
        reconciles first.
        """
        with contextlib.suppress(ViewChanged):
            action()

    def _reconcile(self):
        if self.size > 1 and self._watchdog.called_off:  # another rank has lost a worker since
            self._on_broken(ExchangeBroken("the next exchange", self._watchdog.called_off))
        if self._policy is None:  # a view only changes where a policy lets it
            raise RuntimeError("Training has ended, so there is nothing to reconcile.")
        if self._sequence.is_at_start:
            for exchange in self._starts:
                exchange()
        else:
            self._policy.reconcile(self._sequence.completed)
        self._sequence.must_reconcile = False

    # ---- Losing workers -------------------------------------------------------------------------

    def _on_broken(self, broken: ExchangeBroken, joining: tuple[int, ...] = ()) -> NoReturn:
        """Form a new view after a broken exchange, and raise what it means for training.

        Args:
          broken: the exchange.
          joining: the workers that could not be taken in, where it was their admission.
        """
        policy = self._policy
        if policy is None or not self._status.tell().in_fit:
            super()._on_broken(broken)
        self._watchdog.call_off(broken.reason)
        if self._under_way is not None:  # nothing of the old view may be in flight
            concurrent.futures.wait([self._under_way])
            self._under_way = None
        before = {*self.view.members, *joining}
        try:
            most = self._membership.regroup(
                self._sequence.completed,
                policy.min_workers,
                policy.patience_s,
                self._runtime.set_view,
            )
        except TrainingFinished:
            self._watchdog.resume()  # the view is whole, apart from the lost worker
            raise
        lost = before - set(self.view.members)
        if not self._sequence.regroup(most, is_lost=bool(lost)):
            self._end(broken)
        told = {rank: each.text for rank, each in self._watchdog.departures.known.items()}
        self._begin_view()  # which forgets them
        how = f"without {named(lost, told)}" if lost else "with all members"
        logger.warning(
            f"Rank {self.cluster.rank} continues {how}: {self.size} of {self.cluster.size} workers "
            f"remain. The failure interrupted {broken.doing}."
        )
        raise ViewChanged from None

    def _begin_view(self):
        """Make what follows from new members."""
        members = self.view.members
        self.cluster.lost.clear()
        self.cluster.lost.update(set(range(self.cluster.size)) - set(members))
        self._channel.keep(members)
        self._channel.probe(sorted(self.cluster.lost) if self.cluster.is_chief else ())
        self._use_view()
        self._status.begin_view(self.view.number)
        self._watchdog.resume()
        self._membership.recheck()

    # ---- Joining workers ------------------------------------------------------------------------

    def joining(self) -> dict[str, int]:
        """Return the endpoints of lost workers that wait to join, in the first `fit`, by rank."""
        return self.admission.announced() if self._policy and self._status.tell().fits == 1 else {}

    def admit(self, joining: dict[str, int], epoch: int, facts: str, state: dict):
        """Take workers in; the present members call it in step, right after a sync point.

        Args:
          joining: endpoints by rank in decimal digits, as `joining` returns them.
          epoch: the epoch that begins, counted from 0.
          facts: a digest of what must be equal on all ranks.
          state: the callback's.

        Raises:
          ViewChanged: it failed, and the surviving workers have formed a new view without them.
          WorkerLost: it failed, and training cannot continue.
        """
        ranks = tuple(sorted(map(int, joining)))
        invitation = Invitation(
            view_number=self.view.number + 1,
            completed=self._sequence.completed,
            members=list(self.view.members),
            joining=list(ranks),
            endpoints={},
            epoch=epoch,
            facts=facts,
            state=state,
        )
        try:
            self.admission.invite(invitation, joining, asks=self.place == 0)
            self._grow(invitation)
        except (ViewAbandoned, OSError):  # OSError: a joining worker's host name is not known here
            self.admission.forget()
            doing = f"the admission of {named(ranks)}"
            self._on_broken(ExchangeBroken(doing, "not all workers joined in time"), ranks)
        logger.info(f"Rank {self.cluster.rank} admitted {named(ranks)} after a restart.")

    def enter(self):
        """Become a member together with all others, as a joining worker that has been invited.

        Raises:
          WorkerLost: the others did not wait for it, or one was lost meanwhile.
        """
        try:
            self._grow(self.admission.accepted())
        except ViewAbandoned:
            raise WorkerLost(
                f"Rank {self.cluster.rank} was not admitted: another worker was lost at the same "
                "time, or the other workers did not wait for it. Restart it."
            ) from None
        self.is_joining = False
        logger.info(f"Rank {self.cluster.rank} has joined the other workers.")
        self.admission.listen()

    def _grow(self, invitation: Invitation):
        self._membership.grow(
            invitation.view_number, invitation.members, invitation.joining, self._runtime.set_view
        )
        self.admission.forget()
        self._begin_view()


def _check_not_of_script(doing: str):
    """Raise for `cluster.gather` and `cluster.barrier`."""
    if doing.startswith("cluster."):
        raise RuntimeError(
            f"{doing} cannot be called inside a fit with on_worker_lost='continue'. Call it before "
            "or after fit. Numbers in Keras logs are averaged over ranks automatically."
        )
