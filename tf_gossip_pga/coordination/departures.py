"""Report exceptions that end this worker's `fit` or process, and record the others' reports."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.messages import Rank, checked
from tf_gossip_pga.coordination.status import Absence, Departure, Status


class Departures:
    """Track the workers that have left `fit`, or ended, because of an exception.

    Args:
      rank: this worker's rank.
      size: number of workers at the start.
      channel: carries the reports between workers.
      status: this worker's status.

    Attributes:
      known: the other workers' departures, by rank.
      heard: when the last report from another worker arrived. The watchdog resets this to None when
        it asks the other workers what they are doing.
    """

    def __init__(self, rank: int, size: int, channel: Channel, status: Status) -> None:
        self.known: dict[int, Departure] = {}
        self.heard: float | None = None
        self._rank = rank
        self._size = size
        self._channel = channel
        self._status = status
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._reported: Departure | None = None
        channel.handlers["departure"] = self._note

    def tell(self, ends: bool = False) -> None:
        """Tell all other workers, only once, which exception has escaped this worker's `fit`.

        Args:
          ends: whether this process is ending. If so, also report an exception that ended the
            process outside `fit`.
        """
        is_final = self._reported is not None and self._reported.ends
        if is_final or os.getpid() != self._process:  # a forked child reports nothing
            return
        departure = self._status.departure(ends)
        if departure != self._reported:
            self._reported = departure
            if departure:
                tell = self._channel.tell_at_exit if ends else self._channel.ask_all
                tell("departure", rank=self._rank, **dataclasses.asdict(departure))

    def learn(self, answers: Mapping[int, dict[str, Any] | Absence]) -> None:
        """Update `known` from the other workers' answers to the request "status", by rank.

        Afterwards, `known` no longer contains workers that have called `fit` again.
        """
        with self._lock:
            self.known = {
                rank: departure
                for rank, answer in answers.items()
                if (departure := _latest(answer, self.known.get(rank)))
            }

    def forget(self) -> None:
        """Forget all departures, because the members have changed."""
        self.known = {}

    def _note(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record a report from another worker. Runs on the channel's thread."""
        report = checked(request, self._size, rank=Rank, text=str, ends=bool)
        with self._lock:
            self.known = {**self.known, report["rank"]: Departure(report["text"], report["ends"])}
        self.heard = time.monotonic()
        return {}


def _latest(answer: dict[str, Any] | Absence, known: Departure | None) -> Departure | None:
    """Return a worker's departure according to its latest answer, or None.

    `known` is the departure known before this answer. If `known` says that the process is ending,
    no answer changes that.
    """
    if isinstance(answer, Absence) or (known and known.ends):
        return known
    left = answer.get("left")
    return Departure(str(left), ends=False) if left else None
