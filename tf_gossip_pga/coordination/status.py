"""Where a worker is: what it answers to those that wait for it, and what no answer means."""

from __future__ import annotations

import dataclasses
import enum
import sys
import threading
import time
import traceback
import types


class Absence(enum.Enum):
    """Why a worker gave no answer, as the end of a sentence."""

    SUSPECTED = "does not answer (its process is stopped, or the network between is cut)"
    DEAD = "has ended: its process does not listen any more"


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """Where a worker is, as it reports it to others.

    Attributes:
      where: what it does in `fit`, after "is": `"computing step 7"`; empty before its first `fit`.
      where_s: seconds since when.
      step: completed steps.
      exchanges: how many exchanges it has begun. All ranks take part in the same exchanges in the
        same order, so a rank that has begun fewer is late.
      waits_at: the exchange that it waits in, or None.
      waits_s: seconds since when.
      fits: how many times it has called `fit`.
      in_fit: whether it is still inside the last of these.
    """

    where: str
    where_s: float
    step: int
    exchanges: int
    waits_at: str | None
    waits_s: float
    fits: int
    in_fit: bool


class Status:
    """Where this process is; kept by the threads that train, read by the channel's thread.

    Attributes:
      exchanges: see `Whereabouts`.
    """

    def __init__(self) -> None:
        self.exchanges = 0
        # Each is replaced as a whole, so that the channel's thread never sees half of it.
        self._at: tuple[str, int, float] = ("", 0, time.monotonic())
        self._waits: tuple[str, float] | None = None
        self._fit: tuple[int, types.CodeType] | None = None
        self._fits = 0

    def at(self, where: str, step: int) -> None:
        """Record what this process does now, and how many steps it has completed."""
        self._at = (where, step, time.monotonic())

    def enter_fit(self, code: types.CodeType) -> None:
        """Record that this thread trains until the function with this code has returned.

        An exception leaves `fit` without calling any callback, but the thread's stack shows it.
        """
        self._fit = (threading.get_ident(), code)
        self._fits += 1

    def wait(self, doing: str) -> None:
        """Record that an exchange begins."""
        self.exchanges += 1
        self._waits = (doing, time.monotonic())

    def arrive(self) -> None:
        """Record that the exchange is over."""
        self._waits = None

    def tell(self) -> Whereabouts:
        """Return where this process is; any thread may call it."""
        now, (where, step, since), waits = time.monotonic(), self._at, self._waits
        return Whereabouts(
            where=where,
            where_s=now - since,
            step=step,
            exchanges=self.exchanges,
            waits_at=waits[0] if waits else None,
            waits_s=now - waits[1] if waits else 0.0,
            fits=self._fits,
            in_fit=self._fit is not None and runs(*self._fit),
        )


def runs(thread: int, code: types.CodeType) -> bool:
    """Return whether a function is on a thread's stack."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    return frame is not None and any(each.f_code is code for each, _ in traceback.walk_stack(frame))
