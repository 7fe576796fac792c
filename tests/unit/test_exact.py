"""The topologies that average exactly: published lengths, at most k peers, exact at every size."""

import functools
import math

import numpy as np
import pytest

from tf_gossip_pga.algorithm import topology

SIZES = range(1, 201)
T = 1 / 3

base_graph = functools.cache(topology.base_graph)


def degree(each, size):
    return np.bincount(each.receivers, minlength=size).max()


@pytest.mark.parametrize("k", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3))])
def test_a_cycle_averages_exactly_with_at_most_k_peers(k):
    for n in SIZES:
        topo = base_graph(n, k)
        product = np.eye(n)
        for round in range(topo.rounds):
            matrix = topo.weights(round)
            assert np.array_equal(matrix, matrix.T), topo
            assert degree(topo.cycle[round], n) <= k, topo
            assert not topo.cycle[round].is_empty or n == 1, topo
            assert topo.is_matching(round) or k > 1, topo
            product = matrix @ product
        assert np.abs(product - 1 / n).max() < 1e-12, topo


def has_factors_up_to(n, largest):
    for factor in range(2, largest + 1):
        while n % factor == 0:
            n //= factor
    return n == 1


@pytest.mark.parametrize(
    "k", [1, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 4, 6, 9))]
)
def test_lengths_are_within_the_published_bounds(k):
    # Takezawa et al. 2023: at most 2 log_{k+1}(n) + 2 rounds; and the HyperHyperCube, which exists
    # if no prime factor of n exceeds k + 1, has at most max(1, 2 log_{k+2}(n)).
    for n in SIZES:
        topo = base_graph(n, k)
        assert topo.rounds <= 2 * math.log(n, k + 1) + 2, topo
        assert topo.rounds >= math.log(n, k + 1) - 1e-9, topo  # a rank hears from no more ranks
        if has_factors_up_to(n, k + 1):
            assert topo.rounds <= max(1, 2 * math.log(n, k + 2) + 1e-9), topo


def test_lengths_of_base_2():
    for n in SIZES:
        power = (n & -n).bit_length() - 1  # n = 2^power q
        q = n >> power
        expected = power if q == 1 else power + 1 + 2 * math.floor(math.log2(q))
        assert topology.base_2(n).rounds == max(1, expected), n
    assert [topology.base_2(n).rounds for n in (3, 5, 6, 7, 12, 100)] == [3, 5, 4, 5, 5, 11]


@pytest.mark.parametrize("power", range(8))
def test_base_2_of_a_power_of_two_is_the_hypercube(power):
    base, cube = topology.base_2(2**power), topology.hypercube(2**power)
    assert base.rounds == cube.rounds == max(1, power)
    for round in range(cube.rounds):
        np.testing.assert_array_equal(base.weights(round), cube.weights(round))


def test_three_ranks_worked_by_hand():
    # n = 2 + 1. Ranks 0 and 1 average; rank 2 takes 2/3 of rank 0's value, and gives as much;
    # ranks 0 and 1 average again: (1 + 3) / 2, (2 + 2 * 8) / 3 and (8 + 2 * 2) / 3, (6 + 2) / 2.
    topo, values = topology.base_2(3), np.array([1.0, 3.0, 8.0])
    for round, expected in enumerate([[2, 2, 8], [6, 2, 4], [4, 4, 4]]):
        values = topo.weights(round) @ values
        np.testing.assert_allclose(values, expected, rtol=1e-15)


def test_two_peers_worked_by_hand():
    # n = 7 = 2 * 3 + 1: two rounds in the box of 2 times 3 ranks. In the third, rank 6 takes
    # 6/7 / 2 of each of ranks 0 and 3. Ranks 1, 2 and 4, which rank 6 does not need, average; rank
    # 5 remains. At last, ranks 0, 1 and 2 average, and so do ranks 3, 4 and 5.
    topo = topology.base_graph(7, 2)
    assert topo.rounds == 4
    assert topo.neighbors(0, 4) == ({5: 0.5}, 0.5)
    assert topo.neighbors(1, 4)[0] == {0: T, 2: T}
    assert topo.neighbors(2, 6)[0] == pytest.approx({0: 3 / 7, 3: 3 / 7})
    assert topo.neighbors(2, 4)[0] == {1: T, 2: T}
    assert topo.neighbors(2, 5) == ({}, 1.0)
    assert topo.neighbors(3, 4)[0] == {3: T, 5: T}


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_enough_peers_give_a_global_average(n):
    for k in (n - 1, n, 5 * n):
        topo = topology.base_graph(n, k)
        assert topo.rounds == 1
        np.testing.assert_allclose(topo.weights(0), 1 / n, rtol=0, atol=1e-15)
    assert topology.base_graph(1, 3).rounds == 1
    assert topology.base_graph(1, 3).cycle[0].is_empty


@pytest.mark.parametrize(("n", "k"), [(1000, 1), (1023, 1), (2047, 2), (3000, 6)])
def test_thousands_of_ranks(n, k):
    topo, start = topology.base_graph(n, k), np.random.default_rng(n).normal(size=n)
    values = start
    for each in topo.cycle:
        received = np.bincount(each.receivers, each.edge_weights * values[each.senders], n)
        values = each.self_weights * values + received
    np.testing.assert_allclose(values, start.mean(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [0, -1, 1.5, "1"])
def test_the_number_of_peers_is_checked(k):
    with pytest.raises(ValueError, match=r"k of base_graph must be a whole number .*>= 1"):
        topology.base_graph(4, k)


def test_names_and_digests():
    assert topology.base_2(6).name == "base_2"
    assert topology.base_graph(6, 1).name == "base_graph"
    assert topology.base_2(6).cycle[2].edge_weights.tolist() == (
        topology.base_graph(6, 1).cycle[2].edge_weights.tolist()
    )
    assert topology.base_graph(6, 1).digest != topology.base_graph(6, 2).digest


def test_a_graph_that_does_not_fit_into_memory_is_not_begun(monkeypatch):
    monkeypatch.setattr("tf_gossip_pga.tools.memory.available", lambda: 10**6)
    with pytest.raises(MemoryError, match=r"The base_graph of 2000 ranks, with k=1999, needs"):
        topology.base_graph(2000, 1999)
    assert topology.base_2(2000).size == 2000
