"""Build topologies: who averages with whom, and with what weights.

Ranks are numbered 0 … size-1. The smaller `Topology.beta` is, the faster gossip brings the ranks'
parameters together.

To add a topology, write a function of the number of ranks `n` in this module (or in `exact`, if one
cycle averages exactly), and add the function to `BY_NAME` and `__all__`. Up to 512 ranks,
`tf_gossip_pga.plan` computes beta from the mixing matrices. For more ranks, it needs a formula for
beta in `tf_gossip_pga.plan.cost.beta_of`.

Example:
  >>> from tf_gossip_pga import topology
  >>> topology.ring(4).weights(0)[0]
  array([0.33333333, 0.33333333, 0.        , 0.33333333])
  >>> topology.one_peer_exponential(8).rounds
  3

Sources: ring, grid and static exponential weights: Chen et al., "Accelerating Gossip SGD with
Periodic Global Averaging", ICML 2021. One-peer exponential: Assran et al., "Stochastic Gradient
Push", ICML 2019, and Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
Training", NeurIPS 2021. Metropolis-Hastings weights: Xiao and Boyd, "Fast linear iterations for
distributed averaging", 2004.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tf_gossip_pga.algorithm import rounds
from tf_gossip_pga.algorithm.exact import base_2, base_graph, hypercube
from tf_gossip_pga.algorithm.graph import Round, Topology
from tf_gossip_pga.tools import memory

__all__ = [
    "BY_NAME",
    "Round",
    "Topology",
    "base_2",
    "base_graph",
    "complete",
    "disconnected",
    "from_matrix",
    "from_networkx",
    "grid",
    "hypercube",
    "one_peer_exponential",
    "resolve",
    "resolve_for_survivors",
    "ring",
    "static_exponential",
    "torus",
]

_BYTES_AN_EDGE = 224  # memory that `complete` needs per edge, which is a Python object


class UndirectedGraph(Protocol):
    """The part of `networkx.Graph` that `from_networkx` reads."""

    @property
    def nodes(self) -> Iterable[Hashable]:
        """The nodes, in rank order."""
        ...

    def edges(self) -> Iterable[tuple[Hashable, Hashable]]:
        """Return the edges as pairs of nodes."""
        ...

    def is_directed(self) -> bool:
        """Return whether the edges have a direction."""
        ...


def ring(n: int) -> Topology:
    """Connect each rank to its two neighbors on a circle, with weights 1/3 (1/2 if n = 2).

    `beta = 1/3 + 2/3 cos(2 pi / n)` for n >= 3.

    Source: Chen et al., ICML 2021.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> ring(8).neighbors(0, rank=0)[0]
      {1: 0.3333333333333333, 7: 0.3333333333333333}
    """
    n = rounds.check_ranks("ring", n)
    return _undirected("ring", n, {rounds.undirected(i, (i + 1) % n) for i in range(n)})


def grid(n: int) -> Topology:
    """Connect neighbors in the most nearly square grid, without wraparound (a path if n is prime).

    The weights are Metropolis-Hastings, `1 / (1 + max(deg_i, deg_j))`, where deg_i is the number of
    neighbors of rank i. With 16 ranks, beta is 0.8686, which Chen et al. print as 0.868.

    Source: Chen et al., ICML 2021.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> sorted(grid(6).neighbors(0, rank=0)[0])  # ranks 0 1 2 above ranks 3 4 5
      [1, 3]
    """
    n = rounds.check_ranks("grid", n)
    columns = rounds.most_square(n)[1]
    right = {(i, i + 1) for i in range(n) if (i + 1) % columns}
    down = {(i, i + columns) for i in range(n - columns)}
    return _undirected("grid", n, right | down)


def torus(n: int) -> Topology:
    """Connect ranks as in `grid`, but with wraparound (a ring if n is prime).

    The weights are Metropolis-Hastings, as in `grid`.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> torus(9).neighbors(0, rank=0)[0]
      {1: 0.2, 2: 0.2, 3: 0.2, 6: 0.2}
    """
    n = rounds.check_ranks("torus", n)
    rows, columns = rounds.most_square(n)
    edges: set[tuple[int, int]] = set()
    for rank in range(n):
        row, column = divmod(rank, columns)
        right = row * columns + (column + 1) % columns
        down = (row + 1) % rows * columns + column
        edges |= {rounds.undirected(rank, right), rounds.undirected(rank, down)}
    return _undirected("torus", n, edges)


def static_exponential(n: int) -> Topology:
    """Have each rank receive from the ranks that are 1, 2, 4, … places before it on a circle.

    The graph is directed, and all weights are 1 / (1 + ceil(log2 n)). For even n,
    `beta = 1 - 2 / (2 + floor(log2(n - 1)))`.

    Source: Ying et al., NeurIPS 2021.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> static_exponential(8).neighbors(0, rank=0)
      ({7: 0.25, 6: 0.25, 4: 0.25}, 0.25)
    """
    n = rounds.check_ranks("static_exponential", n)
    hops = rounds.hops(n)
    weights = dict.fromkeys(hops, 1 / (1 + len(hops)))
    return Topology("static_exponential", n, (rounds.circulant(n, weights),))


def one_peer_exponential(n: int) -> Topology:
    """Have each rank receive from one rank per round, at distances 1, 2, 4, … on a circle.

    In round k, counted from 0, each rank receives from the rank that is 2^(k mod ceil(log2 n))
    places before it. All weights are 1/2. The graph is directed: in each round, every rank sends
    one message and receives one. If n is a power of two, any log2 n consecutive rounds average
    exactly. For other n, the average is not exact.

    Source: Assran et al., ICML 2019; exact averaging: Ying et al., NeurIPS 2021.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of ceil(log2 n) rounds, or of one round if n is 1.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> [one_peer_exponential(8).neighbors(k, rank=0)[0] for k in range(3)]
      [{7: 0.5}, {6: 0.5}, {4: 0.5}]
    """
    n = rounds.check_ranks("one_peer_exponential", n)
    cycle = tuple(rounds.circulant(n, {hop: 0.5}) for hop in rounds.hops(n))
    return Topology("one_peer_exponential", n, cycle or (rounds.identity(n),))


def complete(n: int) -> Topology:
    """Connect all ranks, with weights 1/n, so each round is a global average (Parallel SGD).

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.
      MemoryError: the graph's n^2 / 2 edges do not fit into this machine's memory.

    Example:
      >>> complete(4).weights(0)[0]
      array([0.25, 0.25, 0.25, 0.25])
    """
    n = rounds.check_ranks("complete", n)
    memory.check(_BYTES_AN_EDGE * n * n // 2, f"The complete graph of {n} ranks")
    return _undirected("complete", n, ((i, j) for j in range(n) for i in range(j)))


def disconnected(n: int) -> Topology:
    """Connect no ranks (W = I). With a global average every H steps, this is Local SGD.

    Args:
      n: number of ranks, >= 1.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: `n` is not a whole number >= 1.

    Example:
      >>> disconnected(4).neighbors(0, rank=3)
      ({}, 1.0)
    """
    n = rounds.check_ranks("disconnected", n)
    return Topology("disconnected", n, (rounds.identity(n),))


def from_matrix(W: npt.ArrayLike) -> Topology:  # noqa: N803 (the literature's name)
    """Return a one-round topology with your own doubly stochastic matrix.

    Args:
      W: array-like `[n, n]`, converted to float64. `W[i, j]` is the weight that rank i gives to the
        parameters of rank j.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: the matrix is not square, has a weight that is negative or not finite, or is not
        doubly stochastic. In the last case, the message names a row or column whose sum is not 1,
        and how far its sum is from 1.

    Example:
      >>> from_matrix([[0.75, 0.25], [0.25, 0.75]]).beta
      0.5
    """
    matrix = np.array(W, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"A mixing matrix must be square, [ranks, ranks]; received shape {matrix.shape}."
        )
    diagonal = matrix.diagonal().copy()
    np.fill_diagonal(matrix, 0)
    receivers, senders = np.nonzero(matrix)
    each = Round(receivers, senders, matrix[receivers, senders], diagonal)
    return Topology("from_matrix", len(matrix), (each,))


def from_networkx(graph: UndirectedGraph) -> Topology:
    """Return the topology of an undirected networkx graph, with Metropolis-Hastings weights.

    Args:
      graph: a `networkx.Graph`. Ranks follow the order of `graph.nodes`. Self-loops are ignored.

    Returns:
      A `Topology` of one round.

    Raises:
      ValueError: the graph is directed or empty.

    Example:
      >>> import networkx
      >>> from_networkx(networkx.petersen_graph()).size
      10
    """
    if graph.is_directed():
        raise ValueError(
            "from_networkx needs an undirected graph, received a directed one: its weights would "
            "not be doubly stochastic. Call graph.to_undirected(), or give weights of your own to "
            "from_matrix."
        )
    rank = {node: i for i, node in enumerate(graph.nodes)}
    n = rounds.check_ranks("from_networkx", len(rank))
    # In a multigraph, the attribute `edges` yields (node, node, key), but edges() yields pairs.
    edges = {rounds.undirected(rank[a], rank[b]) for a, b in graph.edges()}
    return _undirected("from_networkx", n, edges)


BY_NAME: dict[str, Callable[[int], Topology]] = {
    build.__name__: build
    for build in (
        ring,
        grid,
        torus,
        static_exponential,
        one_peer_exponential,
        base_2,
        hypercube,
        complete,
        disconnected,
    )
}


def resolve(topology: str | Topology, size: int) -> Topology:
    """Return the `Topology` that a user gave, or build the one whose name the user gave.

    Args:
      topology: one of the names in `BY_NAME`, or a `Topology`.
      size: number of ranks that the topology must have.

    Returns:
      A `Topology` of `size` ranks.

    Raises:
      ValueError: the name is unknown, its graph does not exist for `size` ranks, or the given
        `Topology` does not have `size` ranks.
      TypeError: `topology` is neither a name nor a `Topology`.

    Example:
      >>> resolve("ring", 4)
      Topology('ring', size=4, rounds=1)
    """
    if isinstance(topology, str):
        if topology not in BY_NAME:
            raise ValueError(
                f"Unknown topology {topology!r}. Known names: {', '.join(sorted(BY_NAME))}; "
                "or pass a Topology, for example pga.topology.from_matrix(W)."
            )
        return BY_NAME[topology](size)
    if not isinstance(topology, Topology):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "topology must be a name or a Topology, received "
            f"{topology!r} of type {type(topology).__name__}."
        )
    if topology.size != size:
        raise ValueError(
            f"Topology {topology.name!r} is for {topology.size} ranks, but the cluster has {size} "
            f"workers. Build the topology for {size} ranks, or pass a name such as 'ring', for "
            "which the topology is built automatically."
        )
    return topology


def default(size: int, pairs: bool = False) -> Topology:
    """Return the default topology, for a run whose user has not chosen a topology.

    Args:
      size: number of ranks.
      pairs: whether two ranks that send to each other need no more time than for one message, as
        over NCCL.

    Returns:
      `hypercube` if `pairs` is true and `size` is a power of two, else `one_peer_exponential`. In
      simulated training, `base_2` kept ranks less close together than `one_peer_exponential`.

    Example:
      >>> default(8, pairs=True), default(6, pairs=True)
      (Topology('hypercube', size=8, rounds=3), Topology('one_peer_exponential', size=6, rounds=3))
    """
    is_power_of_two = size & (size - 1) == 0
    return hypercube(size) if pairs and is_power_of_two else one_peer_exponential(size)


def resolve_for_survivors(topology: str | Topology, size: int) -> Topology:
    """Return the topology for the surviving workers of a run that began with `topology`.

    A topology that was given by name is kept if its graph exists for `size` ranks. A `Topology` is
    kept if it has `size` ranks. In all other cases, return the one-peer exponential graph.

    Args:
      topology: one of the names in `BY_NAME`, or a `Topology`.
      size: number of surviving workers.

    Returns:
      A `Topology` of `size` ranks.

    Example:
      >>> resolve_for_survivors("hypercube", 6)
      Topology('one_peer_exponential', size=6, rounds=3)
    """
    try:
        return resolve(topology, size)
    except ValueError:
        return one_peer_exponential(size)


def _undirected(name: str, n: int, edges: Iterable[tuple[int, int]]) -> Topology:
    return Topology(name, n, (rounds.metropolis_hastings(n, edges),))
