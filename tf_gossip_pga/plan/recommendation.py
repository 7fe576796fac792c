"""Recommend one of the predicted algorithms, and give the reasons."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]  # one of the `rows` of `predict`

_WORTH = 0.1  # relative difference below which two times, or two transient stages, count as equal


def recommend(rows: list[Row], compute_ms: float) -> dict[str, Any]:
    """Recommend one of the predicted algorithms.

    Candidates are all rows of Gossip-PGA. Gossip SGD is a candidate if its transient stage is at
    most 10% longer than that of the longest period on the same graph; otherwise the graph needs
    global averages. The choice among the candidates has three steps:

    1. Keep those whose step time is within 10% of the fastest.
    2. Of these, keep those whose transient stage for non-iid data is within 10% of the shortest.
    3. Take the fastest of the rest.

    If it is less than 10% faster than Parallel SGD, recommend Parallel SGD instead, which has no
    transient stage.

    Args:
      rows: the `rows` of `predict`, Parallel SGD first.
      compute_ms: mean time of a step's computation, in ms.

    Returns:
      `{"name": …, "reasons": […]}`: the name of a row, and sentences.
    """
    parallel, near = rows[0], _near(rows)
    shortest = min(map(_order, near))
    best = min((row for row in near if _order(row) <= (1 + _WORTH) * shortest), key=_time)
    share = compute_ms / _time(parallel) if _time(parallel) else 1.0
    reasons = [
        f"Parallel SGD takes {_time(parallel):.4g} ms a step, of which {share:.0%} is computation; "
        f"{best['name']} {_time(best):.4g} ms, {best['speedup']:.2f} times as fast."
    ]
    if best["speedup"] < 1 + _WORTH:
        reasons.append(
            "All-reduce is the better choice here: a gain below a tenth is not worth replicas that "
            "differ, a period to choose, and a transient stage. (H=1 is Parallel SGD.)"
        )
        return {"name": parallel["name"], "reasons": [*reasons, _local_sgd(rows, parallel)]}
    reasons.append(_why_chosen(near))
    plain, *periodic = _on_graph(rows, best["topology"])
    reasons.append(_insurance(periodic) if best is plain else _comparison(plain, best))
    return {"name": best["name"], "reasons": [*reasons, _local_sgd(rows, best)]}


def _near(rows: list[Row]) -> list[Row]:
    """Return the candidates whose step time is within 10% of the fastest."""
    candidates: list[Row] = []
    for graph in dict.fromkeys(row["topology"] for row in rows if row["topology"]):
        plain, *periodic = _on_graph(rows, graph)
        catches_up = _order(plain) <= (1 + _WORTH) * _order(_longest(periodic))
        known = _order(plain) < math.inf
        candidates += [plain, *periodic] if known and catches_up else periodic
    bound = (1 + _WORTH) * min(map(_time, candidates))
    return [row for row in candidates if _time(row) <= bound]


def _on_graph(rows: list[Row], graph: str) -> list[Row]:
    """Return the rows of a graph: Gossip SGD, then Gossip-PGA with each period."""
    return [row for row in rows if row["topology"] == graph]


def _longest(periodic: list[Row]) -> Row:
    return max(periodic, key=lambda row: row["H"])


def _why_chosen(near: list[Row]) -> str:
    """Say why the recommended algorithm was chosen among those near the fastest."""
    fastest = min(near, key=_time)
    counted = "Gossip-PGA, and of Gossip SGD where it catches up as soon,"
    if len(near) == 1:
        return f"No other setting of {counted} is within a tenth of its time."
    text = (
        f"Of {len(near)} settings of {counted} within a tenth of the fastest ({fastest['name']}, "
        f"{_time(fastest):.4g} ms) "
    )
    known = [row for row in near if row["beta"] is not None]
    if not known:
        return f"{text}it is the fastest; which of them catches up first is not known."
    text += (
        "it is the fastest of those with the shortest transient stage where data differ, in order "
        "of size; a tenth more counts as equal."
    )
    return text + " Stages that are not known count as longer." * (len(known) < len(near))


def _insurance(periodic: list[Row]) -> str:
    """Say what Gossip-PGA would cost on the graph for which Gossip SGD is recommended."""
    row = _longest(periodic)
    return (
        f"{row['name']} takes {_time(row):.4g} ms a step: an insurance, where data differ or "
        "replicas drift apart."
    )


def _local_sgd(rows: list[Row], best: Row) -> str:
    fastest = min((row for row in rows if row["method"] == "Local SGD"), key=_time)
    return _comparison(fastest, best)


def _comparison(other: Row, best: Row) -> str:
    """Compare another algorithm with the recommended one."""
    share = _time(other) / _time(best) if _time(best) else 1.0
    return f"{other['name']} takes {share:.2f} times its time, {_lag(other, best)}."


def _lag(other: Row, best: Row) -> str:
    """Compare the transient stages for non-iid data, as a ratio if both are finite and known."""
    of_best, of_other = _order(best), _order(other)
    if 0 < of_best < math.inf and 0 < of_other < math.inf:
        return f"with {of_other / of_best:.3g} times as long a transient stage where data differ"
    if not of_other:
        return "without a transient stage"
    if not of_best:
        return "with a transient stage, which the recommended one does not have"
    if other["beta"] is not None and of_other == math.inf:
        return "and never catches up"
    return "and which of the two catches up first is not known"


def _time(row: Row) -> float:
    return row["step_ms"]


def _order(row: Row) -> float:
    return math.inf if row["transient_non_iid"] is None else row["transient_non_iid"]
