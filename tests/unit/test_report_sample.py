"""Spans for a report: bounded memory, the same exchanges on all ranks, which seconds are scaled."""

import pytest

from tf_gossip_pga.observe import sample as sample_lib
from tf_gossip_pga.observe.sample import Sample, Shared
from tf_gossip_pga.training import recorder
from tf_gossip_pga.training.recorder import Span


def _gossip(step, late=0.0, rank=0):
    begin = 1e9 + step + late
    return Span(recorder.GOSSIP, step, begin, 0.5 - late, peers=(1 - rank,))


def _sync_point(step, begin, end, rank=0):
    where = f"the end of epoch {step}"
    return Span(recorder.SYNC_POINT, step, begin, end - begin, peers=(1 - rank,), where=where)


def _shared(sample):
    return Shared(sample.sync_points, sample.spans, sample.heard, sample.part)


def test_a_sample_is_bounded_and_covers_the_whole_epoch():
    sample = Sample(most=1000)
    for step in range(1, 100_001):
        sample.add(_gossip(step))
        assert len(sample.spans) <= 1000
    assert sample.heard == 100_000
    assert len(sample.spans) > 250
    steps = [each.step for each in sample.spans]
    assert min(steps) < 64
    assert max(steps) > 90_000
    odd = sum(step % 2 for step in steps)
    assert odd == pytest.approx(len(steps) / 2, rel=0.05)


def test_all_spans_are_kept_while_there_are_few():
    sample = Sample(most=100)
    spans = [_gossip(step) for step in range(1, 101)]
    for each in spans:
        sample.add(each)
    assert (sample.spans, sample.heard, sample.part) == (spans, 100, 1.0)


def test_seconds_are_scaled_up_to_all_spans():
    # Rank 1 begins each of 10,000 gossips 0.25 s late.
    samples = {0: Sample(most=800), 1: Sample(most=400)}
    for step in range(10_000):
        samples[0].add(_gossip(step))
        samples[1].add(_gossip(step, late=0.25, rank=1))
    assert samples[0].part > samples[1].part
    waiting = sample_lib.waiting({rank: _shared(each) for rank, each in samples.items()})
    assert waiting.tolist() == [[0, pytest.approx(2500)], [0, 0]]


@pytest.mark.parametrize("last", [20_000, 20_063, 20_127])  # in different blocks of steps
def test_a_wait_at_a_sync_point_is_neither_dropped_nor_scaled(last):
    # No rank is late for a gossip. Rank 1 is 10 s late for the end of the epoch.
    samples = [Sample(most=5000), Sample(most=5000)]
    for rank, sample in enumerate(samples):
        for step in range(last - 20_000, last):
            sample.add(_gossip(step, rank=rank))
        begin = 1e9 + last + 10 * rank
        sample.add(_sync_point(last, begin, 1e9 + last + 10, rank))
        assert sample.part < 1
    waiting = sample_lib.waiting(dict(enumerate(map(_shared, samples))))
    assert waiting.tolist() == [[0, 10], [0, 0]]


def test_sync_points_align_the_clocks_of_an_epoch_without_global_averages():
    # Nobody waits, but the clock of rank 1 is 0.2 s ahead. A wait is at most a gossip's 0.005 s, so
    # that without alignment 20,000 gossips add up to 100 s.
    samples = [Sample(most=5000), Sample(most=5000)]
    for rank, sample in enumerate(samples):
        clock = 1e9 + 0.2 * rank
        for step in range(20_000):
            begin = clock + step
            sample.add(Span(recorder.GOSSIP, step, begin, 0.005, peers=(1 - rank,)))
        sample.add(_sync_point(20_000, clock + 20_000, clock + 20_001, rank))
    waiting = sample_lib.waiting(dict(enumerate(map(_shared, samples))))
    assert waiting.sum() < 0.1  # seconds since 1970 have rounding errors of about 1e-7 s


def test_the_time_in_exchanges_covers_all_spans_in_which_ranks_wait():
    sample = Sample(most=100)
    for step in range(200):
        sample.add(_gossip(step))  # 0.5 s
        sample.add(Span(recorder.BACKGROUND_GOSSIP, step, 1e9 + step, 0.25, peers=(1,)))
    sample.add(_sync_point(200, 1e9 + 200, 1e9 + 216))
    assert sample.part < 1
    assert sample.seconds == 200 * 0.5 + 16


def test_ranks_without_spans_did_not_wait():
    nothing = _shared(Sample(most=100))
    assert sample_lib.waiting({0: nothing, 2: nothing}).tolist() == [[0, 0], [0, 0]]
