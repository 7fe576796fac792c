"""The consensus distance, worked by hand."""

import math

import pytest

from tf_gossip_pga.exchange import averager as averager_lib


def test_consensus_distance_is_the_root_mean_square_over_the_norm():
    # Replicas (3, 4) + (1, 0), (3, 4) - (1, 0) and (3, 4): squares 1, 1, 0 around a mean of norm 5.
    squares = [(1.0, 25.0), (1.0, 0.0), (0.0, 0.0)]  # rank 0 takes the norm for all
    assert averager_lib.consensus_distance(squares) == pytest.approx(math.sqrt(2 / 3) / 5)


def test_consensus_distance_of_equal_replicas_is_zero_even_at_the_origin():
    assert averager_lib.consensus_distance([(0.0, 0.0), (0.0, 0.0)]) == 0
