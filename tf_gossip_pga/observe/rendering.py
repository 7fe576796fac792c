"""Draw the pictures of a record, and put them into its page."""

from __future__ import annotations

from collections.abc import Iterator

from tf_gossip_pga.observe import figures, page
from tf_gossip_pga.observe.page import Picture
from tf_gossip_pga.observe.record import Record

# A page with more pictures of metrics would be slow to write and to read.
_MOST_METRICS = 12


def render(record: Record) -> str:
    """Return the page about a run, with its pictures. Needs matplotlib."""
    waiting = None
    if record.size > 1:
        caption = "Seconds. A row shows for whom a rank waited; a column shows who waited for it."
        # On a narrow screen, the numbers of many cells would be too small to read.
        least = 560 if 8 < record.size <= figures.NUMBERED else 0
        waiting = Picture("Waiting, rank by rank", figures.waiting(record), caption, least)
    return page.page(record, list(_curves(record)), waiting)


def _curves(record: Record) -> Iterator[Picture]:
    metrics = record.metrics
    for index, name in enumerate(metrics[:_MOST_METRICS]):
        left = len(metrics) - _MOST_METRICS
        is_last = index == _MOST_METRICS - 1
        caption = f"{left} more metrics are not shown." if is_last and left > 0 else ""
        yield Picture(name, figures.by_epoch(record, name, f"metric{index}"), caption)
    distances = figures.consensus(record)
    if distances:
        caption = (
            "How far the replicas were from their mean, relative to the mean, before each global "
            "average."
        )
        yield Picture("consensus distance", distances, caption)
    if record.epochs and record.size > 1:
        caption = "Including the wait for other ranks."
        yield Picture("time in exchanges", figures.exchanging(record), caption)
    if "H" in record.logs:
        caption = "Steps between global averages, at the end of each epoch."
        yield Picture("H", figures.by_epoch(record, "H", "period"), caption)
