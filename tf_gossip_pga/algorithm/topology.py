"""WHO averages with whom, and with what weights.

A `Topology` is a cycle of rounds. In every round each rank replaces its parameters by a weighted
mean of its own and its neighbours':

    x_i <- sum_j W[i, j] * x_j

`W` is doubly stochastic: rows sum to one (a mean stays a mean) and columns sum to one (the mean
over ranks does not move). How fast gossip reaches agreement is told by `beta`.

    >>> from tf_gossip_pga import topology
    >>> topology.ring(4).weights(0)[0]
    array([0.33333333, 0.33333333, 0.        , 0.33333333])
    >>> topology.one_peer_exponential(8).rounds
    3

Ranks are 0 … size-1. Nothing here knows TensorFlow, a clock or a rank of its own.

Sources: ring, grid and static exponential weights: Chen et al., "Accelerating Gossip SGD with
Periodic Global Averaging", ICML 2021. One-peer exponential: Assran et al., "Stochastic Gradient
Push", ICML 2019, and Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
Training", NeurIPS 2021. Metropolis-Hastings weights: Xiao and Boyd, "Fast linear iterations for
distributed averaging", 2004.
"""

import dataclasses
import functools
import hashlib
import math
import operator

import numpy as np

from tf_gossip_pga.tools import memory

# What rounding in float64 may leave: of a row's or column's sum from one, of a weight below zero.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """One doubly stochastic matrix, kept sparse: its off-diagonal entries and its diagonal."""

    receivers: np.ndarray  # [edges] int64
    senders: np.ndarray  # [edges] int64
    edge_weights: np.ndarray  # [edges] float64, W[receiver, sender]
    self_weights: np.ndarray  # [size] float64, W[i, i]

    @property
    def matrix(self) -> np.ndarray:
        """All of W, `[size, size]` float64."""
        matrix = np.diag(self.self_weights)
        matrix[self.receivers, self.senders] = self.edge_weights
        return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A cycle of mixing matrices over `size` ranks.

    Build one with the functions of this module rather than by hand.

    Attributes:
      name: what the functions of this module are called, e.g. `"ring"`.
      size: number of ranks.
      cycle: the rounds, each a sparse doubly stochastic matrix.

    Raises:
      ValueError: a weight is negative or not finite, or a row or column does not sum to one.
    """

    name: str
    size: int
    cycle: tuple[Round, ...]

    def __post_init__(self):
        for each in self.cycle:
            _check_doubly_stochastic(each, self.size)
            for array in vars(each).values():
                array.setflags(write=False)

    def __repr__(self):
        return f"Topology({self.name!r}, size={self.size}, rounds={self.rounds})"

    @property
    def rounds(self) -> int:
        """Number of rounds after which the weights repeat."""
        return len(self.cycle)

    def weights(self, round: int) -> np.ndarray:
        """The mixing matrix W of a round, counted from 0 and cyclic: `[size, size]` float64.

        `W[i, j]` is the weight that rank `i` gives to what it receives from rank `j`.
        """
        return self.cycle[round % self.rounds].matrix

    @functools.cached_property
    def beta(self) -> float:
        """Spectral norm of W - 11'/n for one whole cycle: 0 averages exactly, 1 never agrees."""
        product = np.eye(self.size)
        for round in range(self.rounds):
            product = self.weights(round) @ product
        return float(np.linalg.norm(product - 1 / self.size, 2))

    def neighbours(self, round: int, rank: int) -> tuple[dict[int, float], float]:
        """What `rank` mixes in a round: `({sender: weight}, its own weight)`."""
        each = self.cycle[round % self.rounds]
        mine = each.receivers == rank
        weights = zip(each.senders[mine].tolist(), each.edge_weights[mine].tolist(), strict=True)
        return dict(weights), float(each.self_weights[rank])

    def colours(self, round: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """An edge colouring: `(sender, receiver)` edges in groups without a common rank.

        When every rank works through the groups in this one order, each rank has at most one
        message a group, and no cycle of ranks can wait for one another. Greedy: a rank with d
        messages to send or receive meets at most 2d - 1 colours.
        """
        each = self.cycle[round % self.rounds]
        colours: list[list[tuple[int, int]]] = []
        busy: list[set[int]] = []  # the ranks that a colour already occupies
        for sender, receiver in zip(each.senders.tolist(), each.receivers.tolist(), strict=True):
            free = (k for k, ranks in enumerate(busy) if not ranks & {sender, receiver})
            colour = next(free, len(colours))
            if colour == len(colours):
                colours.append([])
                busy.append(set())
            colours[colour].append((sender, receiver))
            busy[colour] |= {sender, receiver}
        return tuple(tuple(colour) for colour in colours)

    @functools.cached_property
    def digest(self) -> str:
        """A short text that two topologies share exactly when name and all weights are equal."""
        content = hashlib.sha256()
        for each in self.cycle:
            for array in vars(each).values():
                content.update(array.tobytes())
        return f"{self.name}, {self.size} ranks, weights {content.hexdigest()[:12]}"


def ring(n: int) -> Topology:
    """Each rank and its two neighbours on a circle, 1/3 each (n = 2: 1/2).

    beta = 1/3 + 2/3 cos(2 pi / n) for n >= 3 (Chen et al. 2021).
    """
    n = _positive(n, "ring")
    return _static("ring", n, {tuple(sorted((i, (i + 1) % n))) for i in range(n)})


def grid(n: int) -> Topology:
    """A rectangle of ranks as near to a square as n allows, edges not wrapped (n prime: a path).

    Metropolis-Hastings weights 1 / (1 + max(deg_i, deg_j)); 4 x 4 gives the 0.868 of Chen et al.
    """
    n = _positive(n, "grid")
    rows, columns = _most_square(n)
    right = {(i, i + 1) for i in range(n) if (i + 1) % columns}
    down = {(i, i + columns) for i in range(n - columns)}
    return _static("grid", n, right | down) if rows > 1 else _static("grid", n, right)


def torus(n: int) -> Topology:
    """The grid with its opposite sides joined (n prime: a ring). Metropolis-Hastings weights."""
    n = _positive(n, "torus")
    rows, columns = _most_square(n)
    edges = set()
    for row in range(rows):
        for column in range(columns):
            here = row * columns + column
            for there in (
                row * columns + (column + 1) % columns,
                (row + 1) % rows * columns + column,
            ):
                edges.add(tuple(sorted((here, there))))
    return _static("torus", n, edges)


def static_exponential(n: int) -> Topology:
    """Each rank hears from the ranks 1, 2, 4, … before it, all weights 1 / (1 + ceil(log2 n)).

    Directed. beta = 1 - 2 / (2 + floor(log2(n - 1))) for even n (Ying et al. 2021).
    """
    n = _positive(n, "static_exponential")
    hops = _hops(n)
    weight = 1 / (1 + len(hops))
    return Topology("static_exponential", n, (_shifts(n, dict.fromkeys(hops, weight)),))


def one_peer_exponential(n: int) -> Topology:
    """In round k each rank hears from one rank, 2^(k mod ceil(log2 n)) before it; weights 1/2, 1/2.

    Directed: every rank sends one message and receives one. For n a power of two, any log2 n
    rounds in a row average exactly; for other n they do not (Ying et al. 2021).
    """
    n = _positive(n, "one_peer_exponential")
    cycle = tuple(_shifts(n, {hop: 0.5}) for hop in _hops(n)) or (_identity(n),)
    return Topology("one_peer_exponential", n, cycle)


def hypercube(n: int) -> Topology:
    """In round k rank i averages with rank i xor 2^k, weights 1/2; log2 n rounds average exactly.

    Raises:
      ValueError: n is not a power of two.
    """
    n = _positive(n, "hypercube")
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise ValueError(
            f"hypercube needs a power of two of ranks, received n={n}. "
            f"The nearest sizes are {below} and {2 * below}; "
            "one_peer_exponential accepts every size."
        )
    ranks = np.arange(n)
    cycle = tuple(
        Round(ranks, ranks ^ hop, np.full(n, 0.5), np.full(n, 0.5)) for hop in _hops(n)
    ) or (_identity(n),)
    return Topology("hypercube", n, cycle)


def complete(n: int) -> Topology:
    """Everybody with everybody, 1/n: one round is a global average (Parallel SGD).

    Raises:
      MemoryError: n^2 edges would not fit into this machine's memory.
    """
    n = _positive(n, "complete")
    memory.check(112 * n * n, f"The complete graph of {n} ranks")  # its edges, in Python
    return _static("complete", n, {(i, j) for j in range(n) for i in range(j)})


def disconnected(n: int) -> Topology:
    """Nobody with anybody, W = I: with a period H this is Local SGD."""
    n = _positive(n, "disconnected")
    return Topology("disconnected", n, (_identity(n),))


def from_matrix(W) -> Topology:  # noqa: N803 (the literature's name)
    """A topology of one round from your own doubly stochastic matrix.

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
    edges = matrix.copy()
    np.fill_diagonal(edges, 0)
    receivers, senders = np.nonzero(edges)
    each = Round(receivers, senders, edges[receivers, senders], diagonal)
    return Topology("from_matrix", len(matrix), (each,))


def from_networkx(graph) -> Topology:
    """A topology from an undirected networkx graph, with Metropolis-Hastings weights.

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
    n = _positive(len(rank), "from_networkx")
    edges = {tuple(sorted((rank[a], rank[b]))) for a, b in graph.edges()}  # () leaves keys out
    return _static("from_networkx", n, edges)


BY_NAME = {
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


def resolve(topology, size: int) -> Topology:
    """The topology for `size` ranks that a user named or built.

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
    if not isinstance(topology, Topology):
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


def resolve_again(topology, size: int) -> Topology:
    """The topology for those that are left, `size` ranks, where `topology` was for more.

    The same name, where its graph exists for so many; otherwise, and for a `Topology`, the one-peer
    exponential graph.
    """
    try:
        return resolve(topology, size)
    except ValueError:
        return one_peer_exponential(size)


def _positive(n, name: str) -> int:
    try:
        size = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"{name} needs a whole number of ranks, at least 1; received n={n!r}.")
    return size


def _hops(n: int) -> list[int]:
    """1, 2, 4, … below n: ceil(log2 n) of them."""
    return [1 << k for k in range((n - 1).bit_length())]


def _most_square(n: int) -> tuple[int, int]:
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows


def _identity(n: int) -> Round:
    none = np.zeros(0, dtype=np.int64)
    return Round(none, none.copy(), np.zeros(0), np.ones(n))


def _shifts(n: int, weights: dict[int, float]) -> Round:
    """The circulant round in which rank i hears from rank i - hop, for each hop."""
    ranks = np.arange(n)
    receivers = np.tile(ranks, len(weights))
    senders = np.concatenate([(ranks - hop) % n for hop in weights] or [ranks[:0]])
    edge_weights = np.repeat(np.array(list(weights.values()), dtype=np.float64), n)
    return Round(receivers, senders, edge_weights, np.full(n, 1.0 - sum(weights.values())))


def _static(name: str, n: int, edges) -> Topology:
    """One round from undirected edges `{(i, j)}`, with Metropolis-Hastings weights."""
    pairs = np.array(sorted((i, j) for i, j in edges if i != j), dtype=np.int64).reshape(-1, 2)
    degree = np.bincount(pairs.ravel(), minlength=n)
    weight = 1 / (1 + np.maximum(degree[pairs[:, 0]], degree[pairs[:, 1]]))
    receivers = np.concatenate([pairs[:, 0], pairs[:, 1]])
    senders = np.concatenate([pairs[:, 1], pairs[:, 0]])
    edge_weights = np.concatenate([weight, weight])
    # 1.0: without edges, bincount counts in integers.
    self_weights = 1.0 - np.bincount(receivers, weights=edge_weights, minlength=n)
    return Topology(name, n, (Round(receivers, senders, edge_weights, self_weights),))


def _check_doubly_stochastic(each: Round, size: int):
    for weights in (each.edge_weights, each.self_weights):
        if not np.all(weights >= -_TOLERANCE):
            raise ValueError(
                "Mixing weights must be finite and not negative; the least received is "
                f"{weights.min():g}."
            )
    for kind, ranks in (("Row", each.receivers), ("Column", each.senders)):
        sums = each.self_weights + np.bincount(ranks, weights=each.edge_weights, minlength=size)
        worst = int(np.argmax(np.abs(sums - 1)))
        if not abs(sums[worst] - 1) <= _TOLERANCE:
            raise ValueError(
                f"The mixing matrix is not doubly stochastic: {kind.lower()} {worst} sums to "
                f"{sums[worst]:.9g}, {sums[worst] - 1:+.3g} from 1. Rows must sum to 1 so that a "
                "mean stays a mean, columns so that the mean over ranks does not move. (Weights "
                "computed in float32 are not exact enough: compute them in float64.)"
            )
