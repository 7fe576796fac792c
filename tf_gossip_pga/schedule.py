"""WHEN to average globally: the period H.

Step k counts completed batches from 1 over the whole run. Gossip-PGA averages globally, instead of
gossiping, when `k % H == 0` (Chen et al., ICML 2021, Algorithm 1). The edge values are whole
algorithms: `H=1` is Parallel SGD, `H=None` is Gossip SGD.

A schedule is any object with `is_global(step) -> bool`; every rank must get the same answers, and
schedules that answer alike have the same text, by which ranks compare theirs.
"""

import dataclasses
import operator


@dataclasses.dataclass(frozen=True)
class FixedPeriod:
    """A global average on every H-th step, or never where `H` is None.

        >>> [k for k in range(1, 10) if FixedPeriod(3).is_global(k)]
        [3, 6, 9]

    Attributes:
      H: the period in steps, at least 1, or None.
    """

    H: int | None

    def __str__(self):
        return str(self.H)

    def is_global(self, step: int) -> bool:
        """Whether step `step`, counted from 1, ends with a global average."""
        return self.H is not None and step % self.H == 0


def resolve(H) -> FixedPeriod:  # noqa: N803 (the paper's name)
    """The schedule that a user's `H` stands for.

    Raises:
      ValueError: `H` is neither a whole number >= 1 nor None.
    """
    if H is None:
        return FixedPeriod(None)
    try:
        period = 0 if isinstance(H, bool) else operator.index(H)
    except TypeError:
        period = 0
    if period < 1:
        raise ValueError(
            "H must be a whole number of steps >= 1 (1: Parallel SGD), or None for no global "
            f"average (Gossip SGD); received H={H!r}."
        )
    return FixedPeriod(period)
