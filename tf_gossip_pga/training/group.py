"""Exchange with the other ranks of one `fit`: sync points, averages, reconciliation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.averager import Averager, Patience
from tf_gossip_pga.exchange.elastic import ElasticSession, LossPolicy
from tf_gossip_pga.training import sync_point
from tf_gossip_pga.training.phase import Replica, StopVote
from tf_gossip_pga.training.piggyback import Heard, Piggyback
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.sync_point import Measured, Report


class Group:
    """The ranks of one `fit`, seen from one of them.

    Args:
      session: the exchanges of this process.
      run: what survives this fit.
      model: the model that Keras trains.
      vote: whether training is to stop in mid-epoch.

    Attributes:
      patience: how long exchanges wait for other workers.
      replica: how this rank's model relates to those of the others.
    """

    def __init__(self, session: ElasticSession, run: RunState, model: keras.Model, vote: StopVote):
        self.patience: Patience = run.settings.patience(session.timing)
        self.replica = Replica()
        self._session = session
        self._run = run
        self._model = model
        self._vote = vote
        self._lent = ""  # digest of the parameters that were lent
        self._unreported: Measured = []
        self._last_reports: list[dict] = []  # of the last sync point

    @property
    def loss_policy(self) -> LossPolicy | None:
        """Return what a lost worker means; None where it ends training."""
        settings = self._run.settings
        if not settings.survives:
            return None
        return LossPolicy(settings.min_workers, self.patience.start_s, self._reconcile)

    @property
    def averager(self) -> Averager:
        """Return what exchanges the model's variables.

        Raises:
          RuntimeError: there is none yet: this joining worker was not taken in.
        """
        if self._run.averager is None:
            raise RuntimeError(
                f"Rank {self._session.cluster.rank} was to join the others, but its fit has no "
                "epoch in which they could take it in. Give fit more epochs than initial_epoch."
            )
        return self._run.averager

    # ---- Sync points ----------------------------------------------------------------------------

    def sync(
        self,
        where: str,
        value: Any = None,
        logs: dict | None = None,
        timed: bool = True,
        in_sequence: bool = True,
    ) -> list:
        """Wait for all ranks at the same point of training, and share what each has measured.

        Args:
          where: the point.
          value: what else this rank tells the others, as JSON can hold it; or a function that
            returns it, called each time the exchange runs, after a reconciliation too.
          logs: Keras' logs; the numbers in it become their means over ranks.
          timed: whether the wait counts as communication.
          in_sequence: whether it is the next exchange of the sequence; else of the start.

        Returns:
          What the ranks have passed as `value`, in rank order; also that of a rank lost since then.

        Raises:
          RuntimeError: on every rank, if the ranks stand at different points.
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

        with self._run.communicating() if timed else contextlib.nullcontext():
            if in_sequence:
                self._session.run(gather)
            else:
                gather()
        # If this rank missed the exchange, the others have passed on its reports.
        reports = [Report(**each) for each in self._last_reports]
        self._model.stop_training = any(each.stop for each in reports)
        sync_point.check_same_point(reports)
        self._run.distances += sync_point.distances(reports)
        self._unreported = []
        if logs is not None:
            logs.update(sync_point.mean_logs(reports, numbers))
        return [each.value for each in reports]

    # ---- Averages -------------------------------------------------------------------------------

    def gossip(self, step: int):
        """Mix with the neighbors after a step; in the background where the callback overlaps."""
        # Rounds follow the step count, so that they agree after a resumption as well.
        round, doing = step - 1, f"the gossip of step {step}"
        averager = self.averager
        with self._run.communicating():
            if not self._run.settings.overlap:
                averager.gossip(round, doing)
                return
            averager.finish_gossip()
            # A gossip moves no mean, so before a global average it would be in vain.
            if not self._run.schedule.is_global(step + 1):
                averager.start_gossip(round, doing)

    def average_globally(self, doing: str, stop: bool = False, loss: float = 0.0) -> Heard:
        """Set the model to the mean over ranks, and return what they have told along with it.

        Args:
          doing: the exchange's name in messages.
          stop: whether this rank wants to stop.
          loss: its training loss; 0 where nobody needs it.
        """
        run, symptoms, cluster = self._run, self._run.symptoms, self._session.cluster
        own = Piggyback(stop, loss, symptoms.fingerprint).encode(cluster.rank, cluster.size)
        with run.communicating():
            averaged = self.averager.global_average(doing, run.step, own)
        members = self._session.view.members
        heard = Heard.decode(averaged.sums, len(members))
        symptoms.check_steps(heard.fingerprints, members, cluster.is_chief)
        symptoms.check_finite(averaged.non_finite, cluster.is_chief)
        if not self.replica.is_equal:
            self._unreported.append((run.step, averaged.squares))
        self.replica.equalize()
        return heard

    def average_slots(self, doing: str):
        """Average or clear the optimizer's slots, as the settings say."""
        with self._run.communicating():
            if self._run.settings.optimizer_state == "average":
                self.averager.average_slots(doing)
            elif self._run.settings.optimizer_state == "reset":
                self.averager.clear_slots()

    def settle(self, doing: str):
        """Average globally, so that no gossip is under way afterwards."""
        self.take_back()
        self.averager.finish_gossip(apply=False)
        self.average_globally(doing)

    def follow(self, leaders: Collection[int]):
        """Set all variables to those of the lowest member among `leaders`, if one is left."""
        members = self._session.view.members
        place = next((place for place, rank in enumerate(members) if rank in leaders), None)
        if place is not None:
            self.averager.transfer_state(place, is_new=self._session.place != place)

    def lend_average(self, doing: str):
        """Put the average in place of this rank's model, until `take_back`."""
        local = self.averager.snapshot()
        self.average_globally(doing)
        self._lent = self.averager.digests()[0]
        self.replica.lend(local)

    def take_back(self):
        """Put this rank's own model back in place, if the average was lent.

        Where a callback has set weights in place of the average, training goes on from those.
        """
        local = self.replica.take_back()
        if local is not None and self.averager.digests()[0] == self._lent:
            self.averager.restore(local)

    # ---- Changes of the view --------------------------------------------------------------------

    def use_view(self, averager_for: Callable[[Topology], Averager]):
        """Exchange among the present members from now on.

        Args:
          averager_for: makes an averager for a topology.
        """
        self._run.use_topology_for(self._session.size)
        self._run.use_averager(averager_for(self._run.topology))

    def _reconcile(self, completed: int):
        """Give the surviving workers one model and one state.

        The model is their average. Gossips need only neighbors, so the counts of completed
        exchanges may differ by several; at most one of those exchanges was among all members. The
        rank with the largest count passes on what was decided in it.

        Args:
          completed: how many exchanges this rank has completed.
        """
        doing, run = "the reconciliation", self._run
        own = {
            "completed": completed,
            "stopped": self._vote.is_agreed,
            "period": run.period_state,
            "reports": self._last_reports,
        }
        everyone = self._session.gather(own, doing, self.patience.start_s)
        first = max(everyone, key=lambda each: each["completed"])
        self.take_back()  # an average of averages and local models would move the mean
        self.use_view(self.averager.rebuilt)
        averaged = self.averager.global_average(doing, run.step)
        run.symptoms.check_finite(averaged.non_finite, self._session.cluster.is_chief)
        self.average_slots(doing)
        self._last_reports = first["reports"]
        if first["stopped"]:
            self._vote.agree()
            self._model.stop_training = True
        if run.adaptive:
            run.adaptive.state = first["period"]
        self.replica.equalize()
        self._unreported = []  # the lost worker's part of these distances is lost
