"""Encode the few numbers that ranks tell one another along with a global average.

A global average adds up over ranks anyway, so these cost no exchange of their own. What is to be
known of each rank has a place for each, which is zero on the others.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_STOP, _LOSS, _FIRST = range(3)  # places; from the last on, two for each rank


@dataclasses.dataclass(frozen=True)
class Piggyback:
    """What one rank tells.

    Attributes:
      stop: whether it wants to stop.
      loss: its training loss; 0 where nobody needs it.
      fingerprint: 32 bits that stand for its parameters after a step of its own; 0 for none.
    """

    stop: bool = False
    loss: float = 0.0
    fingerprint: int = 0

    def encode(self, rank: int, ranks: int) -> np.ndarray:
        """Return this as `length(ranks)` float32 numbers, which are to be summed over ranks."""
        numbers = np.zeros(length(ranks), np.float32)
        numbers[_STOP], numbers[_LOSS] = self.stop, self.loss
        # As two halves: float32 holds no integers of 32 bits.
        place = _FIRST + 2 * rank
        numbers[place], numbers[place + 1] = divmod(self.fingerprint, 1 << 16)
        return numbers


@dataclasses.dataclass(frozen=True)
class Heard:
    """What all ranks have told.

    Attributes:
      is_stop: whether any wants to stop.
      loss: the mean of their training losses.
      fingerprints: of all ranks, `[ranks, 2]`; 0 of those that have told none.
    """

    is_stop: bool
    loss: float
    fingerprints: np.ndarray

    @classmethod
    def decode(cls, sums: np.ndarray, members: int) -> Heard:
        """Return what `members` ranks have encoded, from the sums of their numbers."""
        halves = np.rint(sums[_FIRST:]).reshape(-1, 2)
        return cls(bool(sums[_STOP] > 0), float(sums[_LOSS]) / members, halves)


def length(ranks: int) -> int:
    """Return how many numbers there are, for so many ranks, lost ones included."""
    return _FIRST + 2 * ranks
