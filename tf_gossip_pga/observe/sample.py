"""Keep a limited number of the spans of an epoch, the same steps on all ranks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tf_gossip_pga.observe import waits
from tf_gossip_pga.training import recorder
from tf_gossip_pga.training.recorder import Span

# Steps are kept or dropped in blocks of this size, because with `overlap` a gossip waits for the
# gossip of an earlier step, and because a topology may have several rounds.
BLOCK = 64

_GOLDEN = 0.6180339887498949  # its multiples modulo 1 are evenly distributed


class Shared(NamedTuple):
    """The attributes of a rank's `Sample`, as it shares them with the other ranks."""

    sync_points: Sequence[Span]
    spans: Sequence[Span]
    heard: int
    part: float


class Sample:
    """All sync points of one rank, and the other spans of some steps, in bounded memory.

    While there are at most `most` spans other than sync points, all of them are kept. Then half of
    the blocks of steps are dropped, and so on. Which blocks are kept depends only on how often that
    has happened, so that all ranks keep spans of the same exchanges.

    An epoch has few sync points, so a part of them says nothing about the others. They also align
    the clocks of the ranks if no global average is kept.

    Args:
      most: how many spans other than sync points to keep at most; more than those of one block.

    Attributes:
      sync_points: the sync points that were added.
      spans: the other spans that are kept.
      heard: number of spans other than sync points that were added.
      seconds: duration of all spans that were added, except those of gossips in the background.
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
        self.sync_points: list[Span] = []
        self.spans: list[Span] = []
        self.heard = 0
        self.seconds = 0.0
        self.part = 1.0
        self._most = most
        self._lock = threading.Lock()  # gossips in the background have their own thread

    def add(self, span: Span):
        """Add a span of the epoch. Drop spans if there are too many."""
        with self._lock:
            self.seconds += span.seconds * (span.kind != recorder.BACKGROUND_GOSSIP)
            if span.kind == recorder.SYNC_POINT:
                self.sync_points.append(span)
                return
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

    If a rank has dropped spans, its waits in exchanges other than sync points are scaled up to all
    such exchanges that it has heard. Its waits at sync points are complete, so they are not scaled.

    Args:
      shared: for each rank, the attributes of its `Sample`.
    """
    part = min(each.part for each in shared.values())
    spans = {rank: kept(each.spans, part) for rank, each in shared.items()}
    scales = {rank: each.heard / max(len(spans[rank]), 1) for rank, each in shared.items()}
    everything = {rank: [*each.sync_points, *spans[rank]] for rank, each in shared.items()}
    return waits.waiting(waits.aligned(everything), scales)
