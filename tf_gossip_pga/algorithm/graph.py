"""Represent who averages with whom: a cycle of sparse, doubly stochastic mixing matrices.

In every round, each rank replaces its parameters with a weighted mean of its own and its neighbors'
parameters::

    x_i <- sum_j W[i, j] * x_j

`W` is doubly stochastic. Its rows sum to one, so each new `x_i` is a weighted mean. Its columns sum
to one, so the mean of the parameters over all ranks does not change.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ranks: TypeAlias = npt.NDArray[np.int64]

# Tolerated float64 rounding error: how far a row or column sum may be from 1, and a weight below 0.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """One doubly stochastic matrix W, stored as its off-diagonal entries and its diagonal.

    Attributes:
      receivers: the receiving rank i of each edge, `[edges]` int64. An edge is a nonzero entry
        `W[i, j]` with i != j.
      senders: the sending rank j of each edge, `[edges]` int64.
      edge_weights: `W[i, j]` of each edge, `[edges]` float64.
      self_weights: the diagonal `W[i, i]`, `[size]` float64.

    Example:
      >>> from tf_gossip_pga import topology
      >>> topology.ring(3).cycle[0].receivers
      array([0, 0, 1, 1, 2, 2])
    """

    receivers: Ranks  # [edges]
    senders: Ranks  # [edges]
    edge_weights: Floats  # [edges], W[receiver, sender]
    self_weights: Floats  # [size], W[i, i]

    @property
    def is_empty(self) -> bool:
        """Whether no rank gossips in this round."""
        return not len(self.edge_weights)

    @property
    def arrays(self) -> tuple[Ranks, Ranks, Floats, Floats]:
        """The arrays `receivers`, `senders`, `edge_weights` and `self_weights`, in this order."""
        return self.receivers, self.senders, self.edge_weights, self.self_weights

    @property
    def matrix(self) -> Floats:
        """The dense matrix W, `[size, size]` float64."""
        matrix = np.diag(self.self_weights)
        matrix[self.receivers, self.senders] = self.edge_weights
        return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A cycle of mixing matrices over `size` ranks.

    To create a topology, call a function in `pga.topology` rather than this constructor.

    Attributes:
      name: name of the function that built the topology, e.g. `"ring"`.
      size: number of ranks.
      cycle: the rounds, each a sparse doubly stochastic matrix.

    Raises:
      ValueError: a weight is negative or not finite, or a row or column does not sum to one.

    Example:
      >>> import tf_gossip_pga as pga
      >>> topology = pga.topology.one_peer_exponential(4)
      >>> topology
      Topology('one_peer_exponential', size=4, rounds=2)
      >>> topology.weights(0)
      array([[0.5, 0. , 0. , 0.5],
             [0.5, 0.5, 0. , 0. ],
             [0. , 0.5, 0.5, 0. ],
             [0. , 0. , 0.5, 0.5]])
    """

    name: str
    size: int
    cycle: tuple[Round, ...]

    def __post_init__(self):
        for each in self.cycle:
            _check_weights(each)
            _check_sums(each, self.size)
            for array in each.arrays:
                array.setflags(write=False)

    def __repr__(self):
        return f"Topology({self.name!r}, size={self.size}, rounds={self.rounds})"

    @property
    def rounds(self) -> int:
        """Number of rounds after which the weights repeat."""
        return len(self.cycle)

    def weights(self, round: int) -> Floats:
        """Return the mixing matrix W of a round.

        `W[i, j]` is the weight that rank `i` gives to the parameters it receives from rank `j`.

        Args:
          round: number of the round, starting at 0. Rounds repeat cyclically.

        Returns:
          The dense matrix, `[size, size]` float64.
        """
        return self._at(round).matrix

    @functools.cached_property
    def beta(self) -> float:
        """Spectral norm of `W - 11'/n`, where W is the product of the matrices of one cycle.

        For n ranks, the matrix `11'/n`, in which every entry is 1/n, replaces the parameters of all
        ranks with their exact mean. If beta is 0, one cycle of gossips also gives the exact mean.
        The smaller beta is, the closer one cycle brings the ranks' parameters together.
        """
        product = np.eye(self.size)
        for round in range(self.rounds):
            product = self.weights(round) @ product
        return float(np.linalg.norm(product - 1 / self.size, 2))

    def neighbors(self, round: int, rank: int) -> tuple[dict[int, float], float]:
        """Return the weights with which `rank` mixes parameters in a round.

        Args:
          round: number of the round, starting at 0. Rounds repeat cyclically.
          rank: the receiving rank.

        Returns:
          A dict from each sender to the weight of its parameters, and the weight of the rank's own
          parameters.
        """
        each = self._at(round)
        chosen = each.receivers == rank
        senders: list[int] = each.senders[chosen].tolist()
        weights: list[float] = each.edge_weights[chosen].tolist()
        return dict(zip(senders, weights, strict=True)), float(each.self_weights[rank])

    def peers(self, round: int, rank: int) -> tuple[int, ...]:
        """Return the ranks that `rank` sends to or receives from in a round, in ascending order.

        Args:
          round: number of the round, starting at 0. Rounds repeat cyclically.
          rank: the sending and receiving rank.

        Example:
          >>> from tf_gossip_pga import topology
          >>> topology.one_peer_exponential(8).peers(0, rank=0)
          (1, 7)
        """
        each = self._at(round)
        senders: list[int] = each.senders[each.receivers == rank].tolist()
        receivers: list[int] = each.receivers[each.senders == rank].tolist()
        return tuple(sorted({*senders, *receivers}))

    def is_matching(self, round: int) -> bool:
        """Return whether the ranks of a round gossip in disjoint pairs with equal weights.

        The two ranks of a pair send to each other, and each gives the other's parameters the same
        weight. A rank that is in no pair does not gossip.

        Args:
          round: number of the round, starting at 0. Rounds repeat cyclically.

        Example:
          >>> from tf_gossip_pga import topology
          >>> topology.hypercube(4).is_matching(0), topology.ring(4).is_matching(0)
          (True, False)
        """
        each = self._at(round)
        partners = dict(zip(each.receivers.tolist(), each.senders.tolist(), strict=True))
        weights = dict(zip(each.receivers.tolist(), each.edge_weights.tolist(), strict=True))
        return len(partners) == len(each.receivers) and all(
            partners.get(sender) == receiver and weights[sender] == weights[receiver]
            for receiver, sender in partners.items()
        )

    def colors(self, round: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return an edge coloring: groups of edges such that no two edges of a group share a rank.

        An edge is a pair `(sender, receiver)`, and each group is one color. If every rank processes
        the groups in the returned order, each rank handles at most one message per group, and ranks
        cannot wait for each other in a cycle.

        The coloring is greedy: each edge joins the first group that has no edge at its two ranks.
        Therefore, if no rank sends and receives more than d messages in total, there are at most
        2d - 1 groups.

        Args:
          round: number of the round, starting at 0. Rounds repeat cyclically.
        """
        each = self._at(round)
        senders: list[int] = each.senders.tolist()
        receivers: list[int] = each.receivers.tolist()
        colors: list[list[tuple[int, int]]] = []
        busy: list[set[int]] = []  # for each color, the ranks of its edges
        for edge in zip(senders, receivers, strict=True):
            free = (k for k, ranks in enumerate(busy) if ranks.isdisjoint(edge))
            color = next(free, len(colors))
            if color == len(colors):
                colors.append([])
                busy.append(set())
            colors[color].append(edge)
            busy[color].update(edge)
        return tuple(tuple(color) for color in colors)

    @functools.cached_property
    def digest(self) -> str:
        """A string that two topologies share only if their names and all weights are equal."""
        content = hashlib.sha256()
        for each in self.cycle:
            for array in each.arrays:
                content.update(array.tobytes())
        return f"{self.name}, {self.size} ranks, weights {content.hexdigest()[:12]}"

    def _at(self, round: int) -> Round:
        return self.cycle[round % self.rounds]


def _check_weights(each: Round) -> None:
    for weights in (each.edge_weights, each.self_weights):
        if not np.all(weights >= -_TOLERANCE):  # false for NaN
            raise ValueError(
                "Mixing weights must be finite and not negative; the least received is "
                f"{weights.min():g}."
            )


def _check_sums(each: Round, size: int) -> None:
    for kind, ranks in (("row", each.receivers), ("column", each.senders)):
        sums = each.self_weights + np.bincount(ranks, weights=each.edge_weights, minlength=size)
        worst = int(np.argmax(np.abs(sums - 1)))
        if not abs(sums[worst] - 1) <= _TOLERANCE:
            raise ValueError(
                f"The mixing matrix is not doubly stochastic: {kind} {worst} sums to "
                f"{sums[worst]:.9g}, {sums[worst] - 1:+.3g} from 1. Every row must sum to "
                "1, so that each result is a weighted mean. Every column must sum to 1, so that "
                "the mean over all ranks is preserved. (Weights computed in float32 are not exact "
                "enough: compute them in float64.)"
            )
