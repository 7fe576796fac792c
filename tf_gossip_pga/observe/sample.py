"""Keep a limited number of the spans of an epoch, the same steps on all ranks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tf_gossip_pga.observe import waits
from tf_gossip_pga.training.recorder import Span

# Steps are kept or dropped in blocks of this size, because with `overlap` a gossip waits for the
# gossip of an earlier step, and because a topology may have several rounds.
BLOCK = 64

_GOLDEN = 0.6180339887498949  # its multiples modulo 1 are evenly distributed


class Shared(NamedTuple):
    """The attributes of a rank's `Sample`, as it shares them with the other ranks."""

    spans: Sequence[Span]
    heard: int
    part: float


class Sample:
    """Spans of some steps of one rank, in bounded memory.

    While there are at most `most` spans, all of them are kept. Then half of the blocks of steps are
    dropped, and so on. Which blocks are kept depends only on how often that has happened, so that
    all ranks keep spans of the same exchanges.

    Args:
      most: how many spans to keep at most; more than the spans of one block.

    Attributes:
      spans: the spans that are kept.
      heard: number of spans that were added.
      part: the part of all blocks that is kept: 1, 1/2, 1/4, …

    Example:
      >>> sample = Sample(most=1000)
      >>> for step in range(5000):
      ...     sample.add(Span("gossip", step, begin=0.0, seconds=0.1))
      >>> len(sample.spans), sample.heard, sample.part
      (704, 5000, 0.125)
    """

    def __init__(self, most: int):
        """Begin without spans."""
        self.spans: list[Span] = []
        self.heard = 0
        self.part = 1.0
        self._most = most
        self._lock = threading.Lock()  # gossips in the background have their own thread

    def add(self, span: Span):
        """Add a span of the epoch. Drop spans if there are too many."""
        with self._lock:
            self.heard += 1
            if is_kept(span, self.part):
                self.spans.append(span)
            while len(self.spans) > self._most:
                self.part /= 2
                self.spans = kept(self.spans, self.part)


def kept(spans: Sequence[Span], part: float) -> list[Span]:
    """Return the spans that a sample keeps with this `part`."""
    return [each for each in spans if is_kept(each, part)]


def is_kept(span: Span, part: float) -> bool:
    """Return whether a sample with this `part` keeps a span."""
    return span.step // BLOCK * _GOLDEN % 1.0 < part


def waiting(shared: Mapping[int, Shared]) -> np.ndarray:
    """Return how many seconds each rank waited for each other rank, `[n, n]` float64.

    If a rank has dropped spans, its seconds are scaled up to all spans that it has heard.

    Args:
      shared: for each rank, the spans that it has kept, how many it has heard, and its `part`.
    """
    part = min(each.part for each in shared.values())
    spans = {rank: kept(each.spans, part) for rank, each in shared.items()}
    seconds = waits.waiting(waits.aligned(spans))
    heard = np.array([shared[rank].heard for rank in sorted(shared)])
    counts = np.array([len(spans[rank]) for rank in sorted(shared)])
    return seconds * (heard / np.maximum(counts, 1))[:, None]
