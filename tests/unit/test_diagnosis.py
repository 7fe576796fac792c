"""Who keeps a worker waiting, and the sentence about it; tables without sockets."""

import dataclasses

import pytest

from tf_gossip_pga.coordination.diagnosis import Findings, diagnose
from tf_gossip_pga.coordination.status import Absence, Whereabouts

# This worker, in its first fit, waits in its second exchange.
AHEAD = Whereabouts(
    where="computing step 2",
    where_s=3.0,
    step=1,
    exchanges=2,
    waits_at="the gossip of step 2",
    waits_s=2.0,
    fits=1,
    in_fit=True,
)
COMPUTING = dataclasses.replace(AHEAD, exchanges=1, waits_at=None, waits_s=0.0)
WAITING = dataclasses.replace(AHEAD, exchanges=1, waits_at="the gossip of step 1")
NOT_BEGUN = Whereabouts("", 9.0, 0, 0, None, 0.0, fits=0, in_fit=False)
LEFT = dataclasses.replace(COMPUTING, in_fit=False)
IN_ANOTHER_FIT = dataclasses.replace(COMPUTING, fits=2)
ELSEWHERE = dataclasses.replace(AHEAD, waits_at="the end of training")
DEAD, SUSPECTED = Absence.DEAD, Absence.SUSPECTED

SLOW = "rank 1 has not reached it; for 3 s it has been computing step 2"
GONE = "has ended: its process does not listen any more"
SILENT = "does not answer (its process is stopped, or the network between is cut)"


def _diagnose(*others, own=AHEAD, ending=()) -> Findings:
    """Diagnose with the answers of ranks 1, 2, ..., each last heard of 10 s ago per rank."""
    answers = {
        rank: other if isinstance(other, Absence) else dataclasses.asdict(other)
        for rank, other in enumerate(others, 1)
    }
    return diagnose(answers, own, {rank: 10.0 * rank for rank in answers}, ending)


@pytest.mark.parametrize(
    ("others", "ranks", "never", "text"),
    [
        ([AHEAD, AHEAD], (), False, ""),
        ([COMPUTING, AHEAD], (1,), False, SLOW),
        ([COMPUTING, WAITING], (1,), False, SLOW),  # rank 2 is late because rank 1 is
        (
            [WAITING, AHEAD],
            (1,),
            False,
            "rank 1 has not reached it; it has waited 2 s at the gossip of step 1",
        ),
        (
            [COMPUTING, NOT_BEGUN],
            (1, 2),
            False,
            f"{SLOW}; rank 2 has not called fit with GossipPGA yet",
        ),
        ([LEFT, AHEAD], (1,), True, "rank 1 has left fit; 3 s ago it was computing step 2"),
        (
            [IN_ANOTHER_FIT, AHEAD],
            (1,),
            True,
            "rank 1 has left fit; 3 s ago it was computing step 2",
        ),
        # A worker that only takes long is not blamed next to one that never comes.
        ([COMPUTING, LEFT], (2,), True, "rank 2 has left fit; 3 s ago it was computing step 2"),
        ([DEAD, COMPUTING], (1,), True, f"rank 1 {GONE}"),
        (
            [ELSEWHERE, AHEAD],
            (1,),
            True,
            "rank 1 waits at the end of training: the ranks took different ways",
        ),
    ],
)
def test_who_keeps_a_worker_waiting(others, ranks, never, text):
    assert _diagnose(*others) == Findings(ranks, never, text)


def test_a_worker_that_does_not_answer_is_suspected():
    found = _diagnose(AHEAD, SUSPECTED)
    assert found == Findings(
        (2,), False, f"rank 2 {SILENT}; last heard from it 20 s ago", suspected=True
    )


@pytest.mark.parametrize(
    ("ending", "ranks"),
    [((), (1, 2)), ((2,), (1,)), ((1,), (2,)), ((1, 2), (1, 2))],  # somebody is to blame
)
def test_a_worker_that_ends_because_of_another_is_not_blamed(ending, ranks):
    assert _diagnose(SUSPECTED, DEAD, ending=ending).ranks == ranks


def test_between_two_fits_a_late_worker_is_slow_and_not_lost():
    second = dataclasses.replace(AHEAD, fits=2)
    found = _diagnose(LEFT, own=second)
    assert found == Findings((1,), False, "rank 1 has not called fit with GossipPGA again")


def test_another_program_at_the_port_is_no_worker():
    assert diagnose({1: {"hello": "world"}}, AHEAD, {1: 0.0}).suspected


def test_nobody_can_be_asked_before_all_have_started():
    text = "the others cannot be asked before all have started"
    assert diagnose({}, AHEAD, {}) == Findings(text=text)


def test_many_late_workers_are_named_in_part():
    found = _diagnose(*[COMPUTING] * 10)
    assert len(found.ranks) == 10
    assert found.names.endswith("rank 7 and rank 8 and 2 more")
    assert found.text.endswith("; 2 more")
