"""Spans for a report: bounded memory, the same exchanges on all ranks, seconds scaled up."""

import pytest

from tf_gossip_pga.observe import sample as sample_lib
from tf_gossip_pga.observe.sample import Sample, Shared
from tf_gossip_pga.training import recorder
from tf_gossip_pga.training.recorder import Span


def _gossip(step, late=0.0, rank=0):
    begin = 1e9 + step + late
    return Span(recorder.GOSSIP, step, begin, 0.5 - late, peers=(1 - rank,))


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
    shared = {rank: Shared(each.spans, each.heard, each.part) for rank, each in samples.items()}
    waiting = sample_lib.waiting(shared)
    assert waiting.tolist() == [[0, pytest.approx(2500)], [0, 0]]


def test_ranks_without_spans_did_not_wait():
    assert sample_lib.waiting({0: Shared([], 0, 1.0), 2: Shared([], 0, 1.0)}).tolist() == [
        [0, 0],
        [0, 0],
    ]
