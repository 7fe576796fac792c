"""Represent who averages with whom: a cycle of sparse, doubly stochastic mixing matrices.

In every round each rank replaces its parameters by a weighted mean of its own and its neighbors':

    x_i <- sum_j W[i, j] * x_j

`W` is doubly stochastic. Rows sum to one, so that a mean stays a mean; columns sum to one, so that
the mean over ranks does not move.
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

# The rounding in float64 that is accepted: of a row or column sum, and of a weight below zero.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """One doubly stochastic matrix W, kept sparse: its off-diagonal entries and its diagonal."""

    receivers: Ranks  # [edges]
    senders: Ranks  # [edges]
    edge_weights: Floats  # [edges], W[receiver, sender]
    self_weights: Floats  # [size], W[i, i]

    @property
    def is_empty(self) -> bool:
        """Whether nobody gossips in this round."""
        return not len(self.edge_weights)

    @property
    def arrays(self) -> tuple[Ranks, Ranks, Floats, Floats]:
        """The four arrays, in the order of their declaration."""
        return self.receivers, self.senders, self.edge_weights, self.self_weights

    @property
    def matrix(self) -> Floats:
        """The dense matrix W, `[size, size]`."""
        matrix = np.diag(self.self_weights)
        matrix[self.receivers, self.senders] = self.edge_weights
        return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A cycle of mixing matrices over `size` ranks.

    Build one with the functions of `pga.topology` rather than by hand.

    Attributes:
      name: the name of the function that built it, e.g. `"ring"`.
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
        """Return the mixing matrix W of a round, counted from 0 and cyclic: `[size, size]` float64.

        `W[i, j]` is the weight that rank `i` gives to what it receives from rank `j`.
        """
        return self._at(round).matrix

    @functools.cached_property
    def beta(self) -> float:
        """Spectral norm of W - 11'/n for one whole cycle: 0 averages exactly, 1 never agrees."""
        product = np.eye(self.size)
        for round in range(self.rounds):
            product = self.weights(round) @ product
        return float(np.linalg.norm(product - 1 / self.size, 2))

    def neighbors(self, round: int, rank: int) -> tuple[dict[int, float], float]:
        """Return what `rank` mixes in a round: `({sender: weight}, its own weight)`."""
        each = self._at(round)
        chosen = each.receivers == rank
        senders: list[int] = each.senders[chosen].tolist()
        weights: list[float] = each.edge_weights[chosen].tolist()
        return dict(zip(senders, weights, strict=True)), float(each.self_weights[rank])

    def colors(self, round: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return an edge coloring: groups of `(sender, receiver)` edges without a common rank.

        When every rank works through the groups in this order, each rank has at most one message in
        a group, and no cycle of ranks can wait for one another. The coloring is greedy: a rank with
        d messages to send or receive sees at most 2d - 1 colors.
        """
        each = self._at(round)
        senders: list[int] = each.senders.tolist()
        receivers: list[int] = each.receivers.tolist()
        colors: list[list[tuple[int, int]]] = []
        busy: list[set[int]] = []  # the ranks that a color already occupies
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
        """A short text that two topologies share exactly when name and all weights are equal."""
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
                f"{sums[worst]:.9g}, {sums[worst] - 1:+.3g} from 1. Rows must sum to 1 so that a "
                "mean stays a mean, columns so that the mean over ranks does not move. (Weights "
                "computed in float32 are not exact enough: compute them in float64.)"
            )
