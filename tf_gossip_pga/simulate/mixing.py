"""Apply the mixing matrix of a round to all nodes of a simulation at once."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Round


def mixer(each: Round, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that maps y `[nodes, …]` to W y.

    W is the mixing matrix of the round. If at least half of the entries of W are edges, the
    function multiplies y by the dense W. Otherwise, the function reads O(edges) rows of y. If W is
    circulant (each row is the row above, shifted by one), it shifts y; if not, it gathers rows.

    Args:
      each: the round.
      dtype: dtype of y.
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


def _shifts(each: Round, n: int) -> dict[int, float]:
    """Return `{hop: weight}` if W is circulant, and an empty dict otherwise.

    A hop is the number of the receiver minus the number of the sender, modulo n. If W is circulant,
    every node receives over the same hops with the same weights.
    """
    hops = (each.receivers - each.senders) % n
    found, counts = np.unique(hops, return_counts=True)
    if np.any(counts != n) or np.ptp(each.self_weights) > 1e-12:
        return {}
    weights = {int(hop): each.edge_weights[hops == hop] for hop in found}
    if any(np.ptp(weight) > 1e-12 for weight in weights.values()):
        return {}
    return {hop: float(weight[0]) for hop, weight in weights.items()}
