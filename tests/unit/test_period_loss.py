"""The loss that an adaptive period follows: that of the first batch after a global average."""

import math

import numpy as np
import pytest

from tf_gossip_pga.training.period_loss import PeriodLoss

# Losses 4, 2, 1, 3 of batches of 8 samples; Keras' running sums of loss * weight and of weight.
SUMS = [(32.0, 8.0), (48.0, 16.0), (56.0, 24.0), (80.0, 32.0)]


def _follow(loss: PeriodLoss, batches) -> list[float]:
    """The value after each batch `(sums, logged, is_global)` that needs to be observed."""
    seen = []
    for sums, logged, is_global in batches:
        if loss.needs(is_global):
            loss.observe(sums, logged, is_global)
        seen.append(loss.value)
    return seen


def test_the_first_batch_after_an_average_counts():
    # Period 2: averages after the second and the fourth batch; the first and the third count.
    batches = [(sums, math.nan, k % 2 == 1) for k, sums in enumerate(SUMS)]
    assert _follow(PeriodLoss(), batches) == [4.0, 4.0, 1.0, 1.0]


def test_sums_begin_again_with_each_epoch():
    loss = PeriodLoss()
    assert _follow(loss, [(SUMS[0], math.nan, True)]) == [4.0]
    loss.begin_epoch()
    assert _follow(loss, [((40.0, 8.0), math.nan, False)]) == [5.0]


def test_batches_between_are_not_looked_at():
    loss = PeriodLoss()
    loss.observe(SUMS[0], math.nan, is_global=False)
    assert [loss.needs(False), loss.needs(True)] == [False, True]
    loss.after_average()  # a checkpoint has averaged, apart from the schedule
    assert loss.needs(False)


@pytest.mark.parametrize("sums", [None, (0.0, 0.0)])  # no metric, or one that nobody updates
@pytest.mark.parametrize("logged", [0.5, math.nan, None])
def test_without_sums_the_logged_loss_counts(logged, sums):
    loss = PeriodLoss()
    loss.observe(sums, logged, is_global=False)
    assert loss.value == pytest.approx(math.nan if logged is None else logged, nan_ok=True)


def test_a_loss_for_each_example_counts_with_its_mean():
    loss = PeriodLoss()
    loss.observe(None, np.array([1.0, 3.0]), is_global=False)
    assert loss.value == 2.0
