"""Recommend one of the algorithms that `plan.predict` compares, and give the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from tf_gossip_pga.algorithm.topology import BY_NAME

Row: TypeAlias = dict[str, Any]  # one entry of the list `rows` in the result of `plan.predict`

_WORTH = 0.1  # relative difference below which two times, or two transient stages, count as equal
_DEFAULT_TOPOLOGY = "one_peer_exponential"  # the default of GossipPGA over gRPC


def recommend(rows: list[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Recommend one of the predicted algorithms, each of which is a row of the prediction.

    All Gossip-PGA rows are candidates. A Gossip SGD row is a candidate if its transient stage for
    non-iid data is known, finite, and at most 10% longer than that of Gossip-PGA with the longest
    period on the same graph. Otherwise, that graph needs global averages. The best candidate is
    found in three steps:

    1. Keep the candidates whose step time is within 10% of the shortest.
    2. Of these, keep those whose transient stage for non-iid data is within 10% of the shortest.
       An unknown transient stage counts as longer than a known one.
    3. Choose the fastest of the remaining candidates.

    If the best candidate is less than 10% faster than Parallel SGD, Parallel SGD is recommended
    instead, because it has no transient stage.

    Args:
      rows: the list `rows` in the result of `plan.predict`, Parallel SGD first.
      settings: the dict `settings` in the result of `plan.predict`.

    Returns:
      `{"name": …, "code": …, "reasons": […]}`: the name of a row, the line of Python that creates
      the callback for this row, and three sentences. In the line of Python, the variable `topology`
      stands for a `Topology` that the user has built.
    """
    parallel, best = rows[0], _best(rows)
    pays = best["speedup"] >= 1 + _WORTH
    chosen = best if pays else parallel
    reasons = [
        _speed(chosen, settings),
        _global_averages(rows, best) if pays else _all_reduce(best),
        _comparison(min((row for row in rows if row["method"] == "Local SGD"), key=_time), chosen),
    ]
    return {"name": chosen["name"], "code": _code(chosen, settings), "reasons": reasons}


def over_one_machine(row: Row, settings: Mapping[str, Any]) -> float | None:
    """Return the speedup of an algorithm over a single machine.

    The single machine computes the batches of all workers one after another, without exchanges.

    Args:
      row: the algorithm, an entry of the list `rows` in the result of `plan.predict`.
      settings: the dict `settings` in the result of `plan.predict`.

    Returns:
      The ratio of the step times, or None if a step of the algorithm takes no time.
    """
    return settings["nodes"] * settings["compute_ms"] / _time(row) if _time(row) else None


def _best(rows: list[Row]) -> Row:
    """Return the best candidate, even if it is slower than Parallel SGD."""
    near = _near(rows)
    shortest = min(map(_order, near))
    return min((row for row in near if _order(row) <= (1 + _WORTH) * shortest), key=_time)


def _near(rows: list[Row]) -> list[Row]:
    """Return the candidates whose step time is within 10% of the shortest."""
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


def _code(row: Row, settings: Mapping[str, Any]) -> str:
    """Return the code that creates the `GossipPGA` callback of a row."""
    graph = row["topology"]
    arguments = [f"H={row['H']}"]
    if graph not in (None, _DEFAULT_TOPOLOGY):
        arguments.append(f'topology="{graph}"' if graph in BY_NAME else "topology=topology")
    if graph and settings["gossip_every"] > 1:
        arguments.append(f"gossip_every={settings['gossip_every']}")
    if graph and settings["overlap"]:
        arguments.append("overlap=True")
    if graph and settings["wire_dtype"] != "float32":
        arguments.append(f'wire_dtype="{settings["wire_dtype"]}"')
    return f"GossipPGA({', '.join(arguments)})"


def _speed(row: Row, settings: Mapping[str, Any]) -> str:
    """State a row's step time, and its speedups over Parallel SGD and over one machine."""
    text = f"{row['name']} takes {_time(row):.4g} ms a step"
    ratios = [f"{row['speedup']:.3g} times as fast as Parallel SGD"] if row["topology"] else []
    over_one = over_one_machine(row, settings)
    if over_one:
        how = f"{over_one:.3g} times as fast as" if over_one >= 1 else "slower than"
        ratios.append(f"{how} one machine with the same global batch")
    return f"{text}: {' and '.join(ratios)}." if ratios else f"{text}."


def _all_reduce(best: Row) -> str:
    """Explain why Parallel SGD is recommended instead of the best candidate."""
    return (
        f"The best alternative, {best['name']}, takes {_time(best):.4g} ms, which does not make up "
        "for its transient stage and for replicas that differ."
    )


def _global_averages(rows: list[Row], best: Row) -> str:
    """State what global averages add on the graph of the best row: compare it with and without."""
    plain, *periodic = _on_graph(rows, best["topology"])
    if best is not plain:
        return _comparison(plain, best)
    row = _longest(periodic)
    return (
        f"Global averages every {row['H']} steps would hardly shorten the transient stage; use "
        f"them if the replicas drift apart ({_time(row):.4g} ms a step)."
    )


def _comparison(other: Row, best: Row) -> str:
    """State another row's step time, and compare its transient stage with that of the best row."""
    return f"{other['name']} takes {_time(other):.4g} ms {_lag(other, best)}."


def _lag(other: Row, best: Row) -> str:
    """Compare two transient stages for non-iid data, as a ratio if both are known and finite."""
    of_best, of_other = _order(best), _order(other)
    if 0 < of_best < math.inf and 0 < of_other < math.inf:
        return f"and has a transient stage {_times(of_other / of_best)} as long on non-iid data"
    if not of_other:
        return "and has no transient stage"
    if not of_best:
        return "but has a transient stage"
    if other["beta"] is not None and of_other == math.inf:
        return "but never catches up with Parallel SGD"
    return "but it is unknown which of the two catches up first"


def _times(ratio: float) -> str:
    """Return a ratio in words, with three significant digits."""
    if ratio >= 1e6:
        return "more than a million times"
    number = f"{ratio:.3g}" if ratio < 1000 else f"{float(f'{ratio:.3g}'):,.0f}"
    return f"{number} times"


def _time(row: Row) -> float:
    return row["step_ms"]


def _order(row: Row) -> float:
    return math.inf if row["transient_non_iid"] is None else row["transient_non_iid"]
