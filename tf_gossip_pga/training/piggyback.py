"""Encode a few numbers that ranks exchange along with a global average.

A global average sums tensors over ranks in any case, so these numbers need no extra exchange. One
of the numbers is a fingerprint, a hash of the rank's parameters. The sum must not mix the
fingerprints of different ranks. Therefore, each rank's fingerprint has its own position in the sum,
to which all other ranks add zero.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tf_gossip_pga.algorithm.schedule import Observed
from tf_gossip_pga.training.pace import UNKNOWN, Times

# Indices of the encoded numbers. From _FIRST on, each rank's fingerprint takes two positions.
_STOP, _LOSS, _COMPUTE, _GOSSIP, _AVERAGE, _DISTANCE, _NORM, _FIRST = range(8)


@dataclasses.dataclass(frozen=True)
class Piggyback:
    """The numbers that one rank sends along with a global average.

    Attributes:
      stop: whether the rank requests a stop. Default False.
      loss: the rank's training loss, or 0 if the period is not adaptive. Default 0.
      times: how long the rank computes and exchanges. Default: unknown.
      squares: the rank's squared distance from the mean in the previous global average, and its
        share of the squared norm of that mean; see `averager.Averaged`. Default: unknown.
      fingerprint: 32-bit hash of the rank's parameters after its first step, or 0 if the ranks need
        not compare their first steps. Default 0.
    """

    stop: bool = False
    loss: float = 0.0
    times: Times = UNKNOWN
    squares: tuple[float, float] = (math.nan, math.nan)
    fingerprint: int = 0

    def encode(self, rank: int, ranks: int) -> np.ndarray:
        """Return the encoded numbers, `[length(ranks)]` float32, to be summed over ranks.

        Args:
          rank: this rank.
          ranks: number of ranks, including lost ones.
        """
        numbers = np.zeros(length(ranks), np.float32)
        numbers[:_FIRST] = [self.stop, self.loss, *self.times, *self.squares]
        # Two halves of 16 bits, because float32 cannot hold a 32-bit integer exactly.
        place = _FIRST + 2 * rank
        numbers[place], numbers[place + 1] = divmod(self.fingerprint, 1 << 16)
        return numbers


@dataclasses.dataclass(frozen=True)
class Heard:
    """What a rank learns in a global average from the numbers of all ranks.

    Attributes:
      is_stop: whether any rank requests a stop.
      observed: what the schedule learns from the means over ranks. A number is NaN if it is unknown
        on any rank.
      fingerprints: each rank's fingerprint as two halves, `[ranks, 2]`; 0 for ranks without one.
    """

    is_stop: bool
    observed: Observed
    fingerprints: np.ndarray

    @classmethod
    def decode(cls, sums: np.ndarray, members: int) -> Heard:
        """Decode the sums over ranks of the results of `encode`.

        Args:
          sums: the summed numbers, `[length(ranks)]`.
          members: number of ranks that took part in the global average.
        """
        halves = np.rint(sums[_FIRST:]).reshape(-1, 2)
        means = [float(each) / members for each in sums[:_FIRST]]
        norm = float(sums[_NORM])
        observed = Observed(
            loss=means[_LOSS],
            compute_s=means[_COMPUTE],
            gossip_s=means[_GOSSIP],
            average_s=means[_AVERAGE],
            distance=math.sqrt(means[_DISTANCE] / norm) if norm > 0 else math.nan,
        )
        return cls(bool(sums[_STOP] > 0), observed, halves)


def length(ranks: int) -> int:
    """Return how many numbers are encoded for `ranks` ranks, including lost ones."""
    return _FIRST + 2 * ranks
