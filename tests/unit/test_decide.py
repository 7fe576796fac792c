"""The decisions of a worker that wants a view, as tables: no clock, no channel."""

import dataclasses

import pytest

from tf_gossip_pga.coordination.decide import (
    Adopt,
    Attempt,
    Fail,
    Finish,
    Lead,
    Memory,
    Wait,
    all_want,
    begun_by,
    decide,
    excluding,
)
from tf_gossip_pga.coordination.messages import parse_answer
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing, View

DEAD, SUSPECTED = Absence.DEAD, Absence.SUSPECTED
WILLING = Standing(view=0, wants=1, completed=7)
BUSY = Standing(view=0, wants=0, completed=7)
LEFT = dataclasses.replace(BUSY, in_fit=False)
FINISHED = dataclasses.replace(LEFT, has_finished=True)
NOW = 100.0
RECENTLY, LONG_AGO = NOW - 5.0, NOW - 15.1


def _attempt(rank=0, size=4, **arguments) -> Attempt:
    defaults = {"number": 1, "min_workers": 1, "deadline": NOW + 60.0, "silent_s": 15.0}
    return Attempt(rank, View(0, tuple(range(size))), **{**defaults, **arguments})


def _decide(answers, rank=0, since=RECENTLY, **arguments):
    attempt = _attempt(rank, **arguments)
    silent = {other: since for other, each in answers.items() if each is SUSPECTED}
    return decide(attempt, answers, Memory(silent), NOW)


def _deciding(*members) -> Standing:
    return dataclasses.replace(WILLING, members=members)


@pytest.mark.parametrize(
    ("answers", "decision"),
    [
        ({1: WILLING, 2: WILLING, 3: WILLING}, Lead((0, 1, 2, 3))),
        ({1: WILLING, 2: DEAD, 3: WILLING}, Lead((0, 1, 3))),
        ({1: DEAD, 2: DEAD, 3: DEAD}, Lead((0,))),
        ({1: WILLING, 2: LEFT, 3: WILLING}, Lead((0, 1, 3))),
        ({1: WILLING, 2: FINISHED, 3: WILLING}, Finish()),
        ({1: WILLING, 2: BUSY, 3: WILLING}, Wait(frozenset({2}))),
        ({1: WILLING, 2: SUSPECTED, 3: BUSY}, Wait(frozenset({2, 3}))),
        # One that wants a later view is not at this one.
        ({1: dataclasses.replace(WILLING, wants=2), 2: DEAD, 3: DEAD}, Wait(frozenset({1}))),
        # Whoever is no member of the present view, as a joining worker, is not waited for.
        ({1: WILLING, 2: WILLING, 3: WILLING, 7: SUSPECTED}, Lead((0, 1, 2, 3))),
    ],
)
def test_the_lowest_willing_rank_leads_when_nobody_is_undecided(answers, decision):
    assert _decide(answers) == decision


def test_the_leader_goes_on_without_those_that_are_silent_for_long():
    assert _decide({1: WILLING, 2: SUSPECTED, 3: WILLING}, since=LONG_AGO) == Lead((0, 1, 3))


def test_after_the_deadline_nobody_is_waited_for():
    answers = {1: WILLING, 2: SUSPECTED, 3: BUSY}
    assert _decide(answers, deadline=NOW - 1.0) == Lead((0, 1))


@pytest.mark.parametrize(
    ("leader", "decision"),
    [
        (WILLING, Wait(frozenset())),
        (_deciding(0, 1, 2), Adopt((0, 1, 2))),
        (_deciding(0, 2, 3), Fail),
    ],
)
def test_the_others_adopt_what_the_leader_decides(leader, decision):
    found = _decide({0: leader, 2: WILLING, 3: DEAD}, rank=1)
    if decision is Fail:
        assert "Rank 1: rank 0 and others have gone on without it" in found.reason
    else:
        assert found == decision


@pytest.mark.parametrize(
    ("rank", "silent", "leads"),
    [
        (0, [1], True),  # one against one: the side of the lowest rank
        (1, [0], False),
        (2, [0, 1], False),
        (0, [1, 2], False),  # rank 0 alone is fewer
    ],
)
def test_of_two_sides_of_a_cut_one_goes_on(rank, silent, leads):
    answers = dict.fromkeys(silent, SUSPECTED)
    found = _decide(answers, rank, since=LONG_AGO, size=1 + len(silent))
    if leads:
        assert found == Lead((rank,))
    else:
        assert "cannot be reached, and may be going on" in found.reason


def test_dead_workers_are_on_no_side():
    answers = {1: DEAD, 2: DEAD, 3: SUSPECTED}
    assert _decide(answers, since=LONG_AGO) == Lead((0,))


def test_too_few_surviving_workers_end():
    found = _decide({1: WILLING, 2: DEAD, 3: DEAD}, min_workers=3)
    assert "2 of 4 workers are left, fewer than min_workers=3" in found.reason


@pytest.mark.parametrize(
    ("torn_since", "decision"), [(RECENTLY, Wait(frozenset({2}))), (LONG_AGO, Lead((0, 1, 3)))]
)
def test_of_two_that_do_not_reach_each_other_the_higher_is_excluded(torn_since, decision):
    answers = {1: dataclasses.replace(WILLING, silent=(2,)), 2: WILLING, 3: WILLING}
    memory = Memory(torn_since={(1, 2): torn_since})
    assert memory.updated(_attempt(), answers, NOW) == memory
    assert decide(_attempt(), answers, memory, NOW) == decision


def test_the_memory_begins_with_the_first_silence_and_ends_with_an_answer():
    memory = Memory().updated(_attempt(), {1: SUSPECTED, 2: SUSPECTED, 3: WILLING}, 10.0)
    assert memory == Memory({1: 10.0, 2: 10.0})
    memory = memory.updated(_attempt(), {1: SUSPECTED, 2: WILLING, 3: DEAD}, 11.0)
    assert memory == Memory({1: 10.0})
    memory = memory.updated(_attempt(), {1: WILLING, 2: WILLING, 3: SUSPECTED}, 12.0)
    assert memory == Memory({3: 12.0})


@pytest.mark.parametrize(
    ("answer", "own", "excludes"),
    [
        (WILLING, WILLING, False),
        (DEAD, WILLING, False),
        (Standing(view=1, wants=1), WILLING, True),  # this worker is in no view 1
        (Standing(view=1, wants=1, members=(0, 1)), dataclasses.replace(WILLING, wants=2), False),
        (Standing(view=1, wants=1, members=(1, 2)), dataclasses.replace(WILLING, wants=2), True),
        (Standing(view=1, wants=1), dataclasses.replace(WILLING, is_member=True), False),
        (Standing(view=2, wants=2), dataclasses.replace(WILLING, is_member=True), True),
        # It wants the next view itself, and says whose view it has begun.
        (Standing(1, (1, 2), wants=2), dataclasses.replace(WILLING, wants=3), True),
        (Standing(1, (0, 1), wants=2), dataclasses.replace(WILLING, wants=3), False),
    ],
)
def test_a_worker_learns_that_others_have_begun_a_view_without_it(answer, own, excludes):
    assert excluding(0, View(0, (0, 1, 2)), own, {1: answer}) == (1 if excludes else None)


MEMBER = dataclasses.replace(WILLING, members=(0, 1, 2), is_member=True)
BEGUN = dataclasses.replace(MEMBER, view=1, most_completed=9)


@pytest.mark.parametrize(
    ("rank", "answers", "most"),
    [
        (0, {1: MEMBER, 2: dataclasses.replace(MEMBER, completed=8)}, 8),
        (0, {1: MEMBER, 2: WILLING}, None),
        (0, {1: MEMBER, 2: SUSPECTED}, None),
        (0, {1: MEMBER, 2: dataclasses.replace(MEMBER, members=(1, 2))}, None),
        (1, {0: MEMBER, 2: MEMBER}, None),  # the leader has not begun
        (1, {0: BEGUN, 2: SUSPECTED}, 9),  # rank 2 may have been the furthest
        (1, {0: dataclasses.replace(BEGUN, members=(0, 2)), 2: MEMBER}, None),
    ],
)
def test_a_view_begins_when_the_leader_has_heard_from_all_members(rank, answers, most):
    assert begun_by(rank, MEMBER, answers) == most


def test_all_must_want_a_view_before_joining_workers_are_taken_in():
    assert all_want(1, [1, 2], {1: WILLING, 2: dataclasses.replace(WILLING, wants=2)})
    assert not all_want(1, [1, 2], {1: WILLING, 2: BUSY})
    assert not all_want(1, [1, 2], {1: WILLING, 2: SUSPECTED})
    assert not all_want(1, [1, 2], {1: WILLING})


def test_another_program_at_the_port_is_no_worker():
    for strange in ({"hello": "world"}, {"members": 5}, {"silent": None}):
        assert parse_answer(Standing, strange, 3) is SUSPECTED
    assert parse_answer(Standing, DEAD, 3) is DEAD
    raw = dataclasses.asdict(_deciding(0, 2))
    raw = {name: list(each) if isinstance(each, tuple) else each for name, each in raw.items()}
    assert parse_answer(Standing, raw, 3) == _deciding(0, 2)
