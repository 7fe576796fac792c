"""Measure the training loss that controls an adaptive period."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


class PeriodLoss:
    """Measure this rank's loss on the first batch after each global average.

    Attributes:
      value: the loss on the latest batch that followed a global average or the start of `fit`, or
        NaN if unknown. After a global average that the schedule requested, until the next batch, it
        is the mean of the ranks' losses instead.
    """

    def __init__(self):
        """Start with equal replicas and an unknown loss."""
        self.value = math.nan
        self._follows_average = True  # every fit begins with equal replicas
        self._before = (0.0, 0.0)  # result of `sums_of` before the batch

    def begin_epoch(self):
        """Record that Keras has reset the sums that `sums_of` returns."""
        self._before = (0.0, 0.0)

    def after_average(self):
        """Record a global average that the schedule did not request."""
        self._follows_average = True

    def needs(self, is_global: bool) -> bool:
        """Return whether to observe a batch. `is_global`: whether a global average follows it."""
        return self._follows_average or is_global

    def observe(self, sums: tuple[float, float] | None, logged: Any, is_global: bool):
        """Compute the loss on a batch for which `needs` returned True.

        Args:
          sums: the result of `sums_of` after the batch. It is None, or unchanged since the previous
            batch, if the model's `train_step` does not maintain these sums.
          logged: the loss in the batch's logs (a number or an array), or None if there is none.
            Used only if `sums` does not yield the loss.
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
    """Return the weighted sum of this epoch's losses, and the sum of the losses' weights.

    Both sums cover all devices of this worker. Their change during a batch gives the loss on that
    batch. Keras' logs do not contain this loss, but the mean since the beginning of the epoch.

    Returns:
      `(sum of losses, sum of weights)`, or None if the model has no `keras.metrics.Mean` named
      `"loss"`.
    """
    tracker = next((metric for metric in model.metrics if metric.name == "loss"), None)
    if not isinstance(tracker, keras.metrics.Mean):
        return None
    return float(tracker.total.numpy()), float(tracker.count.numpy())
