"""The membership protocol under random faults, and whether the simulation would notice if it broke.

`python tests/protocol.py` runs more schedules.
"""

import collections
import itertools

import pytest

from tests.support import protocol_simulation as simulation
from tests.support.protocol_schedules import Fault, Schedule, from_seed, shortened
from tf_gossip_pga.coordination import decide
from tf_gossip_pga.coordination.contacts import Contacts
from tf_gossip_pga.coordination.view import Standing, View


def _schedule(
    size: int, *faults: Fault, exchanges: int = 8, min_workers: int = 1, fits: int = 1
) -> Schedule:
    return Schedule(1, size, exchanges, min_workers, faults, fits)


def _ran(schedule: Schedule) -> simulation.World:
    world = simulation.World(schedule)
    world.simulate()
    return world


def _outcomes(world: simulation.World) -> list[str | None]:
    return [worker.outcome for worker in world.workers]


@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_the_invariants_hold_under_two_thousand_schedules(first):
    seeds = range(first, first + 500)
    found = {seed: simulation.simulate(from_seed(seed)) for seed in seeds}
    violations = {seed: each for seed, each in found.items() if each is not None}
    for seed, violation in list(violations.items())[:1]:
        shorter = shortened(from_seed(seed), lambda each: simulation.simulate(each) is not None)
        pytest.fail(f"{len(violations)} violations, as {violation}\n{shorter}")


def test_the_schedules_reach_what_they_are_for():
    reached = collections.Counter()
    for seed in range(200):  # any seeds that reach all of these
        world = _ran(from_seed(seed))
        views = [members for _, members in sorted(world._views.items())]
        reached["a loss"] += len(views) > 1
        reached["a loss in a later fit"] += max(world.fits_of_losses, default=0) > 1
        reached["a loss in the start of a fit"] += 0 in world.completed_at_losses
        reached["several views"] += len(views) > 2
        reached["a join"] += any(len(b) > len(a) for a, b in itertools.pairwise(views))
        outcomes = " ".join(map(str, _outcomes(world)))
        for end in (
            "continued without it",
            "cannot regroup with",
            "knows only that",
            "min_workers",
            "was not admitted",
        ):
            reached[end] += end in outcomes
    assert all(reached[each] >= 1 for each in reached), reached


def test_a_run_can_be_repeated():
    schedule = next(s for s in map(from_seed, range(100)) if len(s.faults) > 3)
    worlds = [_ran(schedule) for _ in range(2)]
    assert worlds[0].now == worlds[1].now
    assert _outcomes(worlds[0]) == _outcomes(worlds[1])
    assert "until" in str(schedule) and f"seed {schedule.seed}" in str(schedule)


def test_survivors_continue_without_a_dead_worker():
    world = _ran(_schedule(4, Fault(10.0, "crash", (0,))))
    assert _outcomes(world) == ["crashed", "finished", "finished", "finished"]
    assert world._views[1] == (1, 2, 3)


def test_a_restarted_worker_is_taken_in():
    world = _ran(_schedule(3, Fault(5.0, "crash", (2,), until=10.0), exchanges=30))
    assert _outcomes(world) == ["finished", "finished", "crashed", "finished"]
    assert [world._views[number] for number in (0, 1, 2)] == [(0, 1, 2), (0, 1), (0, 1, 2)]


@pytest.mark.parametrize("kind", ["one_way", "two_way"])
def test_the_larger_side_of_a_cut_continues_and_the_smaller_one_ends(kind):
    world = _ran(_schedule(5, Fault(10.0, kind, (0, 1), (2, 3, 4)), exchanges=20))
    assert [outcome == "finished" for outcome in _outcomes(world)] == [False] * 2 + [True] * 3
    assert "cannot regroup with" in world.workers[0].outcome


def test_of_two_that_do_not_reach_each_other_only_the_higher_ends():
    world = _ran(_schedule(6, Fault(5.0, "one_way", (3,), (1,)), exchanges=20))
    ended = [worker.rank for worker in world.workers if worker.outcome != "finished"]
    assert ended == [3]
    assert "has continued without it" in world.workers[3].outcome


def test_a_worker_that_wakes_late_ends_with_an_error():
    world = _ran(_schedule(3, Fault(5.0, "stop", (1,), until=120.0), exchanges=40))
    assert "has continued without it" in world.workers[1].outcome
    assert [world.workers[rank].outcome for rank in (0, 2)] == ["finished", "finished"]


# Rank 0 is away for long, the others exclude it and continue. When it is back,
AWAY = {
    "stopped, and the others have ended": [Fault(5.0, "stop", (0,), until=900.0)],
    "stopped, and the others have died": [
        Fault(5.0, "stop", (0,), until=400.0),
        Fault(200.0, "crash", (2,)),
        Fault(201.0, "crash", (1,)),
    ],
    "stopped, one has died, and one is cut off": [
        Fault(5.0, "stop", (0,), until=400.0),
        Fault(390.0, "crash", (1,)),
        Fault(390.5, "two_way", (2,), (0,)),
    ],
    "cut off, and the others have ended": [Fault(5.0, "two_way", (0,), (1, 2), until=900.0)],
    "busy, and the others have ended": [Fault(5.0, "busy", (0,), until=900.0)],
    "busy, and the others have died": [
        Fault(5.0, "busy", (0,), until=420.0),
        Fault(400.0, "crash", (1,)),
        Fault(400.5, "crash", (2,)),
    ],
}


@pytest.mark.parametrize("how", AWAY)
def test_a_worker_that_was_away_continues_with_nobody(how):
    exchanges = 40 if "ended" in how else 200
    world = _ran(_schedule(3, *AWAY[how], exchanges=exchanges))
    assert world.workers[0].outcome not in (None, "finished", "crashed")
    assert world._views[1] == (1, 2)


@pytest.mark.parametrize("how", [how for how in AWAY if how.startswith("stopped")])
def test_without_contacts_a_worker_that_was_away_would_continue_alone(how, monkeypatch):
    _without_contacts(monkeypatch)
    found = simulation.simulate(_schedule(3, *AWAY[how], exchanges=40 if "ended" in how else 200))
    assert found is not None and found.invariant in "abc"


def _alone_a_moment(at: float) -> simulation.Violation | None:
    """Rank 0 has not waited longer for rank 1, which is busy, and dies right after."""
    busy = Fault(12.0, "busy", (1,), until=420.0)
    return simulation.simulate(_schedule(2, busy, Fault(at, "crash", (0,)), exchanges=200))


def test_who_has_not_come_for_long_knows_that_it_may_be_excluded(monkeypatch):
    moments = [326.0 + 0.5 * step for step in range(8)]
    assert not any(map(_alone_a_moment, moments))
    _without_lateness(monkeypatch)
    assert {each.invariant for each in map(_alone_a_moment, moments) if each} == {"a"}


@pytest.mark.parametrize("rank", [0, 1])
def test_who_loses_the_other_while_both_compute_for_long_continues(rank):
    busy = [Fault(20.0, "busy", (each,), until=150.0) for each in (0, 1)]
    world = _ran(_schedule(2, *busy, Fault(100.0, "crash", (1 - rank,))))
    assert world.workers[rank].outcome == "finished"


@pytest.mark.parametrize("size", [3, 4, 5])
def test_one_pair_that_is_cut_costs_one_worker_and_one_view(size):
    cut = Fault(10.0, "two_way", (1,), (size - 1,))
    world = _ran(_schedule(size, cut, exchanges=20))
    ended = [outcome == "finished" for outcome in _outcomes(world)]
    assert ended == [True] * (size - 1) + [False]
    assert len(world._views) == 2


@pytest.mark.parametrize("at", [28.0, 30.0, 32.0, 34.0, 36.0, 38.0])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_worker_that_dies_between_two_fits_is_lost_to_the_next_one(rank, at):
    world = _ran(_schedule(3, Fault(at, "crash", (rank,)), exchanges=4, fits=4))
    assert [worker.outcome for worker in world.workers if worker.rank != rank] == ["finished"] * 2
    assert {worker.fit for worker in world.workers if worker.rank != rank} == {4}


def _without_majority(monkeypatch):
    why_not = decide._why_not
    monkeypatch.setattr(
        decide, "_why_not", lambda each, willing, _, answers: why_not(each, willing, set(), answers)
    )


def _without_barrier(monkeypatch):
    monkeypatch.setattr(decide, "begun_by", _most_of_these)


def _without_patience(monkeypatch):
    monkeypatch.setattr(decide, "_undecided", lambda *_: set())


def _without_contacts(monkeypatch):
    monkeypatch.setattr(Contacts, "age_s", lambda *_: 0.0)


def _without_lateness(monkeypatch):
    monkeypatch.setattr(Contacts, "record_wanted", lambda *_: None)


def _without_exclusion(monkeypatch):
    monkeypatch.setattr(decide, "excluding", lambda *_: None)


def _most_of_these(rank, own, answers):
    known = (each.completed for each in answers.values() if isinstance(each, Standing))
    return max([own.completed, *known])


@pytest.mark.parametrize(
    ("mutate", "invariants"),
    [
        (_without_majority, "ab"),
        (_without_barrier, "af"),
        (_without_patience, "abf"),
        (_without_exclusion, "ae"),
        (_without_contacts, "abc"),
    ],
)
def test_a_protocol_without_one_of_its_rules_is_found_out(monkeypatch, mutate, invariants):
    mutate(monkeypatch)
    found = (simulation.simulate(from_seed(seed)) for seed in range(500))
    violation = next((each for each in found if each is not None), None)
    assert violation and violation.invariant in invariants


def test_a_failing_schedule_is_shortened(monkeypatch):
    _without_majority(monkeypatch)
    cut = Fault(10.0, "two_way", (0,), (1, 2))
    schedule = _schedule(3, Fault(1.0, "loss", until=3.0), cut, Fault(500.0, "crash", (2,)))
    shorter = shortened(schedule, lambda each: simulation.simulate(each) is not None)
    assert shorter.faults == (cut,)
    assert shorter.exchanges <= schedule.exchanges


def test_members_begin_the_view_that_they_agree_on():
    world = _ran(_schedule(2, Fault(10.0, "crash", (1,))))
    assert world.workers[0].protocol.view == View(1, (0,))
