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
FINISHED = dataclasses.replace(LEFT, finished=1)
NEXT_FIT = dataclasses.replace(WILLING, fit=2, finished=1)
NOW = 100.0
RECENTLY, LONG_AGO = NOW - 5.0, NOW - 15.1


def _attempt(rank=0, size=4, **arguments) -> Attempt:
    defaults = {"number": 1, "fit": 1, "min_workers": 1, "patience_s": 60.0, "silent_s": 15.0}
    return Attempt(rank, View(0, tuple(range(size))), **{**defaults, **arguments})


def _decide(answers, rank=0, since=RECENTLY, late_since=RECENTLY, gone=None, **arguments):
    """The decision where all dead ones are gone, unless `gone` says which."""
    attempt = _attempt(rank, **arguments)
    if gone is None:
        gone = {other for other, each in answers.items() if each is DEAD}
    memory = Memory().updated(attempt, answers, since, {}, frozenset(gone))
    memory = dataclasses.replace(memory, late_since=dict.fromkeys(memory.late_since, late_since))
    return decide(attempt, answers, memory, NOW)


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
        # One that trains to the end of the fit before, or has yet to begin this one, comes.
        ({1: WILLING, 2: dataclasses.replace(BUSY, fit=0), 3: DEAD}, Wait(frozenset({2}))),
        ({1: WILLING, 2: dataclasses.replace(LEFT, fit=0), 3: DEAD}, Wait(frozenset({2}))),
        ({1: WILLING, 2: NEXT_FIT, 3: WILLING}, Finish()),
        # It has left this fit by an exception, and is in the next one.
        ({1: WILLING, 2: dataclasses.replace(NEXT_FIT, finished=0), 3: DEAD}, Lead((0, 1))),
        # Whoever is no member of the present view, as a joining worker, is not waited for.
        ({1: WILLING, 2: WILLING, 3: WILLING, 7: SUSPECTED}, Lead((0, 1, 2, 3))),
    ],
)
def test_the_lowest_willing_rank_leads_when_nobody_is_undecided(answers, decision):
    assert _decide(answers) == decision


def test_the_leader_continues_without_those_that_are_silent_for_long():
    assert _decide({1: WILLING, 2: SUSPECTED, 3: WILLING}, since=LONG_AGO) == Lead((0, 1, 3))


@pytest.mark.parametrize(
    ("late_since", "decision"), [(NOW - 59.9, Wait(frozenset({3}))), (NOW - 60.1, Lead((0, 1, 2)))]
)
def test_a_worker_that_answers_is_waited_for_until_the_deadline(late_since, decision):
    assert _decide({1: WILLING, 2: WILLING, 3: BUSY}, late_since=late_since) == decision


def test_a_late_worker_may_be_on_another_side():
    found = _decide({0: BUSY}, rank=1, size=2, late_since=NOW - 60.1)
    assert (
        "Rank 1 ends: it cannot regroup with rank 0, which may be continuing without"
        in found.reason
    )


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
        assert "rank 0 has continued without it" in found.reason
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
def test_of_two_sides_of_a_cut_one_continues(rank, silent, leads):
    answers = dict.fromkeys(silent, SUSPECTED)
    found = _decide(answers, rank, since=LONG_AGO, size=1 + len(silent))
    if leads:
        assert found == Lead((rank,))
    else:
        assert "which may be continuing without" in found.reason


def test_dead_workers_are_on_no_side_where_they_cannot_have_continued():
    answers = {1: DEAD, 2: DEAD, 3: SUSPECTED}
    assert _decide(answers, since=LONG_AGO) == Lead((0,))
    found = _decide(answers, since=LONG_AGO, gone={1})
    assert "regroup with rank 2 and rank 3, which may be continuing without rank 0" in found.reason
    assert "knows only that rank 2 ended" in found.reason
    assert _decide({1: WILLING, 2: DEAD, 3: WILLING}, gone=()) == Lead((0, 1, 3))


def test_one_that_asks_is_not_silent():
    attempt, answers = _attempt(), {1: WILLING, 2: WILLING, 3: SUSPECTED}
    memory = Memory({3: LONG_AGO}, asked_by={3: RECENTLY})
    assert decide(attempt, answers, memory, NOW) == Wait(frozenset({3}))
    # But not for longer than for one that is late: it may hear no answers.
    memory = Memory({3: NOW - 75.1}, asked_by={3: RECENTLY})
    assert decide(attempt, answers, memory, NOW) == Lead((0, 1, 2))


def test_too_few_surviving_workers_end():
    found = _decide({1: WILLING, 2: DEAD, 3: DEAD}, min_workers=3)
    assert "2 of 4 workers survive, fewer than min_workers=3" in found.reason


def _silent_about(**seconds: float) -> Standing:
    """The standing of a willing worker that has not reached these: `_1=5.0` is rank 1."""
    silent = tuple((int(rank[1:]), silent_s) for rank, silent_s in seconds.items())
    return dataclasses.replace(WILLING, silent=silent)


@pytest.mark.parametrize(
    ("answers", "decision"),
    [
        # Whoever has only just come to want the view has asked nobody yet.
        ({1: _silent_about(_2=0.0, _3=0.0), 2: WILLING, 3: WILLING}, Wait(frozenset({2, 3}))),
        ({1: _silent_about(_2=14.9), 2: _silent_about(_1=3.0), 3: WILLING}, Wait(frozenset({2}))),
        ({1: _silent_about(_2=15.0), 2: WILLING, 3: WILLING}, Lead((0, 1, 3))),
        ({1: WILLING, 2: _silent_about(_1=15.0), 3: WILLING}, Lead((0, 1, 3))),
        ({1: WILLING, 2: _silent_about(_0=15.0), 3: WILLING}, Lead((0, 1, 3))),
        # One that two others do not reach is left out rather than these two.
        ({1: _silent_about(_2=15.0, _3=15.0), 2: WILLING, 3: WILLING}, Lead((0, 2, 3))),
        # Whom it does not reach is no member to come.
        ({1: _silent_about(_2=15.0), 2: DEAD, 3: WILLING}, Lead((0, 1, 3))),
    ],
)
def test_of_two_that_do_not_reach_each_other_one_is_left_out(answers, decision):
    assert _decide(answers) == decision


def test_those_that_are_left_out_may_be_a_side_of_their_own():
    others = {rank: _silent_about(_1=15.0) for rank in (2, 3, 4)}
    assert _decide({1: WILLING, **others}, size=5) == Lead((0, 2, 3, 4))
    nobody = {
        rank: _silent_about(**{f"_{other}": 15.0 for other in range(1, 5) if other != rank})
        for rank in range(1, 5)
    }
    assert "may be continuing without rank 0 and rank 1" in _decide(nobody, size=5).reason


def _updated(memory: Memory, answers, now: float) -> Memory:
    return memory.updated(_attempt(), answers, now, {}, frozenset())


def test_the_memory_begins_with_the_first_silence_and_ends_with_an_answer():
    memory = _updated(Memory(), {1: SUSPECTED, 2: SUSPECTED, 3: WILLING}, 10.0)
    assert memory == Memory({1: 10.0, 2: 10.0})
    memory = _updated(memory, {1: SUSPECTED, 2: WILLING, 3: DEAD}, 11.0)
    assert memory == Memory({1: 10.0})
    memory = _updated(memory, {1: WILLING, 2: WILLING, 3: SUSPECTED}, 12.0)
    assert memory == Memory({3: 12.0})


def test_one_that_asks_while_this_worker_decides_is_not_silent_for_less_than_no_time():
    memory = Memory({1: 10.0}, asked_by={1: 12.0})
    assert memory.silence_s(1, _attempt(), 11.5) == 0.0
    assert memory.silence_s(1, _attempt(), 13.0) == 1.0


def test_a_late_worker_is_late_until_it_comes_also_where_it_misses_a_question():
    memory = _updated(Memory(), {1: BUSY, 2: BUSY, 3: BUSY}, 10.0)
    memory = _updated(memory, {1: SUSPECTED, 2: WILLING, 3: BUSY}, 11.0)
    assert memory == Memory({1: 11.0}, {1: 10.0, 3: 10.0})
    assert memory.for_next_attempt() == Memory({}, {1: 10.0, 3: 10.0})


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
    for strange in ({"hello": "world"}, {"members": 5}, {"silent": None}, {"silent": [["a", 1]]}):
        assert parse_answer(Standing, strange, 3) is SUSPECTED
    assert parse_answer(Standing, DEAD, 3) is DEAD
    raw = dataclasses.asdict(_deciding(0, 2))
    raw = {name: list(each) if isinstance(each, tuple) else each for name, each in raw.items()}
    assert parse_answer(Standing, raw, 3) == _deciding(0, 2)
