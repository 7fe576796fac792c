"""Build topologies: who averages with whom, and with what weights.

    >>> from tf_gossip_pga import topology
    >>> topology.ring(4).weights(0)[0]
    array([0.33333333, 0.33333333, 0.        , 0.33333333])
    >>> topology.one_peer_exponential(8).rounds
    3

Ranks are 0 … size-1. `Topology.beta` says how fast gossip reaches agreement.

To add a topology, write a function of `n` here, list it in `BY_NAME` and `__all__`. Above 512
ranks the planner knows its beta only if `plan.cost.beta_of` has a formula for it.

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

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import rounds
from tf_gossip_pga.algorithm.graph import Round, Topology
from tf_gossip_pga.tools import memory

__all__ = [
    "BY_NAME",
    "Round",
    "Topology",
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

_BYTES_AN_EDGE = 224  # of the complete graph, while its edges are Python objects


class UndirectedGraph(Protocol):
    """The part of `networkx.Graph` that `from_networkx` reads."""

    @property
    def nodes(self) -> Iterable[Hashable]:
        """The nodes, in the order of the ranks."""
        ...

    def edges(self) -> Iterable[tuple[Hashable, Hashable]]:
        """Return the pairs of joined nodes."""
        ...

    def is_directed(self) -> bool:
        """Return whether edges have a direction."""
        ...


def ring(n: int) -> Topology:
    """Join each rank with its two neighbors on a circle, weights 1/3 (n = 2: 1/2).

    beta = 1/3 + 2/3 cos(2 pi / n) for n >= 3 (Chen et al. 2021).
    """
    n = _ranks("ring", n)
    return _undirected("ring", n, {rounds.undirected(i, (i + 1) % n) for i in range(n)})


def grid(n: int) -> Topology:
    """Join ranks to the rectangle nearest to a square, edges not wrapped (n prime: a path).

    Metropolis-Hastings weights 1 / (1 + max(deg_i, deg_j)); 4 x 4 gives the 0.868 of Chen et al.
    """
    n = _ranks("grid", n)
    columns = rounds.most_square(n)[1]
    right = {(i, i + 1) for i in range(n) if (i + 1) % columns}
    down = {(i, i + columns) for i in range(n - columns)}
    return _undirected("grid", n, right | down)


def torus(n: int) -> Topology:
    """Join the opposite sides of the grid (n prime: a ring). Metropolis-Hastings weights."""
    n = _ranks("torus", n)
    rows, columns = rounds.most_square(n)
    edges: set[tuple[int, int]] = set()
    for rank in range(n):
        row, column = divmod(rank, columns)
        right = row * columns + (column + 1) % columns
        down = (row + 1) % rows * columns + column
        edges |= {rounds.undirected(rank, right), rounds.undirected(rank, down)}
    return _undirected("torus", n, edges)


def static_exponential(n: int) -> Topology:
    """Let each rank receive from the ranks 1, 2, 4, … before it, weights 1 / (1 + ceil(log2 n)).

    Directed. beta = 1 - 2 / (2 + floor(log2(n - 1))) for even n (Ying et al. 2021).
    """
    n = _ranks("static_exponential", n)
    hops = rounds.hops(n)
    weights = dict.fromkeys(hops, 1 / (1 + len(hops)))
    return Topology("static_exponential", n, (rounds.circulant(n, weights),))


def one_peer_exponential(n: int) -> Topology:
    """Let each rank receive from one in round k, 2^(k mod ceil(log2 n)) before it; weights 1/2.

    Directed: every rank sends one message and receives one. For n a power of two, any log2 n
    rounds in a row average exactly; for other n they do not (Ying et al. 2021).
    """
    n = _ranks("one_peer_exponential", n)
    cycle = tuple(rounds.circulant(n, {hop: 0.5}) for hop in rounds.hops(n))
    return Topology("one_peer_exponential", n, cycle or (rounds.identity(n),))


def hypercube(n: int) -> Topology:
    """Pair rank i with rank i xor 2^k in round k, weights 1/2; log2 n rounds average exactly.

    Raises:
      ValueError: n is not a power of two.
    """
    n = _ranks("hypercube", n)
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise ValueError(
            f"hypercube needs a power of two of ranks, received n={n}. "
            f"The nearest sizes are {below} and {2 * below}; "
            "one_peer_exponential accepts every size."
        )
    ranks = np.arange(n)
    cycle = tuple(
        Round(ranks, ranks ^ hop, np.full(n, 0.5), np.full(n, 0.5)) for hop in rounds.hops(n)
    )
    return Topology("hypercube", n, cycle or (rounds.identity(n),))


def complete(n: int) -> Topology:
    """Join everybody with everybody, weights 1/n: one round is a global average (Parallel SGD).

    Raises:
      MemoryError: n^2 / 2 edges would not fit into this machine's memory.
    """
    n = _ranks("complete", n)
    memory.check(_BYTES_AN_EDGE * n * n // 2, f"The complete graph of {n} ranks")
    return _undirected("complete", n, ((i, j) for j in range(n) for i in range(j)))


def disconnected(n: int) -> Topology:
    """Join nobody with anybody, W = I: with a period H this is Local SGD."""
    n = _ranks("disconnected", n)
    return Topology("disconnected", n, (rounds.identity(n),))


def from_matrix(W: npt.ArrayLike) -> Topology:  # noqa: N803 (the literature's name)
    """Return a topology of one round with your own doubly stochastic matrix.

    Args:
      W: array-like `[n, n]`; `W[i, j]` is the weight that rank i gives to rank j.

    Raises:
      ValueError: not a square matrix, or not doubly stochastic (says which row or column, and by
        how much).

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

    Ranks follow the order of `graph.nodes`; self-loops are ignored.

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
    n = _ranks("from_networkx", len(rank))
    # The call of edges() leaves the keys of parallel edges out.
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
        hypercube,
        complete,
        disconnected,
    )
}


def resolve(topology: str | Topology, size: int) -> Topology:
    """Return the topology for `size` ranks that a user named or built.

    Args:
      topology: one of the names in `BY_NAME`, or a `Topology`.
      size: number of ranks it must have.

    Raises:
      ValueError: the name is unknown, or the topology has another size.
      TypeError: neither a name nor a `Topology`.
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
            f"workers. Build it for {size}, or pass its name to have it built for you."
        )
    return topology


def resolve_for_survivors(topology: str | Topology, size: int) -> Topology:
    """Return the topology for the `size` surviving ranks of a run that began with `topology`.

    This is the same name, where its graph exists for this size. Otherwise, and for a `Topology`
    of another size, it is the one-peer exponential graph.
    """
    try:
        return resolve(topology, size)
    except ValueError:
        return one_peer_exponential(size)


def _ranks(name: str, n: object) -> int:
    return _validate.check_whole(f"n of {name}", n, at_least=1, unit="ranks")


def _undirected(name: str, n: int, edges: Iterable[tuple[int, int]]) -> Topology:
    return Topology(name, n, (rounds.metropolis_hastings(n, edges),))
