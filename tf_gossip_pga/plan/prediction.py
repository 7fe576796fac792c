"""Predict the step time and the transient stage of each algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tf_gossip_pga.algorithm import schedule as schedule_lib
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.plan import arguments, cost, probe, recommendation

TOPOLOGIES = ("one_peer_exponential", "static_exponential", "ring")
PERIODS = (6, 12, 24)


def predict(
    nodes: int,
    parameters: Any,
    compute_ms: float,
    mbit: float,
    latency_ms: float = 0.1,
    straggler_ms: float = 0.0,
    overhead_ms: float = 0.0,
    wire_dtype: str = "float32",
    overlap: bool = False,
    gossip_every: int = 1,
    H: int | Iterable[int] = PERIODS,  # noqa: N803 (the paper's name)
    topology: str | Topology | Iterable[str | Topology] = TOPOLOGIES,
) -> dict[str, Any]:
    """Predict the step time and the transient stage of each algorithm, and recommend one.

    See `tf_gossip_pga.plan` for the network model and the fields of the result.

    Args:
      nodes: number of workers, each with its own link, >= 2.
      parameters: number of trainable parameters, >= 1, or a built Keras model.
      compute_ms: mean time of a step without any exchange, in ms, >= 0.
      mbit: link bandwidth per direction, in Mbit/s, > 0.
      latency_ms: latency of one message, in ms, >= 0. Default 0.1.
      straggler_ms: standard deviation of the time of a step's computation, in ms, >= 0. Default 0.
      overhead_ms: fixed cost of an exchange besides its latency, in ms, >= 0. Default 0.
      wire_dtype: wire format of gossips: `"float32"` (default), `"bfloat16"` or `"int8"`.
      overlap: whether gossips overlap with the computation of the next steps. Default False.
      gossip_every: number of steps from one gossip to the next, >= 1 and, if it is not 1, less than
        the shortest `H`. Default 1.
      H: one or more periods of the global average, each from 2 to 10000 steps.
      topology: one or more graphs, each a name or a `Topology` for `nodes` ranks. No two graphs may
        have the same name.

    Returns:
      A JSON-serializable dict with `settings`, `rows` and `recommendation`.

    Raises:
      ValueError: an argument is out of range, or a topology does not exist for `nodes` ranks.
      TypeError: a topology is neither a name nor a `Topology`.
      MemoryError: the complete graph of `nodes` ranks would not fit into this machine's memory.

    Example:
      >>> from tf_gossip_pga import plan
      >>> found = plan.predict(nodes=32, parameters=25_557_032, compute_ms=250, mbit=1000)
      >>> found["rows"][0]["name"], round(found["rows"][0]["step_ms"])  # milliseconds
      ('Parallel SGD', 1841)
    """
    times = {"compute_ms": compute_ms, "mbit": mbit, "latency_ms": latency_ms}
    times |= {"straggler_ms": straggler_ms, "overhead_ms": overhead_ms}
    n, periods, graphs = arguments.comparison(nodes, H, topology)
    elements = probe.count(parameters)
    numbers = arguments.numbers(times)
    costs = _costs(n, elements, wire_dtype, numbers)
    schedule_lib.resolve(min(periods), gossip_every)  # raises if it is not accepted
    form = {"wire_dtype": wire_dtype, "overlap": bool(overlap), "gossip_every": int(gossip_every)}
    rows = _rows(n, periods, graphs, costs, form)
    settings = {"nodes": n, "parameters": elements, **costs, **numbers, **form}
    advice = recommendation.recommend(rows, settings)
    return {"settings": settings, "rows": rows, "recommendation": advice}


def _costs(n: int, elements: int, wire_dtype: str, given: dict[str, float]) -> dict[str, float]:
    """Return the argument `costs` of `cost.step_ms`, in ms, and of `cost.mb_per_step`, in MB."""
    full, sent = (
        wire_lib.resolve(form).encoded_bytes(elements, 4) for form in ("float32", wire_dtype)
    )
    mbit, latency_ms, overhead_ms = given["mbit"], given["latency_ms"], given["overhead_ms"]
    return {
        "compute_ms": given["compute_ms"],
        "straggler_ms": given["straggler_ms"],
        "message_ms": 8e-3 * sent / mbit,
        "latency_ms": latency_ms + overhead_ms,
        "average_ms": 2 * (n - 1) * (8e-3 * full / mbit / n + latency_ms) + overhead_ms,
        "message_mb": sent / 1e6,
        "average_mb": 2 * (n - 1) / n * full / 1e6,
    }


def _rows(
    n: int,
    periods: list[int],
    graphs: list[Topology],
    costs: dict[str, float],
    form: dict[str, Any],
) -> list[dict[str, Any]]:
    nobody = topology_lib.disconnected(n)
    runs: list[tuple[str, Topology, int | None]] = [("Parallel SGD", nobody, 1)]
    runs += [("Local SGD", nobody, period) for period in periods]
    for graph in graphs:
        runs.append(("Gossip SGD", graph, None))
        runs += [("Gossip-PGA", graph, period) for period in periods]
    rows = [_row(method, graph, period, costs, form) for method, graph, period in runs]
    for row in rows:
        row["speedup"] = rows[0]["step_ms"] / row["step_ms"] if row["step_ms"] else 1.0
    return rows


def _row(
    method: str,
    graph: Topology,
    period: int | None,
    costs: dict[str, float],
    form: dict[str, Any],
) -> dict[str, Any]:
    gossips = method.startswith("Gossip")
    periodic = period not in (None, 1)
    every = form["gossip_every"] if gossips else 1
    beta = cost.beta_of(graph, every) if gossips else None
    runs = graph, schedule_lib.FixedPeriod(period, every), costs, form["overlap"]
    iid, non_iid = cost.transient(method, graph.size, beta, period)
    return {
        "name": ", ".join([method, *[graph.name] * gossips, *[f"H={period}"] * periodic]),
        "method": method,
        "topology": graph.name if gossips else None,
        "H": period,
        "step_ms": cost.step_ms(*runs),
        "mb_per_step": cost.mb_per_step(*runs),
        "beta": beta,
        "transient_iid": iid,
        "transient_non_iid": non_iid,
    }
