"""Write spans of all ranks in Chrome's trace event format, which Perfetto and Chrome display.

Source: "Trace Event Format", Google, 2016. Each rank is a process of the trace. Each span is a
complete event (phase "X"), with times in microseconds since the first span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tf_gossip_pga.observe.waits import Spans, Wait
from tf_gossip_pga.training import recorder
from tf_gossip_pga.training.recorder import Span

_TRAINING, _BACKGROUND = 0, 1  # the threads of each process
_NAMES = {_TRAINING: "training", _BACKGROUND: "in the background"}

Event = dict[str, Any]


def document(spans_by_rank: Spans, waits: Sequence[Wait]) -> dict[str, Any]:
    """Return the content of a trace file, JSON-serializable.

    Args:
      spans_by_rank: the spans of each rank, with aligned clocks.
      waits: the result of `waits.waits` for these spans.

    Example:
      >>> spans = {0: [Span("gossip", step=7, begin=50.0, seconds=0.25, peers=(1,), bytes=80)]}
      >>> document(spans, [])["traceEvents"][-1]["args"]
      {'step': 7, 'peers': [1], 'bytes': 80}
    """
    begin = min((each.begin for spans in spans_by_rank.values() for each in spans), default=0.0)
    events = [event for rank in sorted(spans_by_rank) for event in _names(rank, spans_by_rank)]
    waited = {(each.rank, each.span): each for each in waits}
    for rank, spans in sorted(spans_by_rank.items()):
        for span in sorted(spans, key=lambda each: (each.begin, -each.seconds)):
            events += _events(rank, span, waited.get((rank, span)), begin)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"writer": "tf_gossip_pga.Timeline", "seconds_since_1970": begin},
    }


def _names(rank: int, spans_by_rank: Spans) -> Iterator[Event]:
    """Yield the names of a rank's process and threads."""
    common = {"ph": "M", "pid": rank}
    yield {**common, "name": "process_name", "args": {"name": f"rank {rank}"}}
    yield {**common, "name": "process_sort_index", "args": {"sort_index": rank}}
    for thread in sorted({_thread(each) for each in spans_by_rank[rank]}):
        yield {**common, "tid": thread, "name": "thread_name", "args": {"name": _NAMES[thread]}}


def _events(rank: int, span: Span, wait: Wait | None, begin: float) -> Iterator[Event]:
    """Yield the event of a span and, inside it, that of the wait."""
    args: Event = {"step": span.step}
    if span.where:
        args["where"] = span.where
    if span.kind in recorder.EXCHANGES:
        args |= {"peers": list(span.peers), "bytes": span.bytes}
    common = {"ph": "X", "pid": rank, "tid": _thread(span), "ts": _us(span.begin - begin)}
    if wait is not None:
        args[f"waited for rank {wait.peer}"] = f"{wait.seconds * 1e3:.3f} ms"
    yield {**common, "name": span.kind, "cat": "step", "dur": _us(span.seconds), "args": args}
    if wait is not None:
        name = f"waiting for rank {wait.peer}"
        inside = {"step": span.step, "rank": wait.peer}
        yield {**common, "name": name, "cat": "wait", "dur": _us(wait.seconds), "args": inside}


def _thread(span: Span) -> int:
    return _BACKGROUND if span.kind == recorder.BACKGROUND_GOSSIP else _TRAINING


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
