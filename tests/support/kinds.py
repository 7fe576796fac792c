"""Exchange messages of every kind on several graphs, and check the numbers against NumPy."""

import numpy as np

from tests.support import deadlines, product
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Topology

_SHAPE = (3, 700)  # two parameters and a statistic


def graphs(n: int) -> list[Topology]:
    """Return a graph with one pair and no other edge, a directed graph, and graphs of pairs."""
    uneven = np.eye(n)
    uneven[:2, :2] = [[0.75, 0.25], [0.25, 0.75]]
    several = [topology_lib.from_matrix(uneven), topology_lib.one_peer_exponential(n)]
    return [*several, topology_lib.hypercube(n)] if n & (n - 1) == 0 else several


def exchange(cluster, encoding: str) -> list:
    """Gossip twice, average globally, and broadcast, on each graph.

    Each rank builds its averager from the same values as the others, and then assigns its own. A
    lossy encoding sends the difference of both.

    Returns:
      This rank's own values, and for each graph its values after the gossips, after the global
      average, and after a broadcast of the first rank's own values.
    """
    import tensorflow as tf

    from tf_gossip_pga.exchange import averager as averager_lib
    from tf_gossip_pga.exchange import wire

    session = product.active()
    equal = np.random.default_rng(99).normal(size=_SHAPE).astype(np.float32)
    own = np.random.default_rng(cluster.rank).normal(size=_SHAPE).astype(np.float32)
    found = []
    for graph in graphs(cluster.size):
        with tf.device(session.transport.device):
            variables = [tf.Variable(row) for row in equal]
        averager = averager_lib.Averager(
            session,
            graph,
            averager_lib.Variables(variables[:2], statistics=variables[2:]),
            averager_lib.Patience(deadlines.scaled(60), deadlines.scaled(60)),
            wire.resolve(encoding),
        )

        def values(variables=variables):
            return [variable.numpy().tolist() for variable in variables]

        _assign(variables, own)
        averager.gossip(0, "the test")
        averager.gossip(1, "the test")
        results = [values()]
        averager.global_average("the test")
        results.append(values())
        _assign(variables, own)
        averager.broadcast("the test")
        found.append([*results, values()])
    return [own.tolist(), found]


def check(ranks: list, tolerance: float) -> None:
    """Check what `exchange` has returned on all ranks.

    Args:
      ranks: the results, in rank order.
      tolerance: largest difference that the encoding may make to two gossips.
    """
    own = np.array([rank[0] for rank in ranks])  # [ranks, variables, numbers]
    for index, graph in enumerate(graphs(len(ranks))):
        mixed, mean, received = np.array([rank[1][index] for rank in ranks]).swapaxes(0, 1)
        expected = own.copy()
        for round in range(2):
            expected[:, :2] = np.einsum(
                "ij,jvk->ivk", graph.weights(round % graph.rounds), expected[:, :2]
            )
        assert abs(expected - own).max() > 0.5  # so a gossip that changes nothing is noticed
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=tolerance, err_msg=graph.name)
        np.testing.assert_allclose(mean[0], mixed.mean(0), rtol=0, atol=1e-6, err_msg=graph.name)
        assert (mean == mean[0]).all(), graph.name
        assert (received == own[0].astype(np.float32)).all(), graph.name


def _assign(variables: list, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
