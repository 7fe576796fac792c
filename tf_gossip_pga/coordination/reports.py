"""Decide when a wait is worth a line of output, and name ranks in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

# How many items a list in a sentence has, before it ends with a count.
_LISTED = 8


class Waiting:
    """When to report a wait that begins now: after `first_s`, then whenever it has doubled.

    Args:
      first_s: seconds before it is worth a word.
      now: the moment that it begins; by default that of `time.monotonic`.
    """

    def __init__(self, first_s: float, now: float | None = None) -> None:
        self._began = time.monotonic() if now is None else now
        self._report_at = self._began + first_s

    def due(self, now: float | None = None) -> float | None:
        """Return the seconds waited where they are to be reported now, else None."""
        now = time.monotonic() if now is None else now
        if now <= self._report_at:
            return None
        self._report_at = now + (now - self._began)
        return now - self._began


def named(ranks: Iterable[int], told: Mapping[int, str] | None = None) -> str:
    """Return all ranks in a phrase: `"rank 1 and rank 3, which raised OSError: disk full"`.

    Args:
      ranks: to be named.
      told: predicates about some of them.
    """
    told = told or {}
    return " and ".join(
        f"rank {rank}, which {told[rank]}" if rank in told else f"rank {rank}"
        for rank in sorted(ranks)
    )


def shortened(texts: Sequence[str]) -> list[str]:
    """Return the first texts, and how many more there are."""
    more = len(texts) - _LISTED
    return [*texts[:_LISTED], f"{more} more"] if more > 0 else list(texts)
