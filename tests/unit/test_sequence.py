"""A worker's place in the sequence of exchanges, as tables."""

import pytest

from tf_gossip_pga.coordination.sequence import Sequence


def _at(completed: int, most: int) -> Sequence:
    sequence = Sequence(futile_regroups=3, completed=completed)
    assert sequence.regroup(most, is_lost=True)
    return sequence


@pytest.mark.parametrize(("completed", "most"), [(7, 7), (7, 8), (7, 9)])
def test_a_worker_skips_what_others_have_completed_and_no_more(completed, most):
    sequence, ran = _at(completed, most), []
    for _ in range(4):
        if not sequence.skips_next:
            ran.append(sequence.completed)
        sequence.complete()
    assert ran == list(range(most, completed + 4))
    assert sequence.completed == completed + 4


def test_a_new_view_must_be_reconciled():
    sequence = Sequence(futile_regroups=3)
    assert not sequence.must_reconcile
    assert sequence.regroup(0, is_lost=False)
    assert sequence.must_reconcile


def test_the_same_exchange_does_not_fail_forever_unless_somebody_is_lost():
    sequence = Sequence(futile_regroups=3)
    found = [sequence.regroup(0, is_lost=False) for _ in range(4)]
    assert found == [True, True, True, False]
    sequence = Sequence(futile_regroups=3)
    found = [sequence.regroup(0, is_lost=attempt == 2) for attempt in range(6)]
    assert found == [True, True, True, True, True, False]


def test_progress_between_failures_counts():
    sequence = Sequence(futile_regroups=2)
    for _ in range(5):
        assert sequence.regroup(sequence.completed, is_lost=False)
        sequence.complete()
