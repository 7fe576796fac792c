"""Fields of messages are checked against their declarations: a table, and random values."""

import dataclasses
import inspect
import json
import random
from typing import Any

import pytest

from tf_gossip_pga.coordination import admission, joining, messages, status, view
from tf_gossip_pga.coordination.channel import Introduction
from tf_gossip_pga.coordination.messages import Port, Rank
from tf_gossip_pga.coordination.status import Absence

SIZE = 3

# Type, values that are accepted as they are, values that are refused.
NO_NUMBERS = [None, True, "1", [1], {}, float("nan"), float("inf"), -1]
TABLE = [
    (Rank, [0, 2], [*NO_NUMBERS, 3, 99, 1.0, 10**400]),
    (Port, [1, 65535], [*NO_NUMBERS, 0, 65536, 99_999_999, 80.0]),
    (int, [0, 7, 2**53], [*NO_NUMBERS, 1.5, 2**53 + 1]),
    (float, [0, 0.5, 1e300], [*NO_NUMBERS, 10**400]),
    (bool, [True, False], [0, 1, None, "true"]),
    (str, ["", "é"], [None, 1, ["a"], b"a"]),
    (Any, [None, 1, {"a": [1]}], []),
    (Rank | None, [None, 1], [3, "1"]),
    (list[Rank], [[], [0, 2]], [None, 1, "12", [3], [[0]], {"0": 1}]),
    (list[tuple[Rank, float]], [[], [(1, 0.5)]], [[1, 2.0], [[1]], [[1, 2.0, 3]], [[3, 1.0]]]),
    (dict[str, Any], [{}, {"step": 1}], [None, [], 1]),
]


@pytest.mark.parametrize(("declared", "good", "bad"), TABLE, ids=lambda each: str(each)[:20])
def test_a_field_is_taken_or_refused(declared, good, bad):
    for value in good:
        assert messages.checked({"it": value}, SIZE, it=declared) == {"it": value}
    for value in bad:
        with pytest.raises(ValueError, match="expected"):
            messages.checked({"it": value}, SIZE, it=declared)


def test_lists_become_tuples_and_digits_become_ranks():
    assert messages.checked({"it": [0, 1]}, SIZE, it=tuple[Rank, ...]) == {"it": (0, 1)}
    by_rank = dict[Rank, Port]
    assert messages.checked({"it": {"0": 7, "2": 8}}, SIZE, it=by_rank) == {"it": {0: 7, 2: 8}}
    for bad in ({"3": 7}, {"-1": 7}, {" 1": 7}, {"1_0": 7}, {"٣": 7}, {"": 7}, {"9" * 5000: 7}):
        with pytest.raises(ValueError):
            messages.checked({"it": bad}, SIZE, it=by_rank)


def test_fields_must_be_those_declared():
    for message in ({}, {"rank": 1}, {"rank": 1, "wants": 2, "more": 3}):
        with pytest.raises(ValueError, match=r"expected the fields \['rank', 'wants'\]"):
            messages.checked(message, SIZE, rank=Rank, wants=int)


def test_an_answer_that_is_none_counts_as_no_answer():
    here = status.Status().tell()
    answer = dataclasses.asdict(here)
    assert messages.parse_answer(status.Whereabouts, answer, SIZE) == here
    for wrong in ({}, {**answer, "more": 1}, {**answer, "step": -1}, {**answer, "where": None}):
        found = messages.parse_answer(status.Whereabouts, wrong, SIZE)
        assert found is Absence.SUSPECTED
    assert messages.parse_answer(status.Whereabouts, Absence.DEAD, SIZE) is Absence.DEAD


INVITATION = joining.Invitation(1, 12, [0, 1], [2], "ring", 3, "digest", {"step": 12})
MESSAGES = [
    view.Standing(view=1, view_members=(0, 2), wants=2, members=(0,), silent=((1, 2.5),)),
    status.Status().tell(),
    status.Departure("raised OSError", ends=True),
    INVITATION,
    Introduction(7, None, "f"),
    admission._Announcement(1, 7),
    admission._Answer({0: 7}, "computing step 3", 1),
    admission._Answer({0: 7}, "computing step 3", 1, INVITATION),
]
ODD = [None, True, -1, 0, 2, 3, 99, 10**30, 99_999_999, 0.5, float("nan"), "", "1", [], [99], {}]
ODD += [{"99": 1}, {"0": 99_999_999}, [[]], [None], {"0": {}}, "x" * 1000]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_messages_survive_json_and_random_fields_only_ever_raise_value_errors(message):
    kind, draw = type(message), random.Random(0)
    fields = json.loads(json.dumps(dataclasses.asdict(message)))
    assert messages.parse(kind, fields, SIZE) == message
    refused = 0
    for _ in range(500):
        changed = dict(fields)
        for name in draw.sample([*fields, "another"], draw.randint(1, 3)):
            if draw.random() < 0.2:
                changed.pop(name, None)
            else:
                changed[name] = draw.choice(ODD)
        try:
            parsed = messages.parse(kind, changed, SIZE)
        except ValueError:
            refused += 1
        else:
            _check_ranks_and_ports(parsed)
    assert 0 < refused < 500


def _check_ranks_and_ports(parsed):
    for name in ("members", "joining", "view_members"):
        assert set(getattr(parsed, name, None) or ()) <= set(range(SIZE))
    assert {rank for rank, _ in getattr(parsed, "silent", ())} <= set(range(SIZE))
    for rank, port in (getattr(parsed, "endpoints", None) or {}).items():
        assert 0 <= rank < SIZE and 1 <= port <= 65535


def test_every_dataclass_of_the_control_plane_that_travels_is_in_the_table():
    declared = {
        each
        for room in (admission, joining, status, view)
        for _, each in inspect.getmembers(room, dataclasses.is_dataclass)
        if each.__module__ == room.__name__
    }
    assert declared - {view.View} == {type(each) for each in MESSAGES} - {Introduction}
