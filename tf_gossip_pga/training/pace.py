"""Measure how long this rank computes and exchanges, for a period that depends on it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

# The first global averages after a start compile functions: the first one itself, and the times
# that the second one sends, which include those of the first.
_COLD = 2


class Times(NamedTuple):
    """Mean times in seconds, NaN if unknown."""

    compute_s: float = math.nan  # of a step without its exchange
    gossip_s: float = math.nan  # of a gossip
    average_s: float = math.nan  # of the latest global average that the schedule requested


UNKNOWN = Times()


@dataclasses.dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, seconds: float):
        self.total += seconds
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


class Pace:
    """Measure times since the last global average that the schedule requested."""

    def __init__(self):
        """Start without measurements."""
        self._computing: float | None = None  # when the current computation began, if it is timed
        self._computed, self._gossiped = _Mean(), _Mean()
        self._average_s = math.nan
        self._cold = _COLD

    def restart(self):
        """Leave out the next times, because a new averager compiles its functions again."""
        self._cold = _COLD

    def begin_step(self):
        """Record that the computation of a step begins."""
        self._computing = time.perf_counter()

    def end_step(self):
        """Record that the computation of a step has ended."""
        if self._computing is not None:
            self._computed.add(time.perf_counter() - self._computing)
        self._computing = None

    def pause(self):
        """Leave out the current computation, because it contains something else."""
        self._computing = None

    @contextlib.contextmanager
    def gossiping(self) -> Iterator[None]:
        """Return a context manager that times a gossip."""
        started = time.perf_counter()
        yield
        self._gossiped.add(time.perf_counter() - started)

    @contextlib.contextmanager
    def averaging(self) -> Iterator[None]:
        """Return a context manager that times a global average. The earlier times are forgotten."""
        started = time.perf_counter()
        yield
        self._computed, self._gossiped = _Mean(), _Mean()
        self._average_s = time.perf_counter() - started
        self._cold = max(0, self._cold - 1)

    @property
    def times(self) -> Times:
        """Return the mean times since the last global average, and the time of that average."""
        if self._cold:
            return UNKNOWN
        return Times(self._computed.value, self._gossiped.value, self._average_s)
