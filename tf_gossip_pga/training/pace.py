"""Measure how long this rank computes and exchanges, for a period that depends on it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Times(NamedTuple):
    """Mean times in seconds; 0 if unknown."""

    compute_s: float = 0.0  # of a step without its exchange
    gossip_s: float = 0.0  # of a gossip
    average_s: float = 0.0  # of the latest global average that the schedule requested


UNKNOWN = Times()


class Pace:
    """Measure times since the last global average that the schedule requested."""

    def __init__(self):
        """Start without measurements."""
        self._computing: float | None = None  # when the current computation began, if it is timed
        self._computed: list[float] = []
        self._gossiped: list[float] = []
        self._average_s = 0.0

    def begin_step(self):
        """Record that the computation of a step begins."""
        self._computing = time.perf_counter()

    def end_step(self):
        """Record that the computation of a step has ended."""
        if self._computing is not None:
            self._computed.append(time.perf_counter() - self._computing)
        self._computing = None

    def pause(self):
        """Leave out the current computation, because it contains something else."""
        self._computing = None

    @contextlib.contextmanager
    def gossiping(self) -> Iterator[None]:
        """Return a context manager that times a gossip."""
        started = time.perf_counter()
        yield
        self._gossiped.append(time.perf_counter() - started)

    @contextlib.contextmanager
    def averaging(self) -> Iterator[None]:
        """Return a context manager that times a global average. The earlier times are forgotten."""
        started = time.perf_counter()
        yield
        self._computed, self._gossiped = [], []
        self._average_s = time.perf_counter() - started

    @property
    def times(self) -> Times:
        """Return the mean times since the last global average, and the time of that average."""
        return Times(_mean(self._computed), _mean(self._gossiped), self._average_s)


def _mean(seconds: list[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0
