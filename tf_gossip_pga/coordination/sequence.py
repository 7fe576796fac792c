"""Count the exchanges of one `fit` across losses. All members run them in the same order."""

from __future__ import annotations


class Sequence:
    """This worker's place in the sequence of exchanges.

    After a loss, the surviving workers agree on the largest count, and average their models. A
    worker with a smaller count skips the exchanges that others have completed.

    Args:
      futile_regroups: how often the same exchange may fail, although no worker is lost, before this
        worker gives up.
      completed: the initial count of completed exchanges.

    Attributes:
      completed: number of exchanges that this worker has completed or skipped.
      must_reconcile: whether the view has changed since the members last averaged their models.
    """

    def __init__(self, futile_regroups: int, completed: int = 0) -> None:
        self.completed = completed
        self.must_reconcile = False
        self._missed = 0  # exchanges that others have completed without this worker
        self._futile_regroups = futile_regroups
        self._futile = 0
        self._completed_at_regroup: int | None = None

    @property
    def skips_next(self) -> bool:
        """Whether the other members have completed the next exchange without this worker."""
        return self._missed > 0

    @property
    def is_at_start(self) -> bool:
        """Whether no member has completed any exchange."""
        return self.completed + self._missed == 0

    def complete(self) -> None:
        """Count the next exchange, which this worker has completed or skipped."""
        self.completed += 1
        self._missed = max(0, self._missed - 1)

    def regroup(self, most_completed: int, is_lost: bool) -> bool:
        """Record a new view, and return whether to attempt the failed exchange again.

        Args:
          most_completed: the largest count among all members of the view.
          is_lost: whether a member of the previous view is missing from the new one.

        Returns:
          False if the same exchange has failed too often although no worker was lost (see
          `futile_regroups`), else True.
        """
        helps = is_lost or self.completed != self._completed_at_regroup
        self._futile = 0 if helps else self._futile + 1
        self._completed_at_regroup = self.completed
        self._missed = most_completed - self.completed
        self.must_reconcile = True
        return self._futile < self._futile_regroups
