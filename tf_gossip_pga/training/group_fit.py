"""Follow one `fit` of a worker among others: exchanges, sync points, joining workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.averager import Averager
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.exchange.session import MISSED
from tf_gossip_pga.training import sync_point
from tf_gossip_pga.training.ending import Ending
from tf_gossip_pga.training.fit import Fit
from tf_gossip_pga.training.group import Group
from tf_gossip_pga.training.phase import Phase
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.start import Start


class GroupFit(Fit):
    """One `fit` of a worker among others; arguments as of `Fit`.

    Attributes:
      group: the other ranks.
    """

    session: ElasticSession

    def __init__(self, model: keras.Model, params: dict, run: RunState, session: ElasticSession):
        super().__init__(model, params, run, session)
        self.group = Group(session, run, model, self.vote)
        self._start = Start(session, self.group, run, model, params)
        self._ending = Ending(session, self.group, model, params["epochs"])

    # ---- The start ------------------------------------------------------------------------------

    def begin(self, problem: str | None):
        """Agree with the other ranks on what to train, and start all from rank 0's state.

        Raises:
          ValueError: on every rank, if one cannot train, or the ranks do not fit together.
        """
        if self.session.is_joining:
            self.session.begin_sequence(None)
            self._start.join(problem, self.callbacks)
        else:
            self.session.begin_sequence(self.group.loss_policy)
            self.session.start(lambda: self._start.agree(problem, self.callbacks))

    # ---- Epochs and batches ---------------------------------------------------------------------

    def _gather_ranks(self, epoch: int):
        """Meet the other ranks where an epoch begins; take joining workers in, or be taken in."""
        if self.session.is_joining:
            self._enter(epoch)
        is_first = self.phase is Phase.STARTING
        self.phase = self.phase.after("epoch")
        where = sync_point.beginning_of(epoch)
        if is_first and epoch:
            self.session.start(lambda: self._start.broadcast_again(where))
        # All that complete this know that all have begun equal: from here on survivors average.
        while joining := self._sync_with_joining(where, may_join=not is_first):
            self._admit(joining, epoch)
        if is_first:
            self.run.symptoms.begin(self.group.averager.health)

    def _average(self, is_global: bool) -> bool:
        """Exchange after an optimizer step; return whether it was a global average."""
        if self.phase is Phase.WARMING_UP:  # absorbs the ranks' differences in compiling
            self.group.sync("the first batch", timed=False)
            self._start.check_no_late_variables()
        self.phase = self.phase.after("batch")
        self.after_batch()  # of callbacks that come before GossipPGA
        self.run.symptoms.after_step(self.group.averager.health)
        was_global = self.session.run(self._exchange)
        return is_global if was_global is MISSED else was_global

    def _exchange(self) -> bool:
        """Gossip or average globally; return whether globally."""
        run, group = self.run, self.group
        group.replica.diverge()
        if not run.schedule.is_global(run.step):
            group.gossip(run.step)
            return False
        doing = f"the global average of step {run.step}"
        loss = self._loss.value if self._loss else 0.0
        heard = group.average_globally(doing, self.vote.is_requested, loss)
        if heard.is_stop:
            self.vote.agree()
            self.model.stop_training = True
        group.average_slots(doing)
        if self._loss:
            self._loss.average(run.step, heard.loss)
        return True

    # ---- Validation, and the ends ---------------------------------------------------------------

    def begin_test(self):
        """Put the averaged model in place, for the validation and for what follows the epoch."""
        self._check_whole_epoch()  # validation comes before the end of the epoch
        validation = f"the validation after step {self.run.step}"
        self.report(f"in {validation}")
        # After a loss some ranks may know that the replicas are equal, and others not.
        if not all(self.group.sync(validation, self.group.replica.is_equal)):
            self.session.run(lambda: self.group.lend_average(validation))

    def end_epoch(self, epoch: int, logs: dict | None):
        """Write what this epoch has measured, means over ranks, into Keras' logs."""
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
        """Raise where this rank leaves an epoch early: the others would wait for it in vain."""
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
        """Let all ranks stop together where a callback has stopped this one."""
        if self.model.stop_training and not self.vote.is_agreed:
            # Alone this rank would leave the others waiting: all stop at the next global average.
            self.vote.request()
            self.model.stop_training = False

    def after_epoch(self, epoch: int):
        """Go on from this rank's own model, and with the same stop on all ranks."""
        self._ending.follow_epoch(epoch + 1)

    def after_end(self):
        """Make sure that no callback has left this rank with a model of its own."""
        self._ending.check()
        self.session.end_sequence()

    # ---- What `Checkpoint` needs ----------------------------------------------------------------

    def request_stop(self):
        """Stop all ranks together, at the next global average or at the end of the epoch."""
        self.vote.request()

    def sync(self, where: str, value: Any = None) -> list:
        """Return what all ranks pass at this point of training, in rank order."""
        self.report(f"at {where}")
        return self.group.sync(where, value, timed=False)

    def average(self, doing: str) -> bool:
        """Average globally, whatever the period says; return whether this rank took part."""
        super().average(doing)

        def settle():
            self.group.settle(doing)
            self.group.average_slots(doing)

        return self.session.run(settle) is not MISSED

    # ---- Joining workers ------------------------------------------------------------------------

    def _sync_with_joining(self, where: str, may_join: bool) -> dict[str, int]:
        """Sync, and return the endpoints of lost workers that wait to join, by rank."""
        everyone = self.group.sync(where, self.session.joining() if may_join else {})
        return {rank: endpoint for each in everyone for rank, endpoint in each.items()}

    def _admit(self, joining: dict[str, int], epoch: int):
        """Take workers in at a global average; the members do it in step."""
        session = self.session
        self.phase = self.phase.after("admission")
        doing = "the admission of a worker"
        own = [self.average(doing), session.view.number]
        if any(each != [True, session.view.number] for each in self.group.sync(doing, own)):
            return  # another worker was lost meanwhile; all sync once more
        source = session.view.members[0]  # now, since the average may have lost one

        def admit():
            with self.run.communicating():
                session.admit(joining, epoch, self._start.digest, self.run.snapshot)
                self._transfer_state(source, self.group.averager.rebuilt, is_new=False)

        session.attempt(admit)

    def _enter(self, epoch: int):
        """Become a member, with what the others have; a loss on the way is the end."""
        session, invitation = self.session, self.session.admission.accepted()
        if epoch != invitation.epoch:
            raise ValueError(
                f"Rank {session.cluster.rank} begins epoch {epoch + 1}, and the others epoch "
                f"{invitation.epoch + 1}. Pass initial_epoch=checkpoint.restore(model) to fit, and "
                "leave other callbacks that resume (BackupAndRestore) out."
            )
        session.enter()
        self._ending.has_joined = True
        self._transfer_state(invitation.members[0], self._start.new_averager, is_new=True)
        self.phase = self.phase.after("admission")
        session.begin_sequence(self.group.loss_policy, invitation.completed)

    def _transfer_state(
        self, source: int, averager_for: Callable[[Topology], Averager], is_new: bool
    ):
        """Give new members what rank `source` has."""
        self.group.use_view(averager_for)
        place = self.session.view.members.index(source)
        self.group.averager.transfer_state(place, is_new)
        self.group.replica.equalize()
