"""Track one `fit` call of a single worker: count steps, apply the schedule, write logs.

Each `fit` call creates a new `Fit`, so no state from an earlier call needs to be reset. `GroupFit`
extends `Fit` to several workers.
"""

from __future__ import annotations

import math
from typing import Any

import keras

from tf_gossip_pga.algorithm.schedule import Observed
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training import callback_facts, period_loss, recorder
from tf_gossip_pga.training.phase import Phase, StopVote
from tf_gossip_pga.training.run_state import RunState


class Fit:
    """One `fit` call of a single worker.

    Methods that only several workers need do nothing here. `GroupFit` overrides them.

    Args:
      model: the model that Keras trains.
      params: the `params` that Keras passes to callbacks: `"epochs"`, `"steps"`.
      run: the state that outlives this `fit`.
      session: runs the exchanges of this process (`exchange.session`).

    Attributes:
      model: the model that Keras trains.
      params: see the argument.
      run: see the argument.
      session: see the argument.
      phase: the phase of this fit.
      vote: whether training stops before the end of the epoch.
      epoch: the current epoch, counted from 1.
      batches: number of completed batches in this epoch.
      callbacks: descriptions of this rank's callbacks other than `GossipPGA`, from
        `callback_facts.facts`.
    """

    def __init__(self, model: keras.Model, params: dict, run: RunState, session: SoloSession):
        """Store the arguments without exchanging anything."""
        self.model = model
        self.params = params
        self.run = run
        self.session = session
        self.phase = Phase.STARTING
        self.vote = StopVote()
        self.epoch = 0
        self.batches = 0
        self.callbacks: list[callback_facts.Fact] | None = None
        self._loss = period_loss.PeriodLoss() if run.schedule.follows_loss else None
        # Number of distances, number of global steps, communication seconds.
        self._at_epoch_begin = (0, 0, 0.0)

    def begin(self, problem: str | None):
        """Begin training, or raise if this rank cannot train.

        Args:
          problem: why this rank cannot train, or None if it can.

        Raises:
          ValueError: this rank cannot train.
        """
        if problem:
            raise ValueError(problem)

    def begin_epoch(self, epoch: int):
        """Begin an epoch; `epoch` counts from 0."""
        self.batches = 0
        self.epoch = epoch + 1
        self._begin_step_count(epoch)
        self._gather_ranks(epoch)
        self._report_step()
        self.run.pace.pause()
        if self._loss:
            self._loss.begin_epoch()
        run = self.run
        self._at_epoch_begin = (len(run.distances), run.global_steps, run.communication_seconds)
        run.recorder.begin(recorder.COMPUTE)

    def end_batch(self, logs: dict | None):
        """Count an optimizer step, then gossip or average globally, depending on the schedule.

        A single worker counts the step, but exchanges nothing.

        Args:
          logs: Keras' logs of the batch, or None.
        """
        run = self.run
        run.pace.end_step()
        run.step += 1
        run.recorder.end(recorder.COMPUTE)
        self.batches += 1
        is_global = run.schedule.is_global(run.step)
        if self._loss and self._loss.needs(is_global):
            logged = (logs or {}).get("loss")
            self._loss.observe(period_loss.sums_of(self.model), logged, is_global)
        run.count(self._average(is_global))
        self._report_step()
        run.pace.begin_step()
        run.recorder.begin(recorder.COMPUTE)

    def begin_test(self):
        """Switch to the averaged model for validation and for the callbacks that follow it."""
        self.run.recorder.begin(recorder.VALIDATION)

    def end_test(self):
        """Record that validation inside `fit` has ended."""
        self.run.recorder.end(recorder.VALIDATION)
        self._report_step()

    def end_epoch(self, epoch: int, logs: dict | None):
        """Add this epoch's measurements to Keras' logs; `epoch` counts from 0."""
        if logs is None:
            return
        measured, global_steps, seconds = self._at_epoch_begin
        logs.update(self._distance_log(measured))
        logs["global_averages"] = self.run.global_steps - global_steps
        logs["communication_seconds"] = self.run.communication_seconds - seconds
        if self.run.schedule.state is not None:  # H changes
            logs["H"] = self.run.schedule.H

    def end(self):
        """End training with the same model on all ranks."""
        self.phase = self.phase.after("end")
        self.report("at the end of training")

    # ---- After all callbacks: see `callback_list.Follower` --------------------------------------

    def after_batch(self):
        """Request that all ranks stop, if a callback has stopped this rank."""

    def after_epoch(self, epoch: int):
        """Restore this rank's own model, and stop all ranks if one of them stops."""

    def after_end(self):
        """Make the models of all ranks equal if callbacks changed them."""

    # ---- Called by `Checkpoint` -----------------------------------------------------------------

    def request_stop(self):
        """Stop training after the current batch, because there is no other rank to wait for."""
        self.vote.agree()
        self.model.stop_training = True

    def sync(self, where: str, value: Any = None) -> list:
        """Share a value at this point of training. Return all ranks' values, in rank order."""
        return [value]

    def average(self, doing: str) -> bool:
        """Average globally, regardless of the period. Return whether this rank took part."""
        if self._loss:
            self._loss.after_average()
        return True

    # ---- Extended by `GroupFit` -----------------------------------------------------------------

    def _gather_ranks(self, epoch: int):
        """Sync with the other ranks at the beginning of an epoch."""
        self.phase = self.phase.after("epoch")

    def _average(self, is_global: bool) -> bool:
        """Exchange after an optimizer step. Return whether the exchange was a global average."""
        if is_global:
            loss = self._loss.value if self._loss else math.nan
            self.run.schedule.observe(self.run.step, Observed(loss=loss))
        return is_global

    def _distance_log(self, measured: int) -> dict[str, float]:
        """Return the consensus distance of this epoch as an entry for Keras' logs.

        Args:
          measured: number of distances recorded before this epoch.
        """
        return {"consensus_distance": 0.0}

    def _begin_step_count(self, epoch: int):
        # If a new process resumes a run without setting `GossipPGA.state`, run.step is 0.
        # Then derive the step count from the epoch.
        self.run.step = max(self.run.step, epoch * (self.params["steps"] or 0))

    # ---- Reports for workers that wait for this one ---------------------------------------------

    def report(self, where: str):
        """Record what this rank is doing, for messages of other ranks that wait for this one.

        Args:
          where: words that complete a sentence that begins with "It is".
        """
        self.session.at(where, self.run.step)

    def _report_step(self):
        """Record that this rank is computing the next step, or is at the end of the epoch."""
        if self.batches == self.params["steps"]:
            self.report(f"at the end of epoch {self.epoch}")
        else:
            self.report(f"computing step {self.run.step + 1}")
