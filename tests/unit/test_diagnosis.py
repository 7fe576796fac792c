"""Who keeps a worker waiting, and the sentence about it; tables without sockets."""

import dataclasses

import pytest

from tf_gossip_pga.coordination.diagnosis import Findings, diagnose
from tf_gossip_pga.coordination.status import LEFT as HAS_LEFT
from tf_gossip_pga.coordination.status import Absence, Departure, Whereabouts

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
RAISED = dataclasses.replace(LEFT, left="raised OSError: disk full")
# An exception has left the exchange itself: as many have begun as on this worker.
BROKE_OFF = dataclasses.replace(
    RAISED, exchanges=2, left="raised KeyboardInterrupt", unfinished="the gossip of step 2"
)
INTERRUPTED = dataclasses.replace(BROKE_OFF, left=None)
# An exchange was broken between fits.
GAVE_UP = dataclasses.replace(LEFT, exchanges=2, unfinished="cluster.barrier", can_regroup=True)
IN_ANOTHER_FIT = dataclasses.replace(COMPUTING, fits=2)
ELSEWHERE = dataclasses.replace(AHEAD, waits_at="the end of training")
DEAD, SUSPECTED = Absence.DEAD, Absence.SUSPECTED

SLOW = "rank 1 has not reached it, and for 3 s has been computing step 2"
CANNOT = " in the gossip of step 2, and must be restarted before it can exchange again"
GONE = "has ended: its process no longer listens"
SILENT = "does not answer (its process is stopped, or the network to it is cut)"


def _diagnose(*others, own=AHEAD, ending=(), departed=None) -> Findings:
    """Diagnose with the answers of ranks 1, 2, ..., each last heard of 10 s ago per rank."""
    answers = {
        rank: other if isinstance(other, Absence) else dataclasses.asdict(other)
        for rank, other in enumerate(others, 1)
    }
    return diagnose(answers, own, {rank: 10.0 * rank for rank in answers}, ending, departed)


@pytest.mark.parametrize(
    ("others", "ranks", "never", "text"),
    [
        ([COMPUTING, AHEAD], (1,), False, SLOW),
        ([COMPUTING, WAITING], (1,), False, SLOW),  # rank 2 is late because rank 1 is
        (
            [WAITING, AHEAD],
            (1,),
            False,
            "rank 1 has not reached it, and has itself waited 2 s at the gossip of step 1",
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
        (
            [RAISED, AHEAD],
            (1,),
            True,
            "rank 1 raised OSError: disk full; 3 s ago it was computing step 2",
        ),
        (
            [dataclasses.replace(RAISED, left=HAS_LEFT), AHEAD],
            (1,),
            True,
            "rank 1 has left fit; 3 s ago it was computing step 2",
        ),
        ([AHEAD, BROKE_OFF], (2,), True, f"rank 2 raised KeyboardInterrupt{CANNOT}"),
        ([AHEAD, GAVE_UP], (2,), True, "rank 2 has lost a worker at cluster.barrier"),
        # A worker that only takes long is not blamed next to one that never comes.
        ([COMPUTING, LEFT], (2,), True, "rank 2 has left fit; 3 s ago it was computing step 2"),
        ([DEAD, COMPUTING], (1,), True, f"rank 1 {GONE}"),
        # The end of one worker interrupts the others, which are still asking who it was.
        ([INTERRUPTED, DEAD], (2,), True, f"rank 2 {GONE}"),
        ([GAVE_UP, DEAD], (2,), True, f"rank 2 {GONE}"),
        (
            [BROKE_OFF, DEAD],
            (1, 2),
            True,
            f"rank 1 raised KeyboardInterrupt{CANNOT}; rank 2 {GONE}",
        ),
        (
            [ELSEWHERE, AHEAD],
            (1,),
            True,
            "rank 1 waits at the end of training: the ranks are in different exchanges",
        ),
    ],
)
def test_who_keeps_a_worker_waiting(others, ranks, never, text):
    assert _diagnose(*others) == Findings(ranks, never, text)


@pytest.mark.parametrize(("ago", "reached_s"), [(1.0, 1.0), (9.0, 2.0)])
def test_all_have_been_there_since_the_last_has_come(ago, reached_s):
    other = dataclasses.replace(AHEAD, waits_s=ago)
    passed = dataclasses.replace(AHEAD, exchanges=3, waits_at="the gossip of step 3", waits_s=0.1)
    assert _diagnose(other, passed) == Findings(reached_s=reached_s)


@pytest.mark.parametrize("left", [None, "raised OSError: disk full"])
def test_one_that_has_completed_the_exchange_and_left_fit_is_not_late(left):
    returned = dataclasses.replace(AHEAD, waits_at=None, in_fit=False, left=left)
    assert _diagnose(returned).ranks == ()


ENDED = Departure("raised OSError: disk full, and has ended", ends=True)


@pytest.mark.parametrize(
    ("answer", "departure", "never", "text"),
    [
        (DEAD, ENDED, True, f"rank 1 {ENDED.text}"),
        (SUSPECTED, ENDED, True, f"rank 1 {ENDED.text}"),  # it is still closing its sockets
        (DEAD, Departure("raised OSError", ends=False), True, "rank 1 raised OSError"),
        # It has reported that it left fit, and lives: it may only have missed the question.
        (
            SUSPECTED,
            Departure("raised OSError", ends=False),
            False,
            f"rank 1 {SILENT}; last heard from 10 s ago",
        ),
    ],
)
def test_a_worker_that_has_reported_why_it_ends_is_quoted(answer, departure, never, text):
    found = _diagnose(answer, departed={1: departure})
    assert (found.ranks, found.never, found.text) == ((1,), never, text)


def test_a_worker_that_does_not_answer_is_suspected():
    found = _diagnose(AHEAD, SUSPECTED)
    assert found == Findings(
        (2,), False, f"rank 2 {SILENT}; last heard from 20 s ago", suspected=True
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


@pytest.mark.parametrize(
    ("other", "never", "text"),
    [
        (RAISED, False, "rank 1 has not reached it: it raised OSError: disk full"),
        (BROKE_OFF, True, f"rank 1 raised KeyboardInterrupt{CANNOT}"),
        (INTERRUPTED, True, f"rank 1 was interrupted{CANNOT}"),
    ],
)
@pytest.mark.parametrize(
    "own", [dataclasses.replace(AHEAD, fits=2), dataclasses.replace(AHEAD, in_fit=False)]
)
def test_outside_of_its_fit_a_worker_is_lost_only_if_it_cannot_exchange(own, other, never, text):
    own = dataclasses.replace(own, exchanges=3)
    assert _diagnose(other, own=own) == Findings((1,), never, text)


@pytest.mark.parametrize("elsewhere", [COMPUTING, WAITING, AHEAD])
def test_workers_with_a_later_view_have_continued_without_this_one(elsewhere):
    # This worker has left a fit and called it again, while they still train in the first.
    own, later = dataclasses.replace(AHEAD, fits=2), dataclasses.replace(elsewhere, view=1)
    found = _diagnose(later, own=own)
    assert found == Findings((1,), True, "rank 1 has continued without this worker")


def test_where_this_worker_has_raised_too_the_exception_is_no_news():
    own = dataclasses.replace(AHEAD, in_fit=False, left="raised OSError: disk full")
    assert _diagnose(RAISED, own=own).text == "rank 1 has not called fit with GossipPGA again"


def test_another_program_at_the_port_is_no_worker():
    assert diagnose({1: {"hello": "world"}}, AHEAD, {1: 0.0}).suspected


def test_nobody_can_be_asked_before_all_have_started():
    text = "the other workers cannot be asked until all have started"
    assert diagnose({}, AHEAD, {}) == Findings(text=text)


def test_many_late_workers_are_named_in_part():
    found = _diagnose(*[COMPUTING] * 10)
    assert len(found.ranks) == 10
    assert found.names.endswith("rank 7 and rank 8 and 2 more")
    assert found.text.endswith("; 2 more")
