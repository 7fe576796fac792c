"""Build one round of a topology, and check how many ranks a topology shall have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm.graph import Floats, Ranks, Round


def check_ranks(name: str, n: object) -> int:
    """Return `n`, the number of ranks of the topology `name`, as an int.

    Raises:
      ValueError: `n` is not a whole number >= 1.
    """
    return _validate.check_whole(f"n of {name}", n, at_least=1, unit="ranks")


def identity(n: int) -> Round:
    """Return the round of a graph without edges, W = I: no rank averages with another."""
    none = np.zeros(0, dtype=np.int64)
    return Round(none, none.copy(), np.zeros(0), np.ones(n))


def circulant(n: int, weights: Mapping[int, float]) -> Round:
    """Return the round in which each rank i receives from rank (i - hop) % n, for several hops.

    Args:
      n: number of ranks.
      weights: a dict from each hop to the weight that rank i gives to the parameters of rank
        (i - hop) % n.
    """
    ranks = np.arange(n)
    receivers = np.tile(ranks, len(weights))
    senders = np.concatenate([(ranks - hop) % n for hop in weights] or [ranks[:0]])
    edge_weights = np.repeat(np.array(list(weights.values()), dtype=np.float64), n)
    return Round(receivers, senders, edge_weights, np.full(n, 1.0 - sum(weights.values())))


def metropolis_hastings(n: int, edges: Iterable[tuple[int, int]]) -> Round:
    """Return the round of an undirected graph, with Metropolis-Hastings weights.

    For each edge, `W[i, j] = W[j, i] = 1 / (1 + max(deg_i, deg_j))`, where deg_i is the number of
    neighbors of rank i. The diagonal of W makes each row sum to one. Self-loops are ignored.

    Args:
      n: number of ranks.
      edges: pairs of ranks. Each pair must occur only once, in either order.
    """
    distinct = sorted((i, j) for i, j in edges if i != j)
    pairs = np.array(distinct, dtype=np.int64).reshape(-1, 2)
    degree = np.bincount(pairs.ravel(), minlength=n)
    return symmetric(n, pairs, 1 / (1 + np.maximum(degree[pairs[:, 0]], degree[pairs[:, 1]])))


def symmetric(n: int, pairs: Ranks, weights: Floats) -> Round:
    """Return the round in which the two ranks of each pair give each other the same weight.

    The diagonal of W makes each row sum to one.

    Args:
      n: number of ranks.
      pairs: pairs of different ranks, `[pairs, 2]`. Each pair must occur only once.
      weights: the weight of each pair, `[pairs]`.
    """
    receivers = np.concatenate([pairs[:, 0], pairs[:, 1]])
    senders = np.concatenate([pairs[:, 1], pairs[:, 0]])
    edge_weights = np.concatenate([weights, weights])
    received = np.bincount(receivers, weights=edge_weights, minlength=n)
    self_weights = np.asarray(1.0 - received, dtype=np.float64)
    return Round(receivers, senders, edge_weights, self_weights)


def hops(n: int) -> list[int]:
    """Return the powers of two below n (1, 2, 4, …), ceil(log2 n) in total."""
    return [1 << k for k in range((n - 1).bit_length())]


def most_square(n: int) -> tuple[int, int]:
    """Return the number of rows and columns of the most nearly square grid of n ranks."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows


def undirected(a: int, b: int) -> tuple[int, int]:
    """Return an edge with its lower rank first, so that a set stores each edge only once."""
    return (a, b) if a < b else (b, a)
