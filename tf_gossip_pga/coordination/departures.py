"""Tell the other workers of an exception that ends this one's part, and keep what they tell."""

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
    """Which workers have left `fit`, or ended, by an exception, and by which.

    Args:
      rank: this worker's.
      size: number of workers.
      channel: through which workers tell one another.
      status: of this worker.

    Attributes:
      known: what others have told, by rank.
      heard: when something was last told, until the caller resets it to None.
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
        self._told: Departure | None = None
        channel.handlers["departure"] = self._note

    def tell(self, ends: bool = False) -> None:
        """Tell all others of an exception that has left this worker's `fit` since the last call.

        Args:
          ends: whether this process ends now; then also of one that has ended it anywhere else.
        """
        is_told = self._told is not None and self._told.ends
        if is_told or os.getpid() != self._process:  # or in a forked child
            return
        departure = self._status.departure(ends)
        if departure != self._told:
            self._told = departure
            if departure:
                tell = self._channel.tell_at_exit if ends else self._channel.ask_all
                tell("departure", rank=self._rank, **dataclasses.asdict(departure))

    def learn(self, answers: Mapping[int, dict[str, Any] | Absence]) -> None:
        """Learn from answers to the question where workers are; forget all that train."""
        with self._lock:
            self.known = {
                rank: departure
                for rank, answer in answers.items()
                if (departure := _latest(answer, self.known.get(rank)))
            }

    def forget(self) -> None:
        """Forget everything: the members have changed."""
        self.known = {}

    def _note(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take note of what another worker tells. On the channel's thread."""
        told = checked(request, self._size, rank=Rank, text=str, ends=bool)
        with self._lock:
            self.known = {**self.known, told["rank"]: Departure(told["text"], told["ends"])}
        self.heard = time.monotonic()
        return {}


def _latest(answer: dict[str, Any] | Absence, known: Departure | None) -> Departure | None:
    """Return what is known of a worker after an answer; what it has told as its last is final."""
    if isinstance(answer, Absence) or (known and known.ends):
        return known
    left = answer.get("left")
    return Departure(str(left), ends=False) if left else None
