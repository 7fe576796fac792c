"""Track when this worker last communicated with each other worker, and which are gone.

While this worker was stopped or cut off, a worker that is dead now may have excluded it and formed
a view without it. However, a member excludes this worker only after hearing nothing from it for
`silent_s`, or after waiting `patience_s` for it to come to a view. Suppose that no member has
waited that long, and that all others have answered a question that this worker asked within the
last `silent_s`. Then no view without this worker exists. A worker found dead at that time is
*gone*: it has begun no view without this worker.

All times are in seconds on the same clock.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping

from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing


class Contacts:
    """Record when this worker and the others last communicated. Thread-safe.

    Args:
      silent_s: how long a worker may show no sign of life before a view is formed without it.

    Attributes:
      patience_s: how long the others wait for this worker to come to a wanted view.
      asked_by: when each rank last asked this worker, which is a sign of life.
      gone: dead ranks that have begun no view without this worker.
    """

    def __init__(self, silent_s: float) -> None:
        self.patience_s = silent_s
        self.asked_by: dict[int, float] = {}
        self.gone: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self._silent_s = silent_s
        self._answered: dict[int, float] = {}  # when the last question it answered was asked
        self._exchanged: tuple[float, ...] = ()  # ends of the last three full exchanges
        self._wanted_since: float | None = None  # when others began to wait for this worker

    def record_wanted(self, at: float) -> None:
        """Record that another worker wants a view that this worker is not yet regrouping for.

        Args:
          at: when that worker started to wait.
        """
        with self._lock:
            self._wanted_since = at if self._wanted_since is None else min(at, self._wanted_since)

    def record_regrouping(self, now: float) -> None:
        """Record that this worker is regrouping for the wanted view.

        If it is too late, this worker can no longer tell what dead workers have done, so it forgets
        everything it has heard.
        """
        with self._lock:
            self._forget_if_late(now)
            self._wanted_since = None

    def record_exchange(self, now: float) -> None:
        """Record that an exchange of all members has succeeded.

        Number the last three such exchanges 1, 2 and 3. Each member began exchange 3 after
        completing exchange 2. Exchange 2 could not complete without this worker, which began it
        after exchange 1 had ended. Every member was therefore still in this view at some time after
        exchange 1 ended.
        """
        with self._lock:
            self._exchanged = (*self._exchanged[-2:], now)

    def answer(
        self,
        others: Collection[int],
        answers: Mapping[int, Standing | Absence],
        asked: float,
        now: float,
    ) -> None:
        """Record the answers to a question, and update which ranks are gone.

        Args:
          others: the other members of the view.
          answers: the answers, by rank.
          asked: when the question was asked.
          now: when all answers had arrived.
        """
        with self._lock:
            if self._forget_if_late(now):
                return
            for rank, each in answers.items():
                if isinstance(each, Standing):
                    self._answered[rank] = asked
            known = [rank for rank in others if rank not in self.gone]
            if all(self.age_s(rank, now) < self._silent_s for rank in known):
                self.gone |= {rank for rank in known if answers.get(rank) is Absence.DEAD}

    def age_s(self, rank: int, now: float) -> float:
        """Return the age in seconds of this worker's latest knowledge of a rank, or inf if none."""
        ends = self._exchanged
        known_at = ends[0] if len(ends) == 3 else -math.inf
        return now - max(known_at, self._answered.get(rank, -math.inf))

    def begin(self) -> None:
        """Record that a view begins. All of its members have just answered."""
        with self._lock:
            self.gone = frozenset()
            self._exchanged = ()

    def forget(self) -> None:
        """Forget everything heard, because this worker was away or a rank is a new process now."""
        with self._lock:
            self._answered.clear()
            self._exchanged = ()

    def _forget_if_late(self, now: float) -> bool:
        is_late = self._wanted_since is not None and now >= self._wanted_since + self.patience_s
        if is_late:
            self.forget()
        return is_late
