"""Who waited for whom, with begins and ends worked by hand."""

from tf_gossip_pga.observe import waits
from tf_gossip_pga.training.recorder import Span


def _span(kind, step, begin, end, *peers, where=""):
    return Span(kind, step, begin, end - begin, peers, where=where)


# Step 1, one peer: 0 -> 1 -> 2 -> 0, so that each exchanges with both others. Rank 2 begins last.
SLOW = {
    0: [_span("compute", 1, 0.0, 1.0), _span("gossip", 1, 1.0, 4.5, 1, 2)],
    1: [_span("compute", 1, 0.0, 2.0), _span("gossip", 1, 2.0, 4.5, 0, 2)],
    2: [_span("compute", 1, 0.0, 4.0), _span("gossip", 1, 4.0, 4.5, 0, 1)],
}


def test_all_wait_for_the_rank_that_begins_last():
    assert waits.waiting(SLOW).tolist() == [[0, 0, 3], [0, 0, 2], [0, 0, 0]]
    found = [(each.rank, each.peer, each.span.kind, each.seconds) for each in waits.waits(SLOW)]
    assert found == [(0, 2, "gossip", 3.0), (1, 2, "gossip", 2.0)]


def test_only_peers_are_waited_for():
    spans = {
        0: [_span("gossip", 1, 1.0, 2.5, 1)],
        1: [_span("gossip", 1, 2.0, 2.5, 0)],
        2: [_span("gossip", 1, 9.0, 9.5)],
    }
    assert waits.waiting(spans).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_wait_ends_with_its_exchange():
    """With a small message, a sender may leave before its receiver begins."""
    spans = {0: [_span("gossip", 1, 1.0, 1.5, 1)], 1: [_span("gossip", 1, 8.0, 8.5, 0)]}
    assert waits.waiting(spans).tolist() == [[0, 0.5], [0, 0]]


def test_ranks_may_have_gaps_and_a_lost_rank_is_not_blamed():
    spans = {
        0: [_span("gossip", 1, 1.0, 9.0, 2, 5)],  # rank 2 was lost in this exchange
        5: [_span("gossip", 1, 2.0, 9.0, 0, 2)],
    }
    assert waits.waiting(spans).tolist() == [[0, 1], [0, 0]]
    assert waits.waits({}) == []
    assert waits.waiting({}).shape == (0, 0)


def test_kinds_and_steps_and_sync_points_do_not_mix():
    spans = {
        0: [
            _span("gossip", 1, 1.0, 1.5, 1),
            _span("global average", 2, 2.0, 2.5, 1),
            _span("sync point", 2, 3.0, 4.5, 1, where="the end of epoch 1"),
            _span("sync point", 2, 5.0, 5.5, 1, where="the beginning of epoch 2"),
        ],
        1: [
            _span("gossip", 1, 1.25, 1.5, 0),
            _span("global average", 2, 2.125, 2.5, 0),
            _span("sync point", 2, 4.0, 4.5, 0, where="the end of epoch 1"),
            _span("sync point", 2, 4.75, 5.5, 0, where="the beginning of epoch 2"),
        ],
    }
    found = [(each.rank, each.span.step, each.seconds) for each in waits.waits(spans)]
    assert found == [(0, 1, 0.25), (0, 2, 0.125), (0, 2, 1.0), (1, 2, 0.25)]


def test_a_repeated_exchange_meets_the_attempt_that_ends_with_it():
    """Rank 0 began step 7 a second time after a loss; rank 1 had been late for the first."""
    spans = {
        0: [_span("gossip", 7, 1.0, 5.0, 1), _span("gossip", 7, 8.0, 9.0, 1)],
        1: [_span("gossip", 7, 2.0, 5.0, 0), _span("gossip", 7, 8.5, 9.0, 0)],
    }
    assert [each.seconds for each in waits.waits(spans)] == [1.0, 0.5]


def test_with_overlap_a_rank_waits_for_the_gossip_of_the_step_before():
    spans = {
        0: [
            _span("gossip", 1, 1.0, 1.1, 1),  # starts the first gossip, and waits for nothing
            _span("gossip in the background", 1, 1.1, 4.0, 1),
            _span("gossip", 2, 2.0, 4.0, 1),  # waits until rank 1 starts its first gossip at 3.5
        ],
        1: [
            _span("gossip", 1, 3.0, 3.5, 0),
            _span("gossip in the background", 1, 3.5, 4.0, 0),
            _span("gossip", 2, 4.5, 4.75, 0),
        ],
    }
    found = [(each.rank, each.peer, each.span.step, each.seconds) for each in waits.waits(spans)]
    assert found == [(0, 1, 2, 1.5)]


def test_clocks_are_aligned_by_the_median_end_of_global_averages():
    ends = [10.0, 20.0, 30.0]
    own = [_span("global average", k, end - 1, end) for k, end in enumerate(ends)]
    late = [5.0, 5.125, 9.0]  # rank 1's clock is 5.125 ahead; once it left an average late
    other = [
        _span("global average", k, end + ahead - 1, end + ahead)
        for k, (end, ahead) in enumerate(zip(ends, late, strict=True))
    ]
    other += [_span("compute", 3, 50.0, 51.0), _span("sync point", 3, 60.0, 61.0, where="x")]
    own += [_span("sync point", 3, 0.0, 1.0, where="x")]  # less precise, so not used
    found = waits.aligned({0: own, 1: other})
    assert found[0] == own
    assert [each.begin for each in found[1]] == [8.875, 19, 32.875, 44.875, 54.875]
    assert [each.seconds for each in found[1]] == [each.seconds for each in other]


def test_without_global_averages_sync_points_align_clocks():
    own = [_span("sync point", 3, 0.0, 1.0, where="x"), _span("sync point", 3, 1.0, 2.0, where="y")]
    other = [_span("sync point", 3, 7.0, 8.0, where="y"), _span("sync point", 2, 0.0, 1.0)]
    assert [each.begin for each in waits.aligned({2: own, 4: other})[4]] == [1.0, -6.0]


def test_clocks_without_a_common_exchange_stay():
    own, other = [_span("compute", 1, 0.0, 1.0)], [_span("compute", 1, 3.0, 4.0)]
    assert waits.aligned({0: own, 1: other}) == {0: own, 1: other}
    assert waits.aligned({}) == {}
