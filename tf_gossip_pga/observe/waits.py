"""Find out from the spans of all ranks which rank waited for which.

An exchange waits until the last of its peers has begun it. The wait of rank i in an exchange that
it begins at b_i, and that its peers j begin at b_j, is::

    wait_i = max_j b_j - b_i    if positive, and at most the duration of the exchange

and rank i waited for the peer whose b_j is largest. The rest of the exchange is the transfer, or
the time in which a peer waited for its own peers.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tf_gossip_pga.training import recorder
from tf_gossip_pga.training.recorder import Span

Spans = Mapping[int, Sequence[Span]]  # by rank

# All ranks leave these exchanges at nearly the same time. The first kind is the more precise.
ALIGNING = (recorder.GLOBAL_AVERAGE, recorder.SYNC_POINT)


class Wait(NamedTuple):
    """One wait of a rank for another.

    Attributes:
      rank: the rank that waited.
      span: the exchange in which it waited. The wait is the first part of the span.
      peer: the rank that it waited for.
      seconds: duration of the wait.
    """

    rank: int
    span: Span
    peer: int
    seconds: float


def aligned(spans_by_rank: Spans) -> dict[int, list[Span]]:
    """Return the spans with the clocks of all ranks set to that of the lowest rank.

    The clock of each rank is shifted by the median, over the global averages that both ranks have
    recorded, of the difference between the times at which the two ranks left them. If there are no
    such global averages, sync points take their place. Without any, the clock is not shifted.

    Args:
      spans_by_rank: the spans of each rank.
    """
    if not spans_by_rank:
        return {}
    reference = spans_by_rank[min(spans_by_rank)]
    shifts = {rank: _shift(reference, spans) for rank, spans in spans_by_rank.items()}
    return {
        rank: [each._replace(begin=each.begin + shifts[rank]) for each in spans]
        for rank, spans in sorted(spans_by_rank.items())
    }


def waits(spans_by_rank: Spans) -> list[Wait]:
    """Return all waits of all ranks, by rank and then in the order of their spans.

    Args:
      spans_by_rank: the spans of each rank, with aligned clocks.
    """
    index = {rank: _index(spans) for rank, spans in spans_by_rank.items()}
    found = []
    for rank, spans in sorted(spans_by_rank.items()):
        background = [each for each in spans if each.kind == recorder.BACKGROUND_GOSSIP]
        for span in spans:
            if span.kind in recorder.EXCHANGES and span.kind != recorder.BACKGROUND_GOSSIP:
                awaited = _awaited(span, background)
                found.append(_wait(rank, span, awaited, index) if awaited else None)
    return [each for each in found if each is not None]


def waiting(spans_by_rank: Spans, scales: Mapping[int, float] | None = None) -> np.ndarray:
    """Return how many seconds each rank waited for each other rank, `[n, n]` float64.

    Rows and columns are the n ranks in ascending order. Entry `[i, j]` is the time that the i-th
    rank waited for the j-th.

    Args:
      spans_by_rank: the spans of each rank, with aligned clocks.
      scales: for each rank, the factor by which to multiply its waits except those at sync points.
        Default: 1 for each rank.

    Example:
      >>> gossip = Span("gossip", step=1, begin=0.0, seconds=3.0, peers=(1,))
      >>> late = Span("gossip", step=1, begin=2.0, seconds=1.0, peers=(0,))
      >>> waiting({0: [gossip], 1: [late]})
      array([[0., 2.],
             [0., 0.]])
    """
    places = {rank: place for place, rank in enumerate(sorted(spans_by_rank))}
    seconds = np.zeros([len(places), len(places)])
    for each in waits(spans_by_rank):
        scale = scales[each.rank] if scales and each.span.kind != recorder.SYNC_POINT else 1.0
        seconds[places[each.rank], places[each.peer]] += scale * each.seconds
    return seconds


_Key = tuple[str, int, str]  # kind, step, where: equal on all ranks of one exchange


def _key(span: Span) -> _Key:
    return span.kind, span.step, span.where


def _index(spans: Sequence[Span]) -> dict[_Key, list[Span]]:
    found: dict[_Key, list[Span]] = {}
    for each in spans:
        found.setdefault(_key(each), []).append(each)
    return found


def _shift(reference: Sequence[Span], spans: Sequence[Span]) -> float:
    """Return how far the clock of `spans` is behind that of `reference`, in seconds."""
    if spans is reference:
        return 0.0
    theirs, own = _index(reference), _index(spans)
    for kind in ALIGNING:
        common = [key for key in own if key[0] == kind and key in theirs]
        # An exchange that a loss interrupted has several spans, and they may not correspond.
        pairs = [(theirs[key], own[key]) for key in common if len(theirs[key]) == len(own[key])]
        if pairs:
            return statistics.median(there[-1].end - here[-1].end for there, here in pairs)
    return 0.0


def _wait(
    rank: int, span: Span, awaited: Span, index: Mapping[int, Mapping[_Key, list[Span]]]
) -> Wait | None:
    """Return the wait of a rank inside a span, or None if it did not wait.

    Args:
      rank: the rank.
      span: the span inside which it may have waited.
      awaited: the exchange that it waited for, usually the same span.
      index: the spans of each rank by their keys.
    """
    begins = [
        (_counterpart(awaited, index[peer][_key(awaited)]).begin, peer)
        for peer in awaited.peers
        if _key(awaited) in index.get(peer, ())
    ]
    if not begins:
        return None
    last, peer = max(begins)
    seconds = min(last, span.end) - span.begin
    return Wait(rank, span, peer, seconds) if seconds > 0 else None


def _awaited(span: Span, background: Sequence[Span]) -> Span | None:
    """Return the exchange that must end before a span can end, or None if it is not recorded.

    Args:
      span: an exchange.
      background: the rank's gossips in the background, in the order in which they began. A gossip
        span waits for the one that was started after an earlier step.
    """
    if span.kind != recorder.GOSSIP or not background:
        return span
    earlier = bisect.bisect_left(background, span.begin, key=lambda each: each.begin)
    return background[earlier - 1] if earlier else None


def _counterpart(span: Span, others: Sequence[Span]) -> Span:
    """Return the peer's span of the same exchange: the one that ended at about the same time."""
    return min(others, key=lambda each: abs(each.end - span.end))
