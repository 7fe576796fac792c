"""Reports of the roll call: how they travel, what is refused, and what they disagree on."""

import dataclasses
import json

import pytest

from tf_gossip_pga.coordination import roster

HOSTS = ("a:1", "b:1", "c:1")


def report(rank=0, nonce="", addresses=HOSTS, **more) -> roster.Report:
    facts = more.pop("facts", {"version of Keras": "3.15.1"})
    return roster.Report(rank, nonce or f"n{rank}", f"host{rank}", 10, addresses, facts, **more)


def test_a_report_comes_back_from_its_line():
    more = {"gpu": "0000:3b:00.0", "machine": "8f3c"}
    sent = report(1, missing=(0, 2), failure="it is\nso", complete=True, **more)
    assert sent.to_line().count(b"\n") == 1
    assert roster.from_line(sent.to_line()) == sent


FIELDS = dataclasses.asdict(report(1))


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"GET / HTTP/1.1\r\n", b"\xff\n", b"[]\n", b"3\n", b"[" * 10000 + b"\n"),
        *(json.dumps({name: FIELDS[name]}).encode() for name in FIELDS),
        *(
            json.dumps({**FIELDS, name: value}).encode()
            for name, value in [
                ("rank", 3),
                ("rank", -1),
                ("rank", True),
                ("rank", 10**30),
                ("rank", "1"),
                ("pid", 1.5),
                ("nonce", None),
                ("addresses", []),
                ("addresses", "abc"),
                ("addresses", [1, 2, 3]),
                ("facts", ["version"]),
                ("facts", {"version": 3}),
                ("missing", [3]),
                ("missing", {"0": 1}),
                ("failure", ["it"]),
                ("gpu", 0),
                ("gpu", None),
                ("machine", ["8f3c"]),
            ]
        ),
    ],
)
def test_anything_else_is_no_report(line):
    with pytest.raises(ValueError):
        roster.from_line(line)


def test_a_report_that_names_no_gpu_has_none():
    named = {name: value for name, value in FIELDS.items() if name not in ("gpu", "machine")}
    assert roster.from_line(json.dumps(named).encode()) == report(1)


def test_what_a_report_says_cannot_move_the_cursor_or_fill_the_screen():
    line = dataclasses.replace(report(), failure="\x1b[2J" + "x" * 10**5).to_line()
    failure = roster.from_line(line).failure
    assert "\x1b" not in failure and failure.startswith("[2Jxxx") and len(failure) < 3000


def test_equal_reports_do_not_differ():
    assert roster.difference([report(0), report(1), report(2)]) == ""


def test_lists_that_differ_are_quoted_with_their_holders():
    text = roster.difference([report(0), report(1, addresses=("a:1", "B:1", "c:1")), report(2)])
    assert text == (
        "the workers have different lists of addresses:\n"
        "  rank 0 (process 10 on host0) and rank 2 (process 10 on host2): a:1, b:1, c:1\n"
        "  rank 1 (process 10 on host1): a:1, B:1, c:1\n"
        "Give all of them the same list, in the same order."
    )


def test_of_long_lists_only_the_differences_are_quoted():
    many = tuple(f"h{index}:1" for index in range(100))
    other = (*many[:70], "odd:1", *many[71:], "more:1")
    text = roster.difference([report(0, addresses=many), report(1, addresses=other)])
    assert "host0): 100 addresses, with rank 70 at h70:1\n" in text
    assert "host1): 101 addresses, with rank 70 at odd:1, rank 100 at more:1\n" in text


def test_facts_that_differ_are_quoted_with_their_holders():
    odd = report(1, facts={"version of Keras": "3.14.0"})
    assert roster.difference([odd, report(0)]) == (
        "the workers differ in the version of Keras, which must be the same: 3.15.1 on rank 0 "
        "(process 10 on host0); 3.14.0 on rank 1 (process 10 on host1)."
    )
    assert "none on rank 1" in roster.difference([report(0), report(1, facts={})])
