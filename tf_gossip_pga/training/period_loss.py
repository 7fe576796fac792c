"""Follow the training loss for an adaptive period."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from tf_gossip_pga.algorithm.schedule import AdaptiveSchedule


class PeriodLoss:
    """This rank's loss of the first batch after each global average.

    Args:
      schedule: the adaptive period that follows the loss.

    Attributes:
      value: that loss; NaN where it is not known.
    """

    def __init__(self, schedule: AdaptiveSchedule):
        self.value = math.nan
        self._schedule = schedule
        self._follows_average = True  # a fit begins with equal replicas
        self._before = (0.0, 0.0)  # Keras' sum of losses and its weight, where a batch began

    def begin_epoch(self):
        """Note that Keras' sums begin again."""
        self._before = (0.0, 0.0)

    def after_average(self):
        """Note that the replicas have just been averaged apart from the schedule."""
        self._follows_average = True

    def needs(self, is_global: bool) -> bool:
        """Return whether a batch must be observed; `is_global`: a global average follows it."""
        return self._follows_average or is_global

    def average(self, step: int, loss: float):
        """Take the loss averaged over ranks at a global average; choose the next period."""
        self.value = loss
        self._schedule.observe(step, loss)

    def observe(self, sums: tuple[float, float] | None, logged: Any, is_global: bool):
        """Take what is known of the loss after a batch for which `needs` is true.

        Args:
          sums: Keras' sum of losses since the beginning of the epoch and its weight; None, or as
            before, for a `train_step` that does not keep them.
          logged: the loss in the batch's logs, a number or an array, used in that case; None if
            there is none.
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
    """Return the sum of losses of this epoch and its weight, over all devices of this worker.

    Keras' logs hold the mean since the beginning of the epoch, not the loss of a batch. None for a
    model whose `train_step` keeps no such metric.
    """
    tracker = next((metric for metric in model.metrics if metric.name == "loss"), None)
    if not isinstance(tracker, keras.metrics.Mean):
        return None
    return float(tracker.total.numpy()), float(tracker.count.numpy())
