"""Decide when to report a wait, and name ranks in the report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

# The maximum number of items that a list in a sentence names. The rest are only counted.
_LISTED = 8


class Waiting:
    """Decide when to report a wait: after `first_s` seconds, then each time the wait has doubled.

    Args:
      first_s: seconds before the first report.
      now: when the wait begins. Default: the current `time.monotonic()`.
    """

    def __init__(self, first_s: float, now: float | None = None) -> None:
        self._began = time.monotonic() if now is None else now
        self._report_at = self._began + first_s

    def due(self, now: float | None = None) -> float | None:
        """Return for how many seconds the wait has lasted if a report is due now, else None."""
        now = time.monotonic() if now is None else now
        if now <= self._report_at:
            return None
        self._report_at = now + (now - self._began)
        return now - self._began


def named(ranks: Iterable[int], predicates: Mapping[int, str] | None = None) -> str:
    """Return a phrase that names all ranks: `"rank 1 and rank 3, which raised OSError: disk full"`.

    Args:
      ranks: the ranks to name.
      predicates: what to say about some of them, by rank, e.g. `"raised OSError: disk full"`.
    """
    predicates = predicates or {}
    return " and ".join(
        f"rank {rank}, which {predicates[rank]}" if rank in predicates else f"rank {rank}"
        for rank in sorted(ranks)
    )


def shortened(texts: Sequence[str]) -> list[str]:
    """Return the first few texts and, if there are more, a text that says how many more."""
    more = len(texts) - _LISTED
    return [*texts[:_LISTED], f"{more} more"] if more > 0 else list(texts)
