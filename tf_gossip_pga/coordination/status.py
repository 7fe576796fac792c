"""Describe what a worker is doing, or why it does not answer, for workers that wait for it."""

from __future__ import annotations

import dataclasses
import enum
import time
import types

from tf_gossip_pga.coordination import running_call


class Absence(enum.Enum):
    """Why a worker did not answer, as text that follows the worker's name in a sentence."""

    SUSPECTED = "does not answer (its process is stopped, or the network to it is cut)"
    DEAD = "has ended: its process no longer listens"


# How a worker has left `fit`, if the exception is not known.
LEFT = "has left fit"


@dataclasses.dataclass(frozen=True)
class Departure:
    """A worker's report that an exception has escaped its `fit` or ended the worker.

    Attributes:
      text: a predicate about the worker: `"raised OSError: disk full"`.
      ends: whether its process is ending.
    """

    text: str
    ends: bool


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """A worker's report about what it is doing, and which exchanges it has reached.

    Attributes:
      where: the worker's activity in `fit`, phrased to follow "It is" in a sentence, e.g.
        `"computing step 7"`. Empty before its first `fit`.
      where_s: how many seconds this activity has lasted.
      step: number of completed steps.
      exchanges: how many exchanges it has begun in its view. All ranks take part in the same
        exchanges in the same order, so a rank that has begun fewer is late.
      waits_at: the exchange that it waits in, or None.
      waits_s: how many seconds it has waited there.
      fits: how many times it has called `fit`.
      in_fit: whether it is still inside the last of these calls.
      left: how it left the last of these calls early, e.g. `"raised OSError: disk full"` or `LEFT`.
        None while it trains and after it has finished.
      unfinished: the exchange that it has begun but not completed, or None. If that exchange fails,
        the worker can begin no further exchange in its view.
      can_regroup: whether the next `fit` may still form a view without the lost worker, because the
        unfinished exchange failed between two `fit` calls.
      view: number of the worker's view.
    """

    where: str
    where_s: float
    step: int
    exchanges: int
    waits_at: str | None
    waits_s: float
    fits: int
    in_fit: bool
    left: str | None = None
    unfinished: str | None = None
    can_regroup: bool = False
    view: int = 0


class Status:
    """This process's status. Training threads update it, and the channel's thread reads it.

    Attributes:
      exchanges: as in `Whereabouts`: how many exchanges this process has begun in its view.
      unfinished: as in `Whereabouts`: the exchange that was begun but not completed, or None.
      can_regroup: as in `Whereabouts`: whether the next `fit` may form a view after a loss.
    """

    def __init__(self) -> None:
        self.exchanges = 0
        self.unfinished: str | None = None
        self.can_regroup = False
        self._view = 0
        # Tuples, replaced as a whole: the channel's thread never reads a half-updated value.
        self._at: tuple[str, int, float] = ("", 0, time.monotonic())
        self._waits: tuple[str, float] | None = None
        self._fit: running_call.Call | None = None
        self._fits = 0

    def at(self, where: str, step: int) -> None:
        """Record what this process is doing now, and how many steps it has completed."""
        self._at = (where, step, time.monotonic())

    def enter_fit(self, code: types.CodeType) -> None:
        """Record that this thread trains until the function with this code returns.

        When an exception escapes `fit`, no callback is called, but the thread's stack reveals it.
        """
        self._fit = running_call.Call(code)
        self._fits += 1

    def end_fit(self) -> None:
        """Record that this process has finished training, although `fit` has not returned yet."""
        if self._fit is not None:
            self._fit.has_ended = True

    def begin_view(self, number: int) -> None:
        """Record that this process is a member of a new view.

        All members restart their count of exchanges at 0.
        """
        self._view = number
        self.exchanges = 0

    def wait(self, doing: str) -> None:
        """Record that an exchange begins."""
        self.exchanges += 1
        self.unfinished = doing
        self._waits = (doing, time.monotonic())

    def arrive(self, completed: bool = True) -> None:
        """Record that the exchange is over.

        Args:
          completed: whether the exchange has produced a result.
        """
        self._waits = None
        if completed:
            self.unfinished = None

    def departure(self, ends: bool = False) -> Departure | None:
        """Return how an exception ended `fit`, or None if no exception did.

        Args:
          ends: whether this process is ending. If so, also return an exception that ended the
            process outside `fit`.
        """
        text = self.tell().left
        if ends:
            raised = running_call.uncaught() if text in (None, LEFT) else text
            if raised:
                text = f"{raised}, and has ended"
            elif text:
                text = f"{LEFT} and ended, by sys.exit or after an exception that it caught"
        return Departure(text, ends) if text else None

    def tell(self) -> Whereabouts:
        """Return what this process is doing now. Thread-safe."""
        (where, step, since), waits = self._at, self._waits
        now = time.monotonic()  # read last, so that no duration is negative
        fit, left = self._fit, None
        if fit is not None and fit.was_left:
            left = fit.raised() or LEFT
        return Whereabouts(
            where=where,
            where_s=now - since,
            step=step,
            exchanges=self.exchanges,
            waits_at=waits[0] if waits else None,
            waits_s=now - waits[1] if waits else 0.0,
            fits=self._fits,
            in_fit=left is None and fit is not None and fit.is_running,
            left=left,
            unfinished=self.unfinished,
            can_regroup=self.can_regroup,
            view=self._view,
        )
