"""Build the topologies that average exactly: after one cycle, all ranks hold the mean.

Sources: Base-(k+1) graph: Takezawa, Sato, Bao, Niwa and Yamada, "Beyond Exponential Graph:
Communication-Efficient Topologies for Decentralized Learning via Finite-time Convergence", NeurIPS
2023 (arXiv:2305.11420). The functions here follow its mathematics. One-peer hypercube: Ying et al.,
"Exponential Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021.
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import rounds
from tf_gossip_pga.algorithm.graph import Ranks, Round, Topology
from tf_gossip_pga.tools import memory

_BYTES_A_LINK = 100  # memory that `base_graph` needs per link of a round, roughly

# Pairs of ranks, `[pairs, 2]`, and the weight that both ranks of a pair give each other.
_Links: TypeAlias = tuple[Ranks, float]


def hypercube(n: int) -> Topology:
    """Pair rank i with rank i xor 2^k in round k = 0, 1, …, with weights 1/2.

    One cycle of log2 n rounds averages exactly.

    Args:
      n: number of ranks, a power of two.

    Returns:
      A `Topology` of log2 n rounds, or of one round if n is 1.

    Raises:
      ValueError: `n` is not a power of two.

    Example:
      >>> hypercube(8).neighbors(1, rank=5)
      ({7: 0.5}, 0.5)
    """
    n = rounds.check_ranks("hypercube", n)
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise ValueError(
            f"hypercube needs a number of ranks that is a power of two, received n={n}. "
            f"The nearest sizes are {below} and {2 * below}; "
            "one_peer_exponential and base_2 accept every size."
        )
    ranks = np.arange(n)
    cycle = tuple(
        Round(ranks, ranks ^ hop, np.full(n, 0.5), np.full(n, 0.5)) for hop in rounds.hops(n)
    )
    return Topology("hypercube", n, cycle or (rounds.identity(n),))


def base_2(n: int) -> Topology:
    """Pair ranks so that one cycle averages exactly, for every number of ranks.

    This is the Base-(k+1) graph with k = 1, `base_graph(n, 1)`. In each round, a rank exchanges
    parameters with at most one other rank, and both give each other the same weight. If n is a
    power of two, the graph is the hypercube. For n = 2^s q with an odd q > 1, a cycle has
    s + 1 + 2 floor(log2 q) rounds: 3 for n = 3, 4 for n = 6, 5 for n = 7.

    In simulated training, the ranks were closer together on `one_peer_exponential`, although that
    graph averages exactly only if n is a power of two.

    Source: Takezawa et al., NeurIPS 2023.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of at most 2 log2 n + 2 rounds.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> base_2(3).rounds, base_2(3).beta < 1e-12
      (3, True)
      >>> [base_2(3).neighbors(k, rank=2)[0] for k in range(3)]
      [{}, {0: 0.6666666666666666}, {}]
    """
    return _base("base_2", n, 1)


def base_graph(n: int, k: int) -> Topology:
    """Have each rank exchange with at most k others per round, so that one cycle averages exactly.

    This is the Base-(k+1) graph. It exists for every number of ranks. A larger k shortens the
    cycle, but each round then needs up to k messages per rank. For k >= n - 1, the only round is a
    global average.

    Source: Takezawa et al., NeurIPS 2023.

    Args:
      n: number of ranks, >= 1.
      k: maximum number of ranks that a rank exchanges with in one round, >= 1.

    Returns:
      A `Topology` of at most 2 log(n) / log(k + 1) + 2 rounds.

    Raises:
      ValueError: `n` or `k` is not a whole number >= 1.
      MemoryError: the n k / 2 links of a round do not fit into this machine's memory.

    Example:
      >>> [base_graph(25, k).rounds for k in (1, 2, 3, 4)]
      [9, 6, 5, 2]
    """
    return _base("base_graph", n, _validate.check_whole("k of base_graph", k, at_least=1))


def _base(name: str, n: int, k: int) -> Topology:
    """Build the Base-(k+1) graph: the shorter of two cycles.

    The first cycle is `_simple` of all n ranks. The second splits off the largest divisor q of n
    whose prime factors all exceed k + 1. It averages each of the n / q runs of q ranks with
    `_simple`, and then, in the rounds of `_cube`, the ranks at the same place of every run.
    """
    n = rounds.check_ranks(name, n)
    memory.check(_BYTES_A_LINK * n * min(k, n), f"The {name} of {n} ranks, with k={k},")
    q = _rough_part(n, k)
    runs = q * np.arange(n // q).reshape(-1, 1, 1)
    copies = [
        [((pairs + runs).reshape(-1, 2), weight) for pairs, weight in each]
        for each in _simple(q, k)
    ]
    places = np.arange(n).reshape(-1, q).T
    across = [_cube(places, k, round) for round in range(len(_factors(n // q, k)))]
    cycle = min([*copies, *across], _simple(n, k), key=len)
    return Topology(name, n, tuple(_round(n, each) for each in cycle) or (rounds.identity(n),))


def _round(n: int, links: list[_Links]) -> Round:
    pairs = np.concatenate([each for each, _ in links])
    weights = np.concatenate([np.full(len(each), weight) for each, weight in links])
    return rounds.symmetric(n, pairs, weights)


# ---- Any number of ranks: average within parts, across parts, and within parts again -------------


def _simple(n: int, k: int) -> list[list[_Links]]:
    """Return the cycle of the Simple Base-(k+1) graph: for each round, who exchanges with whom.

    Write n in base k + 1 and give each digit a > 0, of place value v, a part of a v ranks. Parts
    are ordered by falling place value, so the ranks in all parts after one are fewer than its v.

    1. Every part averages within itself, in the rounds of `_cube`.
    2. Part 0 exchanges with all later ranks in one round (`_spread`). Afterwards, the ranks of
       each of its a subsets of v ranks average to the mean of all n ranks, and so do the later
       ranks, which repeat this step with part 1, part 2, …
    3. Each subset averages within itself. The ranks of the last part already hold the mean.
    """
    parts = _parts(n, k)
    within = len(_factors(parts[0].size, k))
    if len(parts) == 1:
        return [_cube(parts[0].reshape(1, -1), k, round) for round in range(within)]
    last = len(parts) - 1
    cycle: list[list[_Links]] = []
    for round in range(within + 1 + len(_factors(parts[0].shape[1], k))):
        links: list[_Links] = []
        for number, part in enumerate(parts):
            since = round - within - number  # rounds since this part's own turn in step 2
            if round < within or (number == last and since >= 0):
                links += _cube(part.reshape(1, -1), k, round)
            elif since == 0:
                links += _spread(part, np.arange(int(part[-1, -1]) + 1, n), k)
            elif since > 0:
                links += _cube(part, k, since - 1)
        cycle.append(links)
    return cycle


def _parts(n: int, k: int) -> list[Ranks]:
    """Return the ranks of each part, `[a, v]` for a digit a of place value v in base k + 1."""
    parts: list[Ranks] = []
    value = 1
    while value * (k + 1) <= n:
        value *= k + 1
    first = 0
    while first < n:
        digit = (n - first) // value
        if digit:
            parts.append(np.arange(first, first + digit * value).reshape(digit, value))
        first += digit * value
        value //= k + 1
    return parts


def _spread(part: Ranks, later: Ranks, k: int) -> list[_Links]:
    """Link each later rank to one rank of every subset of a part, `[a, v]`, with a <= k.

    Each later rank takes the share |part| / (|part| + |later|) from the part, which is the part's
    share in the mean. The ranks of the part that no later rank needs hold equal values if gossip is
    exact; during training, it helps that they average in groups of k + 1.
    """
    weight = part.size / (part.size + later.size) / len(part)
    links = [(np.stack([subset[: later.size], later], axis=1), weight) for subset in part]
    idle = part[:, later.size :].ravel()
    grouped = idle.size - idle.size % (k + 1)
    for groups in (idle[:grouped].reshape(-1, k + 1, 1), idle[grouped:].reshape(1, -1, 1)):
        links += _cliques(groups) if groups.size else []
    return links


# ---- Numbers of ranks whose prime factors are at most k + 1: average along one axis per round ----


def _cube(ranks: Ranks, k: int, round: int) -> list[_Links]:
    """Return the links of one round of the HyperHyperCube of each row of `ranks`.

    Arrange a row in a box whose sides are `_factors` of its length. Each round averages along one
    axis of the box. Rounds repeat cyclically. A row of one rank has no links.
    """
    sides = _factors(ranks.shape[1], k)
    if not sides:
        return []
    axis = round % len(sides)
    return _cliques(ranks.reshape(-1, sides[axis], math.prod(sides[:axis])))


def _cliques(groups: Ranks) -> list[_Links]:
    """Return the links that average along axis 1 of an array, `[batch, size, batch]`."""
    size = groups.shape[1]
    first, second = np.triu_indices(size, 1)
    pairs = np.stack([groups[:, first], groups[:, second]], axis=-1).reshape(-1, 2)
    return [(pairs, 1 / size)]


@functools.cache
def _factors(n: int, k: int) -> tuple[int, ...]:
    """Return as few factors as possible, each from 2 to k + 1, whose product is n.

    `n` must have no prime factor above k + 1.
    """
    if n == 1:
        return ()
    divisors = (factor for factor in range(2, min(n, k + 1) + 1) if n % factor == 0)
    found = [(factor, *_factors(n // factor, k)) for factor in divisors]
    return min(found, key=len)


def _rough_part(n: int, k: int) -> int:
    """Return the largest divisor of n whose prime factors all exceed k + 1."""
    for factor in range(2, min(n, k + 1) + 1):
        while n % factor == 0:
            n //= factor
    return n
