"""When to average globally, with steps counted from 1."""

import dataclasses
import re

import numpy as np
import pytest

from tf_gossip_pga import schedule


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (3, [3, 6, 9]),
        (6, [6]),
        (1, list(range(1, 11))),  # Parallel SGD
        (10, [10]),
        (11, []),  # longer than the run
        (None, []),  # Gossip SGD
    ],
)
def test_steps_of_a_run_of_ten(period, expected):
    fixed = schedule.resolve(period)
    assert [step for step in range(1, 11) if fixed.is_global(step)] == expected


def test_a_period_holds_far_into_the_run():
    fixed = schedule.resolve(6)
    assert fixed.is_global(6 * 10**12)
    assert not fixed.is_global(6 * 10**12 + 1)


def test_is_global_is_a_plain_bool():
    # It goes into logs and into `if`, also when H came from NumPy.
    for period in (2, None, np.int64(2)):
        assert type(schedule.resolve(period).is_global(2)) is bool


@pytest.mark.parametrize("period", [1, 6, None])
def test_resolve_keeps_the_period(period):
    assert schedule.resolve(period) == schedule.FixedPeriod(period)


@pytest.mark.parametrize("period", [np.int32(6), np.uint8(6), np.array(6)])
def test_resolve_makes_whole_numbers_plain(period):
    assert schedule.resolve(period) == schedule.FixedPeriod(6)
    assert type(schedule.resolve(period).H) is int


@pytest.mark.parametrize(
    "period", [0, -1, 2.5, 6.0, True, False, np.True_, "6", [6], np.array([6, 6]), float("inf")]
)
def test_resolve_refuses(period):
    message = "whole number of steps >= 1 (1: Parallel SGD), or None for no global average (Gossip"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        schedule.resolve(period)
    assert str(caught.value).endswith(f"received H={period!r}.")


def test_a_period_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.FixedPeriod(6).H = 7
