"""Run the exchanges of a cluster whose members change as workers are lost and rejoin.

The exchanges of one `fit` form a sequence, which all members count in the same way. After a loss,
the surviving workers form a new view and agree on the largest count. They reconcile: they average
their models, and adopt any decision that only some of them have learned. Each worker then skips the
exchanges that others completed without it. If no worker has completed any exchange yet, the
surviving workers instead repeat the start of the `fit`.
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
from tf_gossip_pga.exchange.runtime import Runtime
from tf_gossip_pga.exchange.session import MISSED, FixedSession
from tf_gossip_pga.exchange.transport import Transport


@dataclasses.dataclass(frozen=True)
class LossPolicy:
    """How to continue after a worker is lost.

    Attributes:
      min_workers: minimum number of workers that must survive for training to continue.
      patience_s: how long surviving workers that form a view wait, in seconds, for a worker that
        answers but is still busy with something else, such as a training step.
      reconcile: function that reconciles the members of a new view: it averages their models, and
        shares what only some of them have learned, such as the decision to stop. It receives the
        number of exchanges that this worker has completed. All members call the function if at
        least one of them has completed an exchange.
      recorded: function that returns a context manager, inside which the session forms a view or
        reconciles. Default: one that does nothing.
    """

    min_workers: int
    patience_s: float
    reconcile: Callable[[int], None]
    recorded: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


class ElasticSession(FixedSession):
    """The session of a worker in a cluster whose members can change.

    Args:
      cluster: this process's place among the workers.
      transport: the transport of exchanges. A joining worker later adopts that of the members.
      runtime: TensorFlow's server.
      channel: sends requests to the other workers.
      status: what this process answers to requests of the other workers.
      watchdog: monitors the exchange in progress.
      membership: this worker's part in agreeing on the members.
      timing: the deadlines of the control plane. Default: `Timing()`.
      is_joining: whether this worker is joining a running job. Default False.

    Attributes:
      is_joining: whether this worker is joining and not a member yet.
      admission: the messages between this worker and joining workers.
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
        """Start checking whether the other members are alive. Does not exchange anything."""
        self._runtime = runtime
        self._membership = membership
        self._policy: LossPolicy | None = None  # None: a loss ends training
        self._starts: list[Callable[[], None]] = []  # exchanges passed to `start` in this `fit`
        super().__init__(cluster, transport, channel, status, watchdog, timing)
        self._sequence = Sequence(self.timing.futile_regroups)
        self.is_joining = is_joining
        self.admission = Admission(cluster, channel, status, self.timing)
        membership.watch()  # now, because a later fit may have on_worker_lost="continue"

    @property
    def view(self) -> View:
        """Return the current view: its number and its members."""
        return self._membership.view

    @property
    def size(self) -> int:
        """Return the number of members, or of all workers if this worker has yet to join."""
        return self.cluster.size if self.is_joining else super().size

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return the values of all members, in rank order. See `FixedSession.gather`.

        Raises:
          RuntimeError: for `cluster.gather` or `cluster.barrier` in a `fit` that survives losses.
        """
        if self._policy is not None and self._status.tell().in_fit:
            _check_not_of_script(doing)
        return super().gather(value, doing, timeout_s)

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer requests. In later fits than the first, return []."""
        return super().unreachable() if self._status.tell().fits == 1 else []

    def heard_all(self):
        """Record that an exchange with all members has just succeeded."""
        super().heard_all()
        self._membership.meet()

    # ---- The sequence of exchanges --------------------------------------------------------------

    def begin_sequence(self, policy: LossPolicy | None, completed: int = 0):
        """Begin the sequence of exchanges of a `fit`.

        Args:
          policy: how to continue after a loss from now on. None if a loss ends training.
          completed: number of exchanges completed before this worker joined the `fit`. Default 0.
        """
        self._policy = policy
        self._starts = []
        self._sequence = Sequence(self.timing.futile_regroups, completed)
        self._membership.begin_fit(policy.patience_s if policy else None)

    def end_sequence(self):
        """Record that this rank and all others have completed training."""
        self._policy = None
        self._membership.end_fit()
        self._status.end_fit()

    def start(self, exchange: Callable[[], None]):
        """Run exchanges that belong to the start of a `fit`.

        If a worker is lost before any exchange of the sequence is completed, the surviving workers
        repeat all exchanges passed to this method, in the same order. If an exchange of the
        sequence is already completed, run `exchange` as the next one of the sequence.
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

        If a worker is lost and training continues, the members of the new view reconcile and run
        the exchange again.

        Returns:
          The result of `exchange`, or `MISSED` if the others completed it without this rank.
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
        """Call `action`, which runs exchanges that are not part of the sequence.

        If the view changes meanwhile, skip the rest of `action`. The members then reconcile before
        the next exchange of the sequence.
        """
        with contextlib.suppress(ViewChanged):
            action()

    def _reconcile(self):
        if self.size > 1 and self._watchdog.called_off:  # another rank has lost a worker
            self._on_broken(ExchangeBroken("the next exchange", self._watchdog.called_off))
        if self._policy is None:  # a view changes only if there is a policy
            raise RuntimeError("Training has ended, so there is nothing to reconcile.")
        if self._sequence.is_at_start:
            for exchange in self._starts:
                exchange()
        else:
            with self._policy.recorded():
                self._policy.reconcile(self._sequence.completed)
        self._sequence.must_reconcile = False

    # ---- Losing workers -------------------------------------------------------------------------

    def _on_broken(self, broken: ExchangeBroken, joining: tuple[int, ...] = ()) -> NoReturn:
        """Form a new view after a broken exchange, and raise `ViewChanged` (or see `waiting`).

        Args:
          broken: the error that the exchange raised.
          joining: the workers that were being admitted, if an admission failed. Default: none.
        """
        policy = self._policy
        if policy is None or not self._status.tell().in_fit:
            super()._on_broken(broken)
        self._watchdog.call_off(broken.reason)
        if self._under_way is not None:  # no exchange of the old view may remain in flight
            concurrent.futures.wait([self._under_way])
            self._under_way = None
        before = {*self.view.members, *joining}
        completed = self._sequence.completed
        try:
            with policy.recorded():
                most = self._membership.regroup(
                    completed, policy.min_workers, policy.patience_s, self._runtime.set_view
                )
        except TrainingFinished:
            self._watchdog.resume()  # the view stays; only the lost worker is missing
            raise
        lost = before - set(self.view.members)
        if not self._sequence.regroup(most, is_lost=bool(lost)):
            self._end(broken)
        causes = {rank: each.text for rank, each in self._watchdog.departures.known.items()}
        self._begin_view()  # also clears the departures read above
        how = f"without {named(lost, causes)}" if lost else "with all members"
        logger.warning(
            f"Rank {self.cluster.rank} continues {how}: {self.size} of {self.cluster.size} workers "
            f"remain. The failure interrupted {broken.doing}."
        )
        _warn_of_new_chief(self.cluster, min(before), lost)
        raise ViewChanged from None

    def _begin_view(self):
        """Update everything that depends on the members."""
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
        """Return joining workers' ports by rank (a decimal string). Only the first fit has any."""
        return self.admission.announced() if self._policy and self._status.tell().fits == 1 else {}

    def admit(self, joining: dict[str, int], epoch: int, facts: str, state: dict):
        """Admit joining workers. All current members call this together, right after a sync point.

        Args:
          joining: the joining workers' ports, keyed as in the result of `joining`.
          epoch: the epoch that is about to begin, counted from 0.
          facts: digest of the versions, settings and variables that must be equal on all ranks.
          state: the state of `GossipPGA`.

        Raises:
          ViewChanged: the surviving workers formed a new view without the joining workers.
          WorkerLost: the admission failed, and training cannot continue.
        """
        ranks = tuple(sorted(map(int, joining)))
        invitation = Invitation(
            view_number=self.view.number + 1,
            completed=self._sequence.completed,
            members=list(self.view.members),
            joining=list(ranks),
            transport=self.transport.hint,
            epoch=epoch,
            facts=facts,
            state=state,
        )
        try:
            with self.admission.inviting(invitation, joining, asks=self.place == 0):
                self._grow(invitation)
        except (ViewAbandoned, OSError):  # OSError: cannot resolve a joining worker's host name
            doing = f"the admission of {named(ranks)}"
            self._on_broken(ExchangeBroken(doing, "not all workers joined in time"), ranks)
        logger.info(f"Rank {self.cluster.rank} admitted {named(ranks)} after a restart.")

    def enter(self):
        """Become a member. A joining worker calls this after it has been invited.

        Raises:
          WorkerLost: the members did not wait for this worker, or one of them was lost.
        """
        try:
            self._grow(self.admission.accepted())
        except ViewAbandoned:
            raise WorkerLost(
                f"Rank {self.cluster.rank} was not admitted: another worker was lost at the same "
                "time, or the other workers did not wait for it. Restart this worker."
            ) from None
        self.is_joining = False
        logger.info(f"Rank {self.cluster.rank} has joined the other workers.")
        self.admission.listen()

    def _grow(self, invitation: Invitation):
        self._membership.grow(
            invitation.view_number, invitation.members, invitation.joining, self._runtime.set_view
        )
        self._begin_view()


def _warn_of_new_chief(cluster: Cluster, before: int, lost: set[int]):
    """Warn on the new chief if the previous chief, rank `before`, is one of the lost workers."""
    if cluster.is_chief and before in lost:
        logger.warning(
            f"Rank {cluster.rank} is the chief from now on. Callbacks that the script created only "
            f"on rank {before}, such as a CSVLogger, do not continue on rank {cluster.rank}. If "
            f"only rank {before} printed Keras' progress (verbose), no rank prints it now."
        )


def _check_not_of_script(doing: str):
    """Raise for `cluster.gather` and `cluster.barrier`, which cannot be repeated after a loss."""
    if doing.startswith("cluster."):
        raise RuntimeError(
            f"{doing} cannot be called inside a fit with on_worker_lost='continue'. Call it before "
            "or after fit. For numbers in Keras logs no call is needed: they are averaged over "
            "ranks automatically."
        )
