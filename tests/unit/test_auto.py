"""H="auto": which rung of the ladder measured times and distances choose."""

import dataclasses
import itertools
import json
import math

import pytest

from tf_gossip_pga.algorithm.auto import _RETRY_AFTER, REFERENCE, RUNGS, AutoPeriod
from tf_gossip_pga.algorithm.schedule import Observed
from tf_gossip_pga.training.settings import Settings

# In ms: a gossip takes as long as the computation of a step, a global average twice as long.
SLOW = Observed(compute_s=0.1, gossip_s=0.1, average_s=0.2, distance=1e-3)
FAST = Observed(compute_s=0.1, gossip_s=1e-4, average_s=2e-4, distance=1e-3)


def _follow(run, periods, observe=lambda setting: SLOW) -> list[tuple[int, int]]:
    """The setting `(H, gossip_every)` of each period, as global averages follow one another."""
    step, before, seen = 0, (6, 1), []
    for _ in range(periods):
        setting = (run.H, run.gossip_every)
        seen.append(setting)
        step += run.H
        assert run.is_global(step) and not run.is_global(step - 1)
        run.observe(step, observe(before))  # the distance is that of the period before
        before = setting
    return seen


def test_each_rung_exchanges_more_rarely_than_the_one_below():
    assert RUNGS[REFERENCE] == (6, 1)
    for (H, every), (longer, rarer) in itertools.pairwise(RUNGS):  # noqa: N806
        assert (longer, rarer) > (H, every)
        assert every == 1 or every < H


def test_slow_exchanges_raise_the_choice_step_by_step():
    found = _follow(AutoPeriod().start(), 40)
    assert found[:5] == [(6, 1)] * 5  # the warm-up
    # A rung lasts until its distance is known. Every fifth period is on the reference.
    assert found[5:13] == [(12, 1)] * 2 + [(12, 2)] * 2 + [(24, 2), (6, 1), (24, 4), (24, 4)]
    # With (24, 4) five gossips and an average take 0.7 s of 3.1, with (48, 4) 1.3 of 6.1 s, and
    # with (48, 8) 0.7 of 5.5 s: the first of all with at most a fifth.
    assert found[-5:].count((48, 8)) == 4
    assert max(found) == (48, 8)


def test_fast_exchanges_lower_h_to_one():
    found = _follow(AutoPeriod().start(), 12, lambda setting: FAST)
    assert found[5:9] == [(4, 1), (3, 1), (2, 1), (1, 1)]
    assert set(found[9:]) == {(1, 1)}


def test_a_period_of_six_steps_comes_back_regularly():
    found = _follow(AutoPeriod().start(), 50)
    returns = [index for index, each in enumerate(found) if index >= 5 and each == (6, 1)]
    assert returns == [*range(10, 50, 5)]


def test_replicas_that_drift_apart_hold_the_choice_back():
    def distance(setting):
        return dataclasses.replace(SLOW, distance=1e-3 * (1.3 if setting[0] > 12 else 1.0))

    found = _follow(AutoPeriod(drift=1.2).start(), 5 + 3 * _RETRY_AFTER, distance)
    beyond = [index for index, each in enumerate(found) if each[0] > 12]
    assert 0 < len(beyond) < len(found) / 5
    assert found.count((12, 2)) > len(found) / 2
    gaps = [later - index for index, later in itertools.pairwise(beyond)]
    assert max(gaps) >= _RETRY_AFTER - 3


def test_only_distances_above_the_reference_hold_it_back():
    # Where the distance of all periods grows, as at the start of training, nothing drifts.
    distances = (1e-3 * 1.1**k for k in range(100))
    found = _follow(
        AutoPeriod().start(), 20, lambda _: dataclasses.replace(SLOW, distance=next(distances))
    )
    assert max(found) >= (12, 2)


@pytest.mark.parametrize("distance", [math.nan, 0.0, math.inf])
def test_h_does_not_grow_where_the_distance_is_unknown(distance):
    unknown = dataclasses.replace(SLOW, distance=distance)
    assert set(_follow(AutoPeriod().start(), 30, lambda _: unknown)) == {(6, 1)}


def test_h_does_not_grow_beyond_a_rung_whose_distance_is_unknown():
    # As if a checkpoint were saved in every period of more than 12 steps.
    def observe(setting):
        return SLOW if setting[0] <= 12 else dataclasses.replace(SLOW, distance=math.nan)

    assert max(_follow(AutoPeriod().start(), 40, observe)) == (24, 2)


def test_without_times_h_stays():
    # A single worker exchanges nothing.
    assert set(_follow(AutoPeriod().start(), 20, lambda _: Observed())) == {(6, 1)}


def test_local_steps_alone_need_no_time_of_a_gossip():
    times = dataclasses.replace(SLOW, gossip_s=math.nan)
    found = _follow(AutoPeriod().start(), 30, lambda _: times)
    # One average in 12 steps: 0.2 of 1.4 s.
    assert max(found) == (12, 1)


def test_the_first_choice_is_explained_once():
    run = AutoPeriod().start()
    said, step = [], 0
    for _ in range(12):
        step += run.H
        run.observe(step, SLOW)
        said.append(run.explanation())
    (text,) = filter(None, said)
    assert said.index(text) == 4
    # Five gossips and an average take 0.7 s of 1.3; with (48, 8), 0.7 of 5.5.
    assert "a gossip 100 ms" in text
    assert "exchanges take 54% of the time; with H=48 and gossip_every=8, 13%" in text
    assert "1.2 times that with H=6" in text


def test_a_state_that_was_saved_continues_the_run():
    def distance(setting):
        return dataclasses.replace(SLOW, distance=1e-3 * (1.5 if setting[0] > 12 else 1.0))

    whole = AutoPeriod().start()
    _follow(whole, 17, distance)
    saved = json.loads(json.dumps(whole.state))
    resumed = AutoPeriod().start()
    resumed.restore(saved)
    for _ in range(40):
        assert (resumed.H, resumed.gossip_every) == (whole.H, whole.gossip_every)
        step = whole.state["last"] + whole.H
        for run in (whole, resumed):
            run.observe(step, distance((run.H, run.gossip_every)))
    assert resumed.state == whole.state


@pytest.mark.parametrize(
    "change",
    [
        {"rung": 12},
        {"choice": -1},
        {"last": None},
        {"before": "4"},
        {"reference": "x"},
        {"reference": -1.0},
        {"times": 3},
        {"times": {"compute_s": math.nan}},
        {"times": {"average_s": -1}},
    ],
)
def test_a_state_that_is_none_is_refused(change):
    run = AutoPeriod().start()
    with pytest.raises((KeyError, TypeError, ValueError)):
        run.restore({**run.state, **change})
    for name in run.state:
        with pytest.raises((KeyError, TypeError, ValueError)):
            run.restore({each: value for each, value in run.state.items() if each != name})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, r"share of AutoPeriod must be a number > 0 and < 1, received 0\."),
        ({"share": 1}, r"received 1\."),
        ({"share": "0.2"}, r"received '0\.2'\."),
        ({"drift": 0.9}, r"drift of AutoPeriod must be a number >= 1, received 0\.9\."),
        ({"drift": math.nan}, r"received nan\."),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoPeriod(**settings)


def test_auto_is_the_period_with_its_defaults():
    given = {"topology": "ring", "optimizer_state": "local", "overlap": False, "local": ()}
    given |= {"wire_dtype": "float32", "timeout_s": 9.0, "on_worker_lost": "raise"}
    given |= {"outer_optimizer": None}
    settings = Settings(**given, H="auto", gossip_every=1, min_workers=1, size=2)
    assert AutoPeriod() == settings.H
    with pytest.raises(ValueError, match=r'H="auto" also chooses gossip_every; .*=2'):
        Settings(**given, H="auto", gossip_every=2, min_workers=1, size=2)
