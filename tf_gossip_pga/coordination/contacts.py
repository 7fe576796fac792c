"""Track when this worker last communicated with each other worker, and which dead ones are gone.

If this worker was stopped or cut off, a worker that is dead now may have excluded it and formed a
view without it before it died. But this worker is excluded only if a member has not heard from it
for `silent_s`, or has waited for it to come to a view for `patience_s`. So suppose that nobody has
waited that long, and that all others have answered a question that this worker asked within the
last `silent_s`. Then no view without this worker exists, and a worker found dead at that moment is
*gone*: it has begun no view without this worker.

Moments are numbers on any one clock, in seconds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping

from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing


class Contacts:
    """Record when one worker and the others have communicated. Thread-safe.

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
        self._exchanged: tuple[float, ...] = ()  # ends of the last three with all members
        self._wanted_since: float | None = None  # since when others wait for this worker

    def record_wanted(self, at: float) -> None:
        """Record that another worker wants a view for which this worker does not regroup yet.

        Args:
          at: the moment since which that worker waits.
        """
        with self._lock:
            self._wanted_since = at if self._wanted_since is None else min(at, self._wanted_since)

    def record_regrouping(self, now: float) -> None:
        """Record that this worker regroups for the wanted view.

        If it is too late, it can no longer tell what dead workers have done, and forgets all it
        heard.
        """
        with self._lock:
            self._forget_if_late(now)
            self._wanted_since = None

    def record_exchange(self, now: float) -> None:
        """Record that an exchange of all members has succeeded.

        Call the last three such exchanges 1, 2 and 3. Each member began 3 after it had completed 2.
        Exchange 2 needed this worker, which began it after 1 had ended. So every member was still
        in this view at some moment after the end of 1.
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
          now: when the answers had arrived.
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
        """Return how many seconds old this worker's latest knowledge of a rank is; inf if none."""
        ends = self._exchanged
        known_at = ends[0] if len(ends) == 3 else -math.inf
        return now - max(known_at, self._answered.get(rank, -math.inf))

    def begin(self) -> None:
        """Record that a view begins, whose members have all just answered."""
        with self._lock:
            self.gone = frozenset()
            self._exchanged = ()

    def forget(self) -> None:
        """Forget what this worker has heard: it was away, or a rank is a different process now."""
        with self._lock:
            self._answered.clear()
            self._exchanged = ()

    def _forget_if_late(self, now: float) -> bool:
        is_late = self._wanted_since is not None and now >= self._wanted_since + self.patience_s
        if is_late:
            self.forget()
        return is_late
