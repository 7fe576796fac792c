"""Weights worked by hand, properties of every name at every size, betas from closed forms."""

import dataclasses
import math
import re

import networkx
import numpy as np
import pytest

from tf_gossip_pga.algorithm import topology

NAMES = sorted(topology.BY_NAME)
T = 1 / 3


def every_size(name, largest=64):
    """The topologies of a name at all sizes that it accepts."""
    for n in range(1, largest + 1):
        if name != "hypercube" or n & (n - 1) == 0:
            yield topology.BY_NAME[name](n)


def label(value):
    return f"{value.name}-{value.size}" if isinstance(value, topology.Topology) else None


def gossip(topo, values):
    """The values of all ranks after each round of one cycle."""
    history = []
    for round in range(topo.rounds):
        values = topo.weights(round) @ values
        history.append(values.tolist())
    return history


# 2 x 2, edges 0-1, 0-2, 1-3, 2-3: every rank has two neighbors.
SQUARE = [[T, T, T, 0], [T, T, 0, T], [T, 0, T, T], [0, T, T, T]]


@pytest.mark.parametrize(
    ("topo", "expected"),
    [
        (topology.ring(1), [[1]]),
        (topology.ring(2), [[0.5, 0.5], [0.5, 0.5]]),
        (topology.ring(4), [[T, T, 0, T], [T, T, T, 0], [0, T, T, T], [T, 0, T, T]]),
        (topology.grid(4), SQUARE),
        # A prime number of ranks is a path 0-1-2 with degrees 1, 2, 1: both edges 1 / (1 + 2).
        (topology.grid(3), [[2 * T, T, 0], [T, T, T], [0, T, 2 * T]]),
        # Two rows joined at both ends are still joined once.
        (topology.torus(4), SQUARE),
        (topology.torus(3), [[T, T, T], [T, T, T], [T, T, T]]),
        # Rank i hears from i - 1 and i - 2.
        (topology.static_exponential(4), [[T, 0, T, T], [T, T, 0, T], [T, T, T, 0], [0, T, T, T]]),
        (topology.static_exponential(2), [[0.5, 0.5], [0.5, 0.5]]),
        (topology.complete(3), [[T, T, T], [T, T, T], [T, T, T]]),
        (topology.disconnected(2), [[1, 0], [0, 1]]),
    ],
    ids=label,
)
def test_weights_worked_by_hand(topo, expected):
    assert topo.rounds == 1
    assert topo.weights(0).dtype == np.float64
    np.testing.assert_allclose(topo.weights(0), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("topo", "expected"),
    [
        (topology.one_peer_exponential(8), [(1, 7), (2, 6), (4,), (1, 7)]),
        (topology.grid(9), [(1, 3)]),
        (topology.disconnected(4), [()]),
    ],
    ids=label,
)
def test_peers_are_those_that_rank_0_sends_to_or_receives_from(topo, expected):
    assert [topo.peers(round, 0) for round in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("topo", "rank", "expected"),
    [
        # 3 x 3: a corner has 2 neighbors, a side 3, the center 4; an edge weighs
        # 1 / (1 + the larger): corner-side 1/4, side-center 1/5.
        (topology.grid(9), 0, {1: 1 / 4, 3: 1 / 4, 0: 1 / 2}),
        (topology.grid(9), 1, {0: 1 / 4, 2: 1 / 4, 4: 1 / 5, 1: 3 / 10}),
        (topology.grid(9), 4, {1: 1 / 5, 3: 1 / 5, 5: 1 / 5, 7: 1 / 5, 4: 1 / 5}),
        # 2 x 3, as near to a square as 6 allows: the edges are 0-1, 1-2, 3-4, 4-5, 0-3, 1-4, 2-5.
        (topology.grid(6), 0, {1: 1 / 4, 3: 1 / 3, 0: 5 / 12}),
        (topology.torus(9), 0, {1: 1 / 5, 2: 1 / 5, 3: 1 / 5, 6: 1 / 5, 0: 1 / 5}),
        (topology.torus(6), 0, {1: 1 / 4, 2: 1 / 4, 3: 1 / 4, 0: 1 / 4}),
        # ceil(log2 5) = 3 neighbors, 1, 2 and 4 before rank 0.
        (topology.static_exponential(5), 0, {4: 1 / 4, 3: 1 / 4, 1: 1 / 4, 0: 1 / 4}),
    ],
    ids=label,
)
def test_one_row_worked_by_hand(topo, rank, expected):
    row = [expected.get(sender, 0) for sender in range(topo.size)]
    np.testing.assert_allclose(topo.weights(0)[rank], row, rtol=0, atol=1e-15)


def test_values_worked_by_hand():
    # ring: (0 + 4 + 12) / 3, (0 + 4 + 8) / 3, (4 + 8 + 12) / 3, (8 + 12 + 0) / 3
    np.testing.assert_allclose(gossip(topology.ring(4), [0, 4, 8, 12]), [[16 / 3, 4, 8, 20 / 3]])
    # one peer: rank i hears from i - 1, then from i - 2
    one_peer = gossip(topology.one_peer_exponential(4), [0, 4, 8, 12])
    assert one_peer == [[6, 2, 6, 10], [6, 6, 6, 6]]
    # hypercube: pairs 0-1 and 2-3, then 0-2 and 1-3
    assert gossip(topology.hypercube(4), [0, 4, 8, 12]) == [[2, 2, 10, 10], [6, 6, 6, 6]]
    # three ranks: distances 1 and 2; (0 + 6) / 2, (3 + 0) / 2, (6 + 3) / 2, then i - 2 = i + 1
    three = gossip(topology.one_peer_exponential(3), [0, 3, 6])
    assert three == [[3, 1.5, 4.5], [2.25, 3, 3.75]]


@pytest.mark.parametrize("name", NAMES)
def test_every_size_is_doubly_stochastic_and_cyclic(name):
    for topo in every_size(name):
        values = np.random.default_rng(topo.size).normal(size=topo.size)
        assert topo.name == name
        for round in range(topo.rounds):
            matrix = topo.weights(round)
            assert matrix.shape == (topo.size, topo.size), topo
            assert matrix.dtype == np.float64, topo
            assert matrix.min() > -1e-15, topo
            np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-14, err_msg=str(topo))
            np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-14, err_msg=str(topo))
            assert (matrix @ values).mean() == pytest.approx(values.mean(), abs=1e-14), topo
            for again in (round + topo.rounds, round + 7 * topo.rounds, round - topo.rounds):
                np.testing.assert_array_equal(matrix, topo.weights(again))


@pytest.mark.parametrize("name", ["one_peer_exponential", "hypercube"])
def test_a_cycle_has_one_round_for_each_distance(name):
    for topo in every_size(name):
        matrices = {topo.weights(round).tobytes() for round in range(topo.rounds)}
        assert len(matrices) == topo.rounds == max(1, math.ceil(math.log2(topo.size))), topo


@pytest.mark.parametrize("name", NAMES)
def test_neighbors_and_colors_are_the_edges_of_weights(name):
    for topo in every_size(name, largest=20):
        for round in range(topo.rounds):
            matrix = topo.weights(round)
            for rank in range(topo.size):
                weights, own = topo.neighbors(round, rank)
                expected = {j: w for j, w in enumerate(matrix[rank].tolist()) if w and j != rank}
                assert weights == expected, topo
                assert own == matrix[rank, rank], topo
            check_colors(topo, round)


def check_colors(topo, round):
    colors = topo.colors(round)
    edges = [edge for color in colors for edge in color]
    receivers, senders = np.nonzero(topo.weights(round) * (1 - np.eye(topo.size)))
    expected = list(zip(senders.tolist(), receivers.tolist(), strict=True))
    assert sorted(edges) == sorted(expected), topo
    for color in colors:
        assert len({rank for edge in color for rank in edge}) == 2 * len(color), topo
    messages = np.bincount([*senders, *receivers], minlength=topo.size).max()
    assert len(colors) <= max(0, 2 * messages - 1), topo


def test_neighbors_and_colors_cycle():
    topo = topology.one_peer_exponential(4)
    # Round 3 is round 1: two before.
    assert topo.neighbors(3, 0) == ({2: 0.5}, 0.5)
    assert sorted(edge for color in topo.colors(3) for edge in color) == [
        (0, 2),
        (1, 3),
        (2, 0),
        (3, 1),
    ]


@pytest.mark.parametrize(
    ("topo", "expected"),
    [
        # Chen et al. 2021, Ying et al. 2021
        (topology.ring(8), 0.8047),
        (topology.ring(20), 0.9674),
        (topology.ring(32), 0.9872),
        (topology.ring(50), 0.9947),
        (topology.ring(100), 0.9987),
        (topology.static_exponential(8), 0.5),
        (topology.static_exponential(32), 0.6667),
        (topology.static_exponential(100), 0.75),
        (topology.grid(16), 0.8686),  # printed as 0.868
        # torus r x c: eigenvalues (1 + 2 cos a + 2 cos b) / 5
        (topology.torus(9), 2 / 5),
        (topology.torus(16), 3 / 5),
        (topology.torus(25), (3 + 2 * math.cos(2 * math.pi / 5)) / 5),
    ],
    ids=label,
)
def test_beta_of_the_literature(topo, expected):
    assert topo.beta == pytest.approx(expected, abs=5e-5)


def test_beta_closed_forms():
    assert topology.ring(2).beta == pytest.approx(0, abs=1e-12)
    for n in range(3, 65):
        expected = 1 / 3 + 2 / 3 * math.cos(2 * math.pi / n)
        assert topology.ring(n).beta == pytest.approx(expected, abs=1e-12), n
    for n in range(2, 65, 2):
        expected = 1 - 2 / (2 + math.floor(math.log2(n - 1)))
        assert topology.static_exponential(n).beta == pytest.approx(expected, abs=1e-12), n
    for n in range(2, 65):
        assert topology.complete(n).beta == pytest.approx(0, abs=1e-12), n
        assert topology.disconnected(n).beta == pytest.approx(1, abs=1e-12), n


@pytest.mark.parametrize("name", ["one_peer_exponential", "hypercube"])
@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
def test_log2_rounds_from_any_round_average_exactly(name, n):
    topo = topology.BY_NAME[name](n)
    assert topo.beta == pytest.approx(0, abs=1e-12)
    for first in range(topo.rounds):
        product = np.eye(n)
        for round in range(first, first + topo.rounds):
            product = topo.weights(round) @ product
        np.testing.assert_allclose(product, 1 / n, rtol=1e-12)


@pytest.mark.parametrize(("n", "expected"), [(6, 0.2165), (7, 0.125), (12, 0.2091), (20, 0.1900)])
def test_beta_of_one_peer_exponential_at_other_sizes(n, expected):
    # The cycle multiplies (1 + z) / 2, (1 + z^2) / 2, (1 + z^4) / 2, … at the n-th roots z of one:
    # (1 - z^p) / (p (1 - z)) with p = 2^ceil(log2 n), so |sin(pi m p / n) / (p sin(pi m / n))|.
    p = 1 << (n - 1).bit_length()
    closed = max(
        abs(math.sin(math.pi * m * p / n) / (p * math.sin(math.pi * m / n))) for m in range(1, n)
    )
    assert topology.one_peer_exponential(n).beta == pytest.approx(closed, abs=1e-12)
    assert closed == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_beta_says_whether_gossip_ever_agrees(name):
    for topo in every_size(name):
        if topo.size == 1:
            assert topo.beta == 0
        elif name == "disconnected":
            assert topo.beta == pytest.approx(1)
        else:
            assert topo.beta < 1 - 1e-4, topo


def test_from_matrix_keeps_the_matrix():
    matrix = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
    topo = topology.from_matrix(matrix)
    assert (topo.name, topo.size, topo.rounds) == ("from_matrix", 3, 1)
    np.testing.assert_array_equal(topo.weights(0), matrix)
    assert topo.neighbors(0, 2) == ({0: 0.5}, 0.5)
    check_colors(topo, 0)
    # Eigenvalues (1 + z) / 2 at z = exp(2 pi i / 3): modulus 1/2.
    assert topo.beta == pytest.approx(0.5)
    matrix[0] = 7  # still the caller's own
    assert topo.weights(0)[0, 0] == 0.5


@pytest.mark.parametrize(
    ("matrix", "beta"), [([[0.75, 0.25], [0.25, 0.75]], 0.5), ([[0, 1], [1, 0]], 1), ([[1]], 0)]
)
def test_from_matrix_takes_lists(matrix, beta):
    topo = topology.from_matrix(matrix)
    np.testing.assert_array_equal(topo.weights(0), matrix)
    assert topo.beta == pytest.approx(beta, abs=1e-15)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 2, 3]], r"must be square, \[ranks, ranks\]; received shape \(1, 3\)"),
        ([1, 2], r"must be square.*received shape \(2,\)"),
        ([], r"must be square.*received shape \(0,\)"),
        (np.ones((2, 2, 2)), r"must be square.*received shape \(2, 2, 2\)"),
        # Columns sum to one; rows to 1, 1.5 and 0.5.
        (
            [[0.5, 0.25, 0.25], [0.5, 0.5, 0.5], [0, 0.25, 0.25]],
            r"row 1 sums to 1\.5, \+0\.5 from 1",
        ),
        # Rows sum to one; columns to 0.75, 1.5 and 0.75.
        ([[0.75, 0.25, 0], [0, 0.75, 0.25], [0, 0.5, 0.5]], r"column 1 sums to 1\.5, \+0\.5 from"),
        ([[1, 0], [0, 1 - 1e-6]], r"row 1 sums to 0\.999999, -1e-06 from 1"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"not negative; the least received is -0\.5"),
        ([[-1, 2], [2, -1]], r"not negative; the least received is -1"),
        ([[math.nan, 0], [0, 1]], "must be finite.*received is nan"),
        ([[0.5, math.nan], [0.5, 0.5]], "must be finite.*received is nan"),
        ([[1, math.inf], [0, 1]], "row 0 sums to inf"),
    ],
)
def test_from_matrix_refuses(matrix, message):
    with pytest.raises(ValueError, match=message):
        topology.from_matrix(matrix)


def test_from_networkx_ranks_follow_the_nodes():
    graph = networkx.Graph()
    graph.add_nodes_from(["c", ("a", 1), 2.5])  # labels that do not even compare
    graph.add_edges_from([(("a", 1), 2.5), (2.5, "c"), ("c", "c")])
    # A path with the last rank in the middle; the self-loop of rank 0 is ignored.
    expected = [[2 * T, 0, T], [0, 2 * T, T], [T, T, T]]
    topo = topology.from_networkx(graph)
    assert topo.name == "from_networkx"
    np.testing.assert_allclose(topo.weights(0), expected, rtol=0, atol=1e-15)
    check_colors(topo, 0)


def test_from_networkx_agrees_with_the_names():
    ring = topology.from_networkx(networkx.cycle_graph(7))
    np.testing.assert_array_equal(ring.weights(0), topology.ring(7).weights(0))
    grid = topology.from_networkx(networkx.grid_2d_graph(3, 4))
    np.testing.assert_array_equal(grid.weights(0), topology.grid(12).weights(0))
    # Petersen: 3-regular, eigenvalues 3, 1, -2, and (1 + 1) / 4 is the largest below one.
    assert topology.from_networkx(networkx.petersen_graph()).beta == pytest.approx(0.5)
    lonely = topology.from_networkx(networkx.empty_graph(3))
    np.testing.assert_array_equal(lonely.weights(0), np.eye(3))
    assert lonely.weights(0).dtype == np.float64


def test_from_networkx_counts_parallel_edges_once():
    twice = networkx.MultiGraph([(0, 1), (1, 0), (1, 2)])
    np.testing.assert_array_equal(
        topology.from_networkx(twice).weights(0), topology.grid(3).weights(0)
    )


def test_from_networkx_refuses():
    with pytest.raises(ValueError, match=r"undirected graph, received a directed.*to_undirected"):
        topology.from_networkx(networkx.DiGraph([(0, 1), (1, 0)]))
    with pytest.raises(ValueError, match=r"n of from_networkx must be .* ranks >= 1, received 0"):
        topology.from_networkx(networkx.Graph())


@pytest.mark.parametrize("name", NAMES)
def test_resolve_builds_a_name_and_keeps_a_topology(name):
    built = topology.resolve(name, 8)
    assert (built.name, built.size) == (name, 8)
    assert built.digest == topology.BY_NAME[name](8).digest
    assert topology.resolve(built, 8) is built


def test_resolve_refuses():
    with pytest.raises(ValueError, match=r"Unknown topology 'Ring'\. Known names: ") as caught:
        topology.resolve("Ring", 4)
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(ValueError, match=r"'grid' is for 6 ranks, but the cluster has 4 workers"):
        topology.resolve(topology.grid(6), 4)
    with pytest.raises(TypeError, match=r"a name or a Topology, received 3 of type int"):
        topology.resolve(3, 4)
    with pytest.raises(TypeError, match=r"received <function ring at .*> of type function"):
        topology.resolve(topology.ring, 4)


@pytest.mark.parametrize("size", [3, 4])
def test_survivors_keep_a_named_topology_where_it_exists(size):
    one_peer = topology.one_peer_exponential(size)
    assert topology.resolve_for_survivors("ring", size).digest == topology.ring(size).digest
    own = topology.from_matrix(np.full((5, 5), 1 / 5))
    assert topology.resolve_for_survivors(own, size).digest == one_peer.digest
    found = topology.resolve_for_survivors("hypercube", size)
    assert found.digest == (topology.hypercube(4) if size == 4 else one_peer).digest


@pytest.mark.parametrize("n", [0, -1, 2.5, 4.0, "4", None])
@pytest.mark.parametrize("name", NAMES)
def test_number_of_ranks(name, n):
    message = f"n of {name} must be a whole number of ranks >= 1, received {n!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        topology.BY_NAME[name](n)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_integers_are_whole_numbers(name):
    assert topology.BY_NAME[name](np.int32(4)).digest == topology.BY_NAME[name](4).digest


@pytest.mark.parametrize(("n", "nearest"), [(3, "2 and 4"), (6, "4 and 8"), (63, "32 and 64")])
def test_hypercube_names_the_nearest_sizes(n, nearest):
    message = rf"received n={n}\. The nearest sizes are {nearest}; one_peer_exponential and"
    with pytest.raises(ValueError, match=message):
        topology.hypercube(n)


def test_digest_tells_weights_apart():
    built = [topo for name in NAMES for topo in every_size(name, largest=16)]
    again = [topo for name in NAMES for topo in every_size(name, largest=16)]
    assert [topo.digest for topo in built] == [topo.digest for topo in again]
    assert len({topo.digest for topo in built}) == len(built)

    def two_pairs(own):
        matrix = np.zeros((4, 4))
        matrix[:2, :2] = 0.5
        matrix[2:, 2:] = [[own, 1 - own], [1 - own, own]]
        return topology.from_matrix(matrix).digest

    shift = np.roll(np.eye(4), 1, axis=1)
    assert two_pairs(0.5) == two_pairs(0.5)
    assert two_pairs(0.5) != two_pairs(0.5 + 1e-12)
    assert topology.from_matrix(shift).digest != topology.from_matrix(shift.T).digest


@pytest.mark.parametrize("name", NAMES)
def test_a_topology_cannot_be_changed(name):
    topo = topology.BY_NAME[name](4)
    before = topo.weights(0)
    for each in topo.cycle:
        for array in vars(each).values():
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        topo.size = 5
    topo.weights(0)[:] = 7  # a copy, the caller's to spoil
    np.testing.assert_array_equal(topo.weights(0), before)
