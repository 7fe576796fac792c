"""Exchange with the other ranks during one `fit`: sync points, averages, reconciliation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.averager import Averager, Patience
from tf_gossip_pga.exchange.elastic import ElasticSession, LossPolicy
from tf_gossip_pga.training import recorder, sync_point
from tf_gossip_pga.training.phase import Replica, StopVote
from tf_gossip_pga.training.piggyback import Heard, Piggyback
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.sync_point import Measured, Report

_UNKNOWN = (math.nan, math.nan)


class Group:
    """One rank's exchanges with the other ranks during a `fit`.

    Args:
      session: runs the exchanges of this process (`exchange.session`).
      run: the state that outlives this `fit`.
      model: the model that Keras trains.
      vote: whether training stops before the end of the epoch.

    Attributes:
      patience: how long exchanges wait for other workers.
      replica: how this rank's model relates to the other ranks' models.
      is_whole_period: whether the replicas were last equal right after the last global average that
        the schedule requested, or at step 0.
    """

    def __init__(self, session: ElasticSession, run: RunState, model: keras.Model, vote: StopVote):
        """Store the arguments without exchanging anything."""
        self.patience: Patience = run.settings.patience(session.timing)
        self.replica = Replica()
        self.is_whole_period = False
        self._session = session
        self._run = run
        self._model = model
        self._vote = vote
        self._lent = ""  # digest of the averaged parameters, while they replace this rank's own
        self._unreported: Measured = []
        self._squares = _UNKNOWN  # of the last average that ended a whole period
        self._last_reports: list[dict] = []  # from all ranks, at the last sync point

    @property
    def loss_policy(self) -> LossPolicy | None:
        """Return how to continue after a worker is lost, or None if a loss ends training."""
        settings = self._run.settings
        if not settings.survives:
            return None
        return LossPolicy(
            settings.min_workers,
            self.patience.start_s,
            self._reconcile,
            lambda: self._run.recorder.span(recorder.REGROUPING),
        )

    @property
    def averager(self) -> Averager:
        """Return the averager of the model's variables.

        Raises:
          RuntimeError: there is no averager, because this joining worker was not admitted.
        """
        if self._run.averager is None:
            raise RuntimeError(
                f"Rank {self._session.cluster.rank} cannot join: its fit has no epoch in which the "
                "other workers could admit it. Pass fit more epochs than initial_epoch."
            )
        return self._run.averager

    def others(self) -> tuple[int, ...]:
        """Return the ranks of the other members."""
        own = self._session.cluster.rank
        return tuple(rank for rank in self._session.view.members if rank != own)

    # ---- Sync points ----------------------------------------------------------------------------

    def sync(
        self,
        where: str,
        value: Any = None,
        logs: dict | None = None,
        timed: bool = True,
        in_sequence: bool = True,
    ) -> list:
        """Wait for all ranks at a sync point, and share each rank's value and measurements.

        Args:
          where: name of the sync point.
          value: this rank's JSON-serializable value, or a function that returns it. The function is
            called each time the exchange runs, also if it is repeated after a loss. Default None.
          logs: Keras' logs. The numbers in them are replaced with their means over ranks. Default
            None.
          timed: whether the wait counts as communication. Default True.
          in_sequence: whether this exchange is part of the sequence of exchanges that all members
            count and that continues after a loss (`exchange.elastic`). If False, the exchange
            belongs to the start of `fit`, which the ranks repeat if a worker is lost during the
            start. Default True.

        Returns:
          The values of all ranks, in rank order. If the others completed the exchange without this
          rank, the values may include that of a rank that has been lost since then.

        Raises:
          RuntimeError: on every rank, if the ranks are at different points.
        """
        numbers = sync_point.numbers_in(logs)

        def gather():
            report = Report(
                rank=self._session.cluster.rank,
                where=where,
                step=self._run.step,
                stop=bool(self._vote.is_requested or self._model.stop_training),
                measured=self._unreported,
                logs=numbers,
                value=value() if callable(value) else value,
            )
            self._last_reports = self._session.gather(
                dataclasses.asdict(report), where, self.patience.start_s
            )

        record = self._run.recorder.span(recorder.SYNC_POINT, self.others, where)
        with self._run.communicating() if timed else contextlib.nullcontext(), record:
            if in_sequence:
                self._session.run(gather)
            else:
                gather()
        # A rank that missed the exchange received these reports during the reconciliation.
        reports = [Report(**each) for each in self._last_reports]
        self._model.stop_training = any(each.stop for each in reports)
        sync_point.check_same_point(reports)
        self._run.distances += sync_point.distances(reports)
        self._unreported = []
        if logs is not None:
            logs.update(sync_point.mean_logs(reports, numbers))
        return [each.value for each in reports]

    # ---- Averages -------------------------------------------------------------------------------

    def gossip(self, step: int, round: int):
        """Mix parameters with the neighbors of a round of the topology, after a step.

        With `overlap`, the gossip runs in the background until the next one is due.
        """
        run, averager, doing = self._run, self.averager, f"the gossip of step {step}"
        peers = functools.partial(_peers, self._session, run.topology, round)
        with run.communicating(), run.recorder.span(recorder.GOSSIP, peers):
            if not run.settings.overlap:
                averager.gossip(round, doing, step)
                return
            averager.finish_gossip()
            if run.schedule.ends_before_average(step):
                record = run.recorder.span(recorder.BACKGROUND_GOSSIP, peers, counts_bytes=False)
                averager.start_gossip(round, doing, step, lambda: record)

    def average_globally(self, doing: str, own: Piggyback | None = None) -> Heard:
        """Set the model to the mean over ranks, and share a few numbers in the same exchange.

        Args:
          doing: name of the exchange, for log and error messages.
          own: the numbers of this rank, to which this method adds `squares` and `fingerprint`.
            Default None: none, because the schedule did not request this average.

        Returns:
          The numbers of all ranks.
        """
        run, symptoms, cluster = self._run, self._run.symptoms, self._session.cluster
        sent = dataclasses.replace(
            own or Piggyback(), squares=self._squares, fingerprint=symptoms.fingerprint
        )
        with run.communicating(), run.recorder.span(recorder.GLOBAL_AVERAGE, self.others):
            encoded = sent.encode(cluster.rank, cluster.size)
            averaged = self.averager.global_average(doing, run.step, encoded)
        members = self._session.view.members
        heard = Heard.decode(averaged.sums, len(members))
        symptoms.check_steps(heard.fingerprints, members, cluster.is_chief)
        symptoms.check_finite(averaged.non_finite, cluster.is_chief)
        if not self.replica.is_equal:
            self._unreported.append((run.step, averaged.squares))
        if own is not None:
            self._squares = averaged.squares if self.is_whole_period else _UNKNOWN
            self.is_whole_period = True
        self.replica.equalize()
        return heard

    def average_slots(self, doing: str):
        """Average, clear, or keep the optimizer's slots, depending on `optimizer_state`."""
        record = self._run.recorder.span(recorder.OPTIMIZER_STATE, self.others)
        with self._run.communicating():
            if self._run.settings.optimizer_state == "average":
                with record:
                    self.averager.average_slots(doing)
            elif self._run.settings.optimizer_state == "reset":
                self.averager.clear_slots()

    def settle(self, doing: str):
        """Average the ranks' own models globally, and leave no gossip running in the background."""
        self.take_back()
        self.averager.finish_gossip(apply=False)
        if not self.replica.is_equal:  # they will be equal in the middle of a period
            self.is_whole_period = False
        self.average_globally(doing)

    def follow(self, leaders: Collection[int]):
        """Copy all variables from the lowest rank in `leaders` that is still a member."""
        members = self._session.view.members
        place = next((place for place, rank in enumerate(members) if rank in leaders), None)
        if place is not None:
            self.averager.transfer_state(place, is_new=self._session.place != place)

    def lend_average(self, doing: str):
        """Replace this rank's model with the average until `take_back` is called."""
        local = self.averager.snapshot()
        self.average_globally(doing)
        self._lent = self.averager.digests()[0]
        self.replica.lend(local)

    def take_back(self):
        """Restore this rank's own model if `lend_average` has replaced it with the average.

        If a callback changed the averaged weights, keep the changed weights instead.
        """
        local = self.replica.take_back()
        if local is not None and self.averager.digests()[0] == self._lent:
            self.averager.restore(local)

    # ---- Changes of the view --------------------------------------------------------------------

    def use_view(self, averager_for: Callable[[Topology], Averager]):
        """Exchange with the current members from now on.

        Args:
          averager_for: function that builds an averager for a topology.
        """
        self._run.use_topology_for(self._session.size)
        self._run.use_averager(averager_for(self._run.topology))

    def _reconcile(self, completed: int):
        """Give the members of a new view one model and one state.

        The model is the average of the members' models. Because a gossip involves only neighbors,
        the members' counts of completed exchanges may differ by several. At most one of the
        exchanges that a rank missed involved all members. The rank with the largest count shares
        the decisions made in that exchange.

        Args:
          completed: number of exchanges that this rank has completed.
        """
        doing, run = "the reconciliation after a loss", self._run
        own = {
            "completed": completed,
            "stopped": self._vote.is_agreed,
            "period": run.schedule.state,
            "reports": self._last_reports,
        }
        everyone = self._session.gather(own, doing, self.patience.start_s)
        counts = [each["completed"] for each in everyone]
        place = counts.index(max(counts))
        first = everyone[place]
        self.take_back()  # mixing lent averages with local models would shift the mean
        self.use_view(self.averager.rebuilt)
        averaged = self.averager.global_average(doing, run.step)
        run.symptoms.check_finite(averaged.non_finite, self._session.cluster.is_chief)
        self.average_slots(doing)
        self.averager.copy_outer(place)  # not all members may have taken the last outer step
        self._last_reports = first["reports"]
        if first["stopped"]:
            self._vote.agree()
            self._model.stop_training = True
        run.schedule.restore(first["period"])
        self.replica.equalize()
        self._unreported = []  # these measurements lack the lost worker's part
        self._squares, self.is_whole_period = _UNKNOWN, False


def _peers(session: ElasticSession, topology: Topology, round: int) -> tuple[int, ...]:
    """Return the ranks with which this rank exchanges in a round of the topology."""
    members = session.view.members
    return tuple(members[place] for place in topology.peers(round, session.place))
