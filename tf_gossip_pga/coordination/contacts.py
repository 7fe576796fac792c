"""Remember when this worker last spoke with each other one, and which dead ones are of no account.

A dead worker may have excluded this one and gone on, if this one was stopped or cut off before.
Nobody excludes a worker that it has heard within `silent_s`, or that has not been asked to come for
`patience_s`. So while all others have answered this worker's questions of the last `silent_s`,
there is no view without it, and a worker found dead then is gone: no view has it as a member.

Moments are numbers on any one clock, in seconds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping

from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing


class Contacts:
    """When one worker and the others have spoken.

    Several threads may use it.

    Args:
      silent_s: how long a worker may show no sign of life before a view is formed without it.

    Attributes:
      patience_s: how long the others wait for this worker after it was asked to come.
      asked_by: when each rank last asked this worker: a sign of its life.
      gone: dead ranks that have begun no view without this worker.
    """

    def __init__(self, silent_s: float) -> None:
        self.patience_s = silent_s
        self.asked_by: dict[int, float] = {}
        self.gone: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self._silent_s = silent_s
        self._answered: dict[int, float] = {}  # when the last question that was answered was asked
        self._met: tuple[float, ...] = ()  # when the last three exchanges with all were over
        self._summoned_at: float | None = None  # since when this worker is asked to come

    def summon(self, at: float) -> None:
        """Note that another worker wants a view to which this one has yet to come.

        Args:
          at: since when it is waited for.
        """
        with self._lock:
            self._summoned_at = at if self._summoned_at is None else min(at, self._summoned_at)

    def come(self, now: float) -> None:
        """Note that this worker comes; too late, it can no longer tell what the dead ones did."""
        with self._lock:
            self._forget_if_late(now)
            self._summoned_at = None

    def meet(self, now: float) -> None:
        """Note that an exchange with all members has succeeded.

        Each of them began it after the exchange before, which needed this worker, which began that
        one after the exchange before that: then, at the latest, all were in this view.
        """
        with self._lock:
            self._met = (*self._met[-2:], now)

    def answer(
        self,
        others: Collection[int],
        answers: Mapping[int, Standing | Absence],
        asked: float,
        now: float,
    ) -> None:
        """Note the answers to a question, and who is gone.

        Args:
          others: the other members of the view.
          answers: of each worker that was asked.
          asked: when the question was asked.
          now: when the answers were there.
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
        """Return for how many seconds a rank may have done what this worker does not know of."""
        met = self._met
        met_at = met[0] if len(met) == 3 else -math.inf
        return now - max(met_at, self._answered.get(rank, -math.inf))

    def begin(self) -> None:
        """Begin a view, whose members have all just answered."""
        with self._lock:
            self.gone = frozenset()
            self._met = ()

    def forget(self) -> None:
        """Forget what this worker has heard: it was away, or a rank is another process now."""
        with self._lock:
            self._answered.clear()
            self._met = ()

    def _forget_if_late(self, now: float) -> bool:
        is_late = self._summoned_at is not None and now >= self._summoned_at + self.patience_s
        if is_late:
            self.forget()
        return is_late
