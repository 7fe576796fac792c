"""Track a `fit` call of several workers: its exchanges, its sync points, and joining workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.schedule import Observed
from tf_gossip_pga.exchange.averager import Averager
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.exchange.session import MISSED
from tf_gossip_pga.training import recorder, sync_point
from tf_gossip_pga.training.ending import Ending
from tf_gossip_pga.training.fit import Fit
from tf_gossip_pga.training.group import Group
from tf_gossip_pga.training.phase import Phase
from tf_gossip_pga.training.piggyback import Piggyback
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.start import Start


class GroupFit(Fit):
    """One `fit` call of one of several workers. For the arguments, see `Fit`.

    Attributes:
      group: this rank's exchanges with the other ranks.
    """

    session: ElasticSession

    def __init__(self, model: keras.Model, params: dict, run: RunState, session: ElasticSession):
        """Store the arguments without exchanging anything."""
        super().__init__(model, params, run, session)
        self.group = Group(session, run, model, self.vote)
        self._start = Start(session, self.group, run, model, params)
        self._ending = Ending(session, self.group, model, params["epochs"])

    # ---- The start ------------------------------------------------------------------------------

    def begin(self, problem: str | None):
        """Agree with the other ranks on what to train, and start from equal models.

        A joining worker instead checks that it can train with the members.

        Args:
          problem: why this rank cannot train, or None if it can.

        Raises:
          ValueError: on every rank, if a rank cannot train or the ranks differ.
        """
        if self.session.is_joining:
            self.session.begin_sequence(None)
            self._start.join(problem, self.callbacks)
        else:
            self.session.begin_sequence(self.group.loss_policy)
            self.session.start(lambda: self._start.agree(problem, self.callbacks))

    # ---- Epochs and batches ---------------------------------------------------------------------

    def _gather_ranks(self, epoch: int):
        """Sync with the other ranks at the beginning of an epoch, and admit joining workers.

        A joining worker becomes a member here.
        """
        if self.session.is_joining:
            self._enter(epoch)
        is_first = self.phase is Phase.STARTING
        self.phase = self.phase.after("epoch")
        where = sync_point.beginning_of(epoch)
        if is_first and (epoch or self.run.outer):
            self.session.start(lambda: self._start.broadcast_again(where))
        # A rank that completes this sync point knows that all ranks began with equal models. If a
        # worker is lost before this point, the surviving workers repeat the start. If a worker is
        # lost after it, they average their models.
        while joining := self._sync_with_joining(where, may_join=not is_first):
            self._admit(joining, epoch)
        if is_first:
            self.run.symptoms.begin(self.group.averager.health)
            self.group.is_whole_period = self.run.step == 0
            if self.run.outer:
                self.run.outer.is_restored = False  # the next fit begins at its own weights

    def _average(self, is_global: bool) -> bool:
        """Exchange after an optimizer step. Return whether the exchange was a global average."""
        if self.phase is Phase.WARMING_UP:  # ranks need different times to compile a step
            self.group.sync("the first batch", timed=False)
            self._start.check_no_late_variables()
        self.phase = self.phase.after("batch")
        self.after_batch()  # a callback before GossipPGA may have stopped this rank
        self.run.symptoms.after_step(self.group.averager.health)
        was_global = self.session.run(self._exchange)
        return is_global if was_global is MISSED else was_global

    def _exchange(self) -> bool:
        """Gossip or average globally. Return whether the exchange was a global average."""
        run, group = self.run, self.group
        group.replica.diverge()
        if not run.schedule.is_global(run.step):
            # Derived from the step count, so that ranks agree even in a resumed run.
            round = run.schedule.round_after(run.step)
            if round is not None:
                with run.pace.gossiping():
                    group.gossip(run.step, round)
            return False
        doing = f"the global average of step {run.step}"
        own = Piggyback(
            stop=self.vote.is_requested,
            loss=self._loss.value if self._loss else 0.0,
            times=run.pace.times,
        )
        with run.pace.averaging():
            heard = group.average_globally(doing, own)
            if heard.is_stop:
                self.vote.agree()
                self.model.stop_training = True
            group.average_slots(doing)
            # After all messages: a rank that has completed this exchange has taken the outer step.
            group.averager.step_outer()
        if self._loss:
            self._loss.value = heard.observed.loss
        self._observe(heard.observed)
        return True

    def _observe(self, observed: Observed):
        """Let the schedule choose the next period, and explain its first choice on the chief."""
        schedule = self.run.schedule
        schedule.observe(self.run.step, observed)
        explanation = schedule.explanation()
        if explanation and self.session.cluster.is_chief:
            logger.info(explanation)

    # ---- Validation, and the ends ---------------------------------------------------------------

    def begin_test(self):
        """Switch to the averaged model for validation and for the callbacks that follow it."""
        self._check_whole_epoch()  # also here, because validation precedes the end of the epoch
        validation = f"the validation after step {self.run.step}"
        self.report(f"in {validation}")
        # After a loss, only some ranks may know that the replicas are equal.
        if not all(self.group.sync(validation, self.group.replica.is_equal)):
            self.session.run(lambda: self.group.lend_average(validation))
        super().begin_test()

    def end_epoch(self, epoch: int, logs: dict | None):
        """Replace Keras' logs with their means over ranks, and add this epoch's measurements."""
        self._check_whole_epoch()
        self.group.sync(f"the end of epoch {epoch + 1}", logs=logs)
        super().end_epoch(epoch, logs)

    def _distance_log(self, measured: int) -> dict[str, float]:
        new = self.run.distances[measured:]
        return {"consensus_distance": new[-1][1] if new else math.nan}

    def end(self):
        """End training with the same model on all ranks."""
        super().end()
        self._ending.average()

    def _check_whole_epoch(self):
        """Raise if this rank ends the epoch early, which would leave the others waiting for it."""
        if not self.vote.is_agreed:
            sync_point.check_whole_epoch(
                self.session.cluster.rank,
                self.epoch,
                self.batches,
                self.params["steps"],
                is_stopped=self.model.stop_training,
            )

    # ---- After all callbacks --------------------------------------------------------------------

    def after_batch(self):
        """Request that all ranks stop, if a callback has stopped this rank."""
        if self.model.stop_training and not self.vote.is_agreed:
            # If this rank stopped alone, the others would wait for it. All ranks stop at the next
            # global average.
            self.vote.request()
            self.model.stop_training = False

    def after_epoch(self, epoch: int):
        """Restore this rank's own model, and stop all ranks if one of them stops."""
        self._ending.follow_epoch(epoch + 1)

    def after_end(self):
        """Make the models of all ranks equal if callbacks changed them."""
        self._ending.check()
        self.session.end_sequence()

    # ---- Called by `Checkpoint` -----------------------------------------------------------------

    def request_stop(self):
        """Stop all ranks together, at the next global average or at the end of the epoch."""
        self.vote.request()

    def sync(self, where: str, value: Any = None) -> list:
        """Share a value at this point of training. Return all ranks' values, in rank order."""
        self.report(f"at {where}")
        return self.group.sync(where, value, timed=False)

    def average(self, doing: str) -> bool:
        """Average globally, regardless of the period. Return whether this rank took part."""
        super().average(doing)

        def settle():
            self.group.settle(doing)
            self.group.average_slots(doing)

        return self.session.run(settle) is not MISSED

    # ---- Joining workers ------------------------------------------------------------------------

    def _sync_with_joining(self, where: str, may_join: bool) -> dict[str, int]:
        """Sync with all ranks, and return the joining workers' ports by rank, a decimal string."""
        everyone = self.group.sync(where, self.session.joining() if may_join else {})
        return {rank: endpoint for each in everyone for rank, endpoint in each.items()}

    def _admit(self, joining: dict[str, int], epoch: int):
        """Average globally, then admit joining workers. All members must call this together."""
        session = self.session
        self.phase = self.phase.after("admission")
        doing = "the admission of a worker"
        own = [self.average(doing), session.view.number]
        if any(each != [True, session.view.number] for each in self.group.sync(doing, own)):
            return  # another worker was lost in the meantime, so all ranks sync again
        # Read the members only now, because one may have been lost during the average.
        source = session.view.members[0]

        def admit():
            with self.run.communicating(), self.run.recorder.span(recorder.JOINING):
                session.admit(joining, epoch, self._start.digest, self.run.snapshot)
                self._transfer_state(source, self.group.averager.rebuilt, is_new=False)

        session.attempt(admit)

    def _enter(self, epoch: int):
        """Become a member, and receive the other workers' state.

        Raises:
          ValueError: this worker begins a different epoch than the other workers.
          WorkerLost: another worker was lost in the meantime.
        """
        session, invitation = self.session, self.session.admission.accepted()
        if epoch != invitation.epoch:
            raise ValueError(
                f"Rank {session.cluster.rank} begins epoch {epoch + 1}, but the other workers "
                f"begin epoch {invitation.epoch + 1}. Pass "
                "initial_epoch=checkpoint.restore(model) to fit, and remove other callbacks that "
                "resume a run (BackupAndRestore)."
            )
        with self.run.recorder.span(recorder.JOINING):
            session.enter()
            self._ending.has_joined = True
            self._transfer_state(invitation.members[0], self._start.new_averager, is_new=True)
        self.phase = self.phase.after("admission")
        session.begin_sequence(self.group.loss_policy, invitation.completed)

    def _transfer_state(
        self, source: int, averager_for: Callable[[Topology], Averager], is_new: bool
    ):
        """Transfer the state of rank `source` to the new members.

        Args:
          source: the sending rank.
          averager_for: function that builds an averager for a topology.
          is_new: whether this rank is a new member.
        """
        with self.run.recorder.span(recorder.STATE_TRANSFER, self.group.others):
            self.group.use_view(averager_for)
            place = self.session.view.members.index(source)
            self.group.averager.transfer_state(place, is_new)
        self.group.replica.equalize()
