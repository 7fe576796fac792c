"""HOW a simulation averages: a round's sparse matrix, applied to all nodes at once."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm import topology as topology_lib


def mixer(each: topology_lib.Round, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function y `[nodes, …]` -> W y, by shifts where W is circulant.

    O(edges) rows are read. A product with W itself is left to graphs at least half as dense as W.
    """
    n = len(each.self_weights)
    own = tf.constant(each.self_weights, dtype)
    if not len(each.receivers):
        return tf.identity
    if 2 * len(each.receivers) >= n * n:
        weights = tf.constant(each.matrix, dtype)
        return lambda y: tf.tensordot(weights, y, 1)
    shifts = _shifts(each, n)
    if shifts:
        own = own[0]
        return lambda y: own * y + tf.add_n([w * tf.roll(y, hop, 0) for hop, w in shifts.items()])

    def gather(y):
        rank = [-1] + [1] * (len(y.shape) - 1)
        sent = tf.reshape(edges, rank) * tf.gather(y, each.senders)
        received = tf.math.unsorted_segment_sum(sent, each.receivers, n)
        return tf.reshape(own, rank) * y + received

    edges = tf.constant(each.edge_weights, dtype)
    return gather


def _shifts(each: topology_lib.Round, n: int) -> dict[int, float]:
    """Hop -> weight where every node hears from the same hops before it; else nothing."""
    hops = (each.receivers - each.senders) % n
    found, counts = np.unique(hops, return_counts=True)
    if np.any(counts != n) or np.ptp(each.self_weights) > 1e-12:
        return {}
    weights = {int(hop): each.edge_weights[hops == hop] for hop in found}
    if any(np.ptp(weight) > 1e-12 for weight in weights.values()):
        return {}
    return {hop: float(weight[0]) for hop, weight in weights.items()}
