"""Tell listeners what this rank spends its time on, as spans of time.

Without a listener, nothing is measured or stored.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

# Add this to `time.perf_counter()` for a time in seconds since 1970. All processes of one machine
# read the same monotonic clock, so their times agree to well below a millisecond.
_EPOCH = time.time() - time.perf_counter()

# The kinds of spans.
COMPUTE = "compute"  # from the end of one step's exchange to the beginning of the next one's
GOSSIP = "gossip"  # with `overlap`: the wait for the previous gossip, and the start of the next
BACKGROUND_GOSSIP = "gossip in the background"  # only with `overlap`, from another thread
GLOBAL_AVERAGE = "global average"
OPTIMIZER_STATE = "average of the optimizer state"  # only with `optimizer_state="average"`
SYNC_POINT = "sync point"
VALIDATION = "validation"
CHECKPOINT = "checkpoint"
REGROUPING = "regrouping"  # after a loss: forming a new view, and then reconciling its members
JOINING = "joining"  # the admission of a joining worker, on every rank
STATE_TRANSFER = "state transfer"  # to a joining worker

# Kinds in which a rank waits for its peers.
EXCHANGES = (GOSSIP, BACKGROUND_GOSSIP, GLOBAL_AVERAGE, OPTIMIZER_STATE, SYNC_POINT)


class Span(NamedTuple):
    """What one rank did from one moment to another.

    Spans of one rank can contain each other: a checkpoint contains sync points and a global
    average, and an exchange that a loss interrupts contains the regrouping. An interrupted exchange
    is repeated and then has a span for each attempt. Only spans of `BACKGROUND_GOSSIP` can overlap
    others without containing them.

    Attributes:
      kind: one of the kinds in this module, such as `GOSSIP`.
      step: the step that is being computed or has just been computed, counted from 1.
      begin: seconds since 1970.
      seconds: duration.
      peers: the other ranks that take part, ascending. In a gossip, those that this rank sends to
        or receives from.
      bytes: number of payload bytes that this rank sent. The bytes of a gossip in the background
        belong to the gossip span that started it.
      where: name of a sync point, such as `"the end of epoch 1"`, otherwise empty.
    """

    kind: str
    step: int
    begin: float
    seconds: float
    peers: tuple[int, ...] = ()
    bytes: int = 0
    where: str = ""

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Span:
        """Return a span that has been converted to JSON and back."""
        span = cls(*values)
        return span._replace(peers=tuple(span.peers))

    @property
    def end(self) -> float:
        """Return when the span ended, in seconds since 1970."""
        return self.begin + self.seconds


Listener = Callable[[Span], None]


class Recorder:
    """Measure spans of one rank, and pass them to listeners.

    Args:
      progress: function that returns the number of completed steps, and the number of bytes that
        this rank has sent.

    Attributes:
      listeners: functions to call with each `Span` when it ends, in the order in which spans end.
        They must be fast, must not raise, and must not exchange anything. Spans of
        `BACKGROUND_GOSSIP` come from another thread.

    Example:
      >>> recorder = Recorder(lambda: (7, 0))
      >>> recorder.listeners.append(lambda span: print(span.kind, span.step, span.peers))
      >>> with recorder.span(GOSSIP, lambda: (1, 3)):
      ...     pass
      gossip 7 (1, 3)
    """

    def __init__(self, progress: Callable[[], tuple[int, int]]):
        """Start without listeners."""
        self.listeners: list[Listener] = []
        self._progress = progress
        self._begun: dict[str, float] = {}  # kinds that `begin` has begun, and when

    def span(
        self,
        kind: str,
        peers: Callable[[], tuple[int, ...]] = tuple,
        where: str = "",
        counts_bytes: bool = True,
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that records the time spent inside it, also after an error.

        Args:
          kind: one of the kinds in this module.
          peers: function that returns `Span.peers`. It is called only if there is a listener.
          where: see `Span.where`.
          counts_bytes: whether the bytes sent in the meantime belong to the span. Default True.
        """
        if not self.listeners:
            return contextlib.nullcontext()
        step, sent = self._progress()  # now: with `overlap`, the step count may change meanwhile
        return self._measured(Span(kind, step, 0.0, 0.0, peers(), -sent, where), counts_bytes)

    @contextlib.contextmanager
    def _measured(self, span: Span, counts_bytes: bool) -> Iterator[None]:
        """Complete a span, whose `bytes` is minus the number of bytes sent before it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            new = self._progress()[1] + span.bytes if counts_bytes else 0
            self._tell(span._replace(begin=_EPOCH + started, seconds=seconds, bytes=new))

    def begin(self, kind: str):
        """Begin a span that `end` ends, possibly in another method. A second call begins again."""
        if self.listeners:
            self._begun[kind] = time.perf_counter()

    def end(self, kind: str):
        """End the span that `begin` has begun. Does nothing if there is none."""
        started = self._begun.pop(kind, None)
        if started is not None:
            seconds = time.perf_counter() - started
            self._tell(Span(kind, self._progress()[0], _EPOCH + started, seconds))

    def _tell(self, span: Span):
        for listener in self.listeners:
            listener(span)
