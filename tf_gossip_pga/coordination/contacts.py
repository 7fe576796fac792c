"""Track contacts with other workers, and which dead ones have begun no view without this worker.

While this worker was stopped or cut off, a worker that has died since may have formed a view
without this worker. However, a member excludes this worker only after hearing nothing from this
worker for `silent_s`, or after waiting `patience_s` for this worker to help form a view. Suppose
that no member has waited for `patience_s`, and that each other member has answered a question that
this worker asked within the last `silent_s`. Then no view without this worker exists. A member that
is found dead while both conditions hold is *gone*: it has begun no view without this worker.

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
      patience_s: how long the others wait for this worker to help form a view that they want.
      asked_by: when each rank last asked this worker a question. A question is a sign of life.
      gone: dead ranks that have begun no view without this worker.
    """

    def __init__(self, silent_s: float) -> None:
        self.patience_s = silent_s
        self.asked_by: dict[int, float] = {}
        self.gone: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self._silent_s = silent_s
        # rank -> when this worker asked the last question that the rank has answered
        self._answered: dict[int, float] = {}
        self._exchanged: tuple[float, ...] = ()  # ends of the last three exchanges of all members
        self._wanted_since: float | None = None  # when others began to wait for this worker

    def record_wanted(self, at: float) -> None:
        """Record that another worker wants a view that this worker does not try to form yet.

        Args:
          at: when that worker started to wait.
        """
        with self._lock:
            self._wanted_since = at if self._wanted_since is None else min(at, self._wanted_since)

    def record_regrouping(self, now: float) -> None:
        """Record that this worker now tries to form the wanted view.

        If the others may have stopped waiting for this worker, this worker can no longer tell
        whether a dead worker has begun a view without it. It therefore forgets all contacts.
        """
        with self._lock:
            self._forget_if_late(now)
            self._wanted_since = None

    def record_exchange(self, now: float) -> None:
        """Record that an exchange of all members has succeeded.

        Number the last three such exchanges 1, 2 and 3. Exchange 3 has succeeded, so every member
        took part in it, and had completed exchange 2 before. Exchange 2 could not complete before
        this worker began it, which this worker did after exchange 1 had ended. Every member was
        therefore still in this view at some time after the end of exchange 1. Hence the end of
        exchange 1 counts as the last contact with every member.
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
        """Record the answers to a question that this worker asked, and update `gone`.

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
        """Return how many seconds ago the last known contact with a rank was; inf if there is none.

        A contact is an exchange of all members, or a question that the rank has answered. See
        `record_exchange` for the time at which an exchange counts as a contact. An answered
        question counts from the time when this worker asked it.
        """
        ends = self._exchanged
        known_at = ends[0] if len(ends) == 3 else -math.inf
        return now - max(known_at, self._answered.get(rank, -math.inf))

    def begin(self) -> None:
        """Record that a view begins. All of its members have just answered."""
        with self._lock:
            self.gone = frozenset()
            self._exchanged = ()

    def forget(self) -> None:
        """Forget all contacts.

        This is necessary if others may have stopped waiting for this worker, or if a process with
        the rank of an earlier one is about to join.
        """
        with self._lock:
            self._answered.clear()
            self._exchanged = ()

    def _forget_if_late(self, now: float) -> bool:
        is_late = self._wanted_since is not None and now >= self._wanted_since + self.patience_s
        if is_late:
            self.forget()
        return is_late
