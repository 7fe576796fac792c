"""When to average globally, with steps counted from 1."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from tf_gossip_pga.algorithm import schedule


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
    message = (
        "steps >= 1 (1: Parallel SGD), None for no global average (Gossip SGD), an AdaptivePeriod "
        '(Gossip-AGA), or an AutoPeriod (in GossipPGA, "auto")'
    )
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        schedule.resolve(period)
    assert str(caught.value).endswith(f"received H={period!r}.")


def test_a_period_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.FixedPeriod(6).H = 7


# ---- Several steps from one gossip to the next --------------------------------------------------


def test_rounds_follow_one_another_over_gossips_not_steps():
    fixed = schedule.resolve(None, gossip_every=3)
    found = [fixed.round_after(step) for step in range(1, 10)]
    assert found == [None, None, 0, None, None, 1, None, None, 2]


def test_a_gossip_after_every_step_uses_the_rounds_step_by_step():
    assert [schedule.resolve(6).round_after(step) for step in (1, 2, 100)] == [0, 1, 99]


@pytest.mark.parametrize(
    ("H", "every", "expected"),
    [
        (6, 1, [1, 2, 3, 4, 6, 7]),
        (2, 1, [2, 4, 6]),
        (6, 3, [1, 2, 6, 7]),
        (5, 2, [1, 2, 5, 6, 7]),  # step 3 would end with step 5, a global average
        (None, 4, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_gossip_that_a_global_average_would_undo(H, every, expected):  # noqa: N803
    fixed = schedule.resolve(H, every)
    assert [step for step in range(1, 8) if fixed.ends_before_average(step)] == expected


@pytest.mark.parametrize(
    ("H", "every"),
    [(1, 1), (None, 1), (6, 5), (None, 500), (3, np.int64(2)), (schedule.AdaptivePeriod(), 9)],
)
def test_gossip_every_that_fits(H, every):  # noqa: N803
    found = schedule.resolve(H, every).gossip_every
    assert found == every
    assert type(found) is int


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", None, True])
def test_gossip_every_is_a_number_of_steps(every):
    with pytest.raises(ValueError, match=r"gossip_every must be .*received") as caught:
        schedule.resolve(6, every)
    assert repr(every) in str(caught.value)


@pytest.mark.parametrize(("H", "every"), [(6, 6), (6, 7), (2, 2), (1, 2)])
def test_gossips_that_never_take_place_are_refused(H, every):  # noqa: N803
    with pytest.raises(ValueError, match=rf"less than H={H}, received {every}.*disconnected"):
        schedule.resolve(H, every)


# ---- Gossip-AGA ---------------------------------------------------------------------------------


def _course(losses, steps, **settings):
    """`[(step of a global average, period after it), …]` with `losses[step]`."""
    run = schedule.AdaptivePeriod(**settings).start()
    course = []
    for step in range(1, steps + 1):
        if run.is_global(step):
            run.observe(step, schedule.Observed(losses(step)))
            course.append((step, run.H))
    return course


def test_the_period_stays_while_warming_up_and_then_follows_the_loss():
    # Remembered: 8 at step 4, (8 + 4) / 2 = 6 at step 8. Then 4 * 6 / 3 = 8, and 4 * 6 / 1 = 24.
    losses = {4: 8.0, 8: 4.0, 12: 3.0, 20: 1.0, 44: 6.5}
    course = _course(losses.get, 47, initial=4, warmup_steps=8)
    # At 44 the loss is above the remembered one: ceil(4 * 6 / 6.5 = 3.7) = 4.
    assert course == [(4, 4), (8, 4), (12, 8), (20, 24), (44, 4)]


def test_a_rising_loss_shortens_the_period_down_to_one():
    losses = {4: 1.0, 8: 2.0, 10: 100.0, 11: 1.0}
    # ceil(4 * 1 / 2) = 2, then ceil(4 / 100) = 1, and back to 4.
    assert _course(losses.get, 11, initial=4, warmup_steps=4) == [(4, 4), (8, 2), (10, 1), (11, 4)]


@pytest.mark.parametrize(
    ("exponent", "period"),
    [(1.0, 64), (0.25, 8), (0.5, 16), (0, 4), (3000.5, 1000)],  # the loss falls to a 16th
)
def test_the_exponent_tames_it(exponent, period):
    settings = {"warmup_steps": 4, "exponent": exponent, "maximum": 1000}
    assert _course({4: 16.0, 8: 1.0}.get, 8, **settings)[-1] == (8, period)


def test_the_period_rounds_up_and_ends_at_its_maximum():
    assert _course({4: 1.0, 8: 0.99}.get, 8, warmup_steps=4)[-1] == (8, 5)
    assert _course({4: 1.0, 8: 1e-300}.get, 8, warmup_steps=4)[-1] == (8, 64)
    assert _course({4: 1.0, 8: 0.0}.get, 8, warmup_steps=4, maximum=20)[-1] == (8, 20)


def test_without_warm_up_the_first_loss_is_the_one_to_compare_with():
    assert _course({4: 3.0, 8: 1.0}.get, 8, warmup_steps=0) == [(4, 4), (8, 12)]


def test_a_loss_of_zero_while_warming_up_is_not_remembered():
    assert _course({4: 0.0, 8: 3.0, 12: 1.5}.get, 12, warmup_steps=4)[-1] == (12, 8)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, -1.0])
def test_a_loss_that_says_nothing_falls_back_to_the_initial_period_and_warns_once(loss):
    run = schedule.AdaptivePeriod(initial=4, warmup_steps=4).start()
    run.observe(4, schedule.Observed(8.0))
    run.observe(8, schedule.Observed(1.0))
    assert run.H == 32
    with pytest.warns(UserWarning, match=f"loss at step 40 is {loss}.* every 4 steps") as caught:
        run.observe(40, schedule.Observed(loss))
        run.observe(44, schedule.Observed(loss))
    assert len(caught) == 1
    assert run.H == 4
    run.observe(48, schedule.Observed(2.0))
    assert run.H == 16


def test_a_run_continues_from_its_state():
    losses = {4: 8.0, 8: 4.0, 12: 3.0, 20: 2.0, 32: 1.0}
    settings = schedule.AdaptivePeriod(initial=4, warmup_steps=8)
    for stop in range(1, 40):
        run = settings.start()
        course = []
        for step in range(1, 41):
            if run.is_global(step):
                run.observe(step, schedule.Observed(losses.get(step, 1.5)))
                course.append((step, run.H))
            if step == stop:
                before, run = run, settings.start()
                run.restore(json.loads(json.dumps(before.state)))
                assert str(run) == str(before)
        assert course == _course(lambda step: losses.get(step, 1.5), 40, warmup_steps=8)


def test_runs_of_one_setting_are_apart():
    settings = schedule.AdaptivePeriod(warmup_steps=0)
    first, second = schedule.resolve(settings), schedule.resolve(settings)
    first.observe(4, schedule.Observed(1.0))
    first.observe(8, schedule.Observed(0.5))
    assert (first.H, second.H) == (8, 4)
    assert str(first) != str(second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"initial": 0},
            "initial of AdaptivePeriod must be a whole number of steps >= 1, received 0",
        ),
        ({"initial": 2.5}, "received 2.5"),
        (
            {"warmup_steps": -1},
            "warmup_steps of AdaptivePeriod must be a whole number of steps >= 0",
        ),
        ({"maximum": 3}, "maximum of AdaptivePeriod must be at least initial=4, received 3"),
        ({"maximum": None}, "maximum of AdaptivePeriod must be a whole number"),
        ({"exponent": -0.5}, "exponent of AdaptivePeriod must be a number >= 0, received -0.5"),
        ({"exponent": math.nan}, "received nan"),
        ({"exponent": "1"}, "received '1'"),
        ({"exponent": True}, "received True"),
    ],
)
def test_an_adaptive_period_refuses(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule.AdaptivePeriod(**settings)
