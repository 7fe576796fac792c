"""Measure the training loss that an adaptive period follows."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from tf_gossip_pga.algorithm.schedule import AdaptiveSchedule


class PeriodLoss:
    """Measure this rank's loss of the first batch after each global average.

    Args:
      schedule: the adaptive period that follows the loss.

    Attributes:
      value: the loss of that batch; NaN if it is unknown.
    """

    def __init__(self, schedule: AdaptiveSchedule):
        """Start with equal replicas and an unknown loss."""
        self.value = math.nan
        self._schedule = schedule
        self._follows_average = True  # a fit begins with equal replicas
        self._before = (0.0, 0.0)  # Keras' sum of losses and its weight before a batch

    def begin_epoch(self):
        """Record that Keras resets its sums."""
        self._before = (0.0, 0.0)

    def after_average(self):
        """Record a global average that the schedule did not decide."""
        self._follows_average = True

    def needs(self, is_global: bool) -> bool:
        """Return whether to observe a batch; `is_global` tells if a global average follows it."""
        return self._follows_average or is_global

    def average(self, step: int, loss: float):
        """Choose the next period from the mean loss over ranks at a global average.

        Args:
          step: number of completed steps.
          loss: the mean over ranks of `value`.
        """
        self.value = loss
        self._schedule.observe(step, loss)

    def observe(self, sums: tuple[float, float] | None, logged: Any, is_global: bool):
        """Derive the loss of a batch for which `needs` is true.

        Args:
          sums: the result of `sums_of` after the batch. None, or unchanged since the batch before,
            if the model's `train_step` does not keep these sums.
          logged: the loss in the batch's logs, a number or an array, which is then used instead;
            None if there is none.
          is_global: whether a global average follows this batch.
        """
        loss = math.nan if logged is None else float(np.mean(logged))
        if sums is not None:
            total, count = (now - then for now, then in zip(sums, self._before, strict=True))
            self._before = sums
            loss = total / count if count else loss
        if self._follows_average:
            self.value = loss
        self._follows_average = is_global


def sums_of(model: keras.Model) -> tuple[float, float] | None:
    """Return the sum of this epoch's losses and its weight, over all devices of this worker.

    Keras' logs hold the mean since the beginning of the epoch, not the loss of a batch.

    Returns:
      `(sum, weight)`; None if the model's `train_step` keeps no such metric.
    """
    tracker = next((metric for metric in model.metrics if metric.name == "loss"), None)
    if not isinstance(tracker, keras.metrics.Mean):
        return None
    return float(tracker.total.numpy()), float(tracker.count.numpy())
