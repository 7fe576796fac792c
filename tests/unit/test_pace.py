"""How long a rank computes and exchanges, with a clock that the test sets."""

import math

import pytest

from tf_gossip_pga.training import pace


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def _period(run, clock, compute=1.0, gossip=0.25, average=4.0, steps=3):
    for _ in range(steps - 1):
        clock[0] += compute
        run.end_step()
        with run.gossiping():
            clock[0] += gossip
        run.begin_step()
    clock[0] += compute
    run.end_step()
    times = run.times
    with run.averaging():
        clock[0] += average
    run.begin_step()
    return times


def test_times_are_means_of_a_period(clock):
    run = pace.Pace()
    for average in (9.0, 9.0, 2.0):  # the first two compile functions
        assert _period(run, clock, average=average, compute=7.0) == pace.UNKNOWN or average == 2.0
    found = _period(run, clock, compute=1.5)
    assert found == pace.Times(compute_s=1.5, gossip_s=0.25, average_s=2.0)


def test_the_first_periods_with_an_averager_are_left_out(clock):
    run = pace.Pace()
    found = [_period(run, clock) for _ in range(4)]
    assert [each == pace.UNKNOWN for each in found] == [True, True, False, False]
    run.restart()
    found = [_period(run, clock) for _ in range(3)]
    assert [each == pace.UNKNOWN for each in found] == [True, True, False]


def test_a_computation_that_contains_something_else_is_left_out(clock):
    run = pace.Pace()
    for _ in range(3):
        _period(run, clock)
    clock[0] += 100.0  # a validation
    run.pause()
    assert _period(run, clock).compute_s == 1.0


def test_without_gossips_their_time_is_unknown(clock):
    run = pace.Pace()
    for _ in range(2):
        _period(run, clock)
    assert math.isnan(_period(run, clock, steps=1).gossip_s)


def test_nothing_is_known_of_an_exchange_that_failed(clock):
    run = pace.Pace()
    for _ in range(3):
        _period(run, clock)
    before = run.times
    with pytest.raises(OSError, match="lost"), run.averaging():
        raise OSError("lost")
    assert run.times.average_s == before.average_s == 4.0
