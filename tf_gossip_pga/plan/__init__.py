"""WHAT PAYS HERE: the time of a training step, foreseen, and which algorithm to take.

    python -m tf_gossip_pga.plan --nodes=32 --parameters=25557032 --compute_ms=250 --mbit=1000
    python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure --model=FILE.keras

The second command measures what it needs on the cluster that it runs on. In Python, without one:

    >>> from tf_gossip_pga import plan
    >>> found = plan.predict(nodes=8, parameters=12_500_000, compute_ms=1700, mbit=250)
    >>> found["rows"][0]["name"], round(found["rows"][0]["step_ms"])
    ('Parallel SGD', 4501)
    >>> found["recommendation"]["name"]
    'Gossip SGD, one_peer_exponential'

The network: each host has a link of its own, `mbit` out and as much in at the same time. A gossip
sends the bytes that the wire makes of the parameters to each neighbour, a global average is a ring
of float32: 2 (n-1)/n times their bytes and 2 (n-1) latencies; Parallel SGD is one in each step. Who
waits for whom, and the orders of the transient stage with how surely they are known: see
`plan.cost`. Not modelled: what several hosts share (a switch without full bandwidth, the
processor of one machine), computation that an exchange slows down, variables that are not trained,
and workers that are always slower than others: computations are drawn alike for all. Where one of
eight ranks takes 200 ms and the others 100, a step on a ring (messages of 10 ms) is foreseen at 162
ms, from mean and deviation, and takes 220.
"""

import collections
import functools
import math
import sys

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule as schedule_lib
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.plan import cost, probe
from tf_gossip_pga.tools import output

TOPOLOGIES = ("one_peer_exponential", "static_exponential", "ring")
PERIODS = (6, 12, 24)
LONGEST = 10_000  # period: each of its steps is followed

_WORTH = 0.1  # a difference in time below which the simpler or the more accurate is taken

measure = probe.measure


def predict(
    nodes: int,
    parameters,
    compute_ms: float,
    mbit: float,
    latency_ms: float = 0.1,
    straggler_ms: float = 0.0,
    overhead_ms: float = 0.0,
    wire_dtype: str = "float32",
    overlap: bool = False,
    H=PERIODS,  # noqa: N803 (the paper's name)
    topology=TOPOLOGIES,
) -> dict:
    """The time of a step and the transient stage of each algorithm, and which one to take.

    Args:
      nodes: number of workers, each with a link of its own, >= 2.
      parameters: how many numbers are averaged, >= 1; or a built Keras model.
      compute_ms: mean time of a step without any exchange, milliseconds >= 0.
      mbit: what a link carries in each direction, million bits a second, > 0.
      latency_ms: of one message, >= 0. Default 0.1.
      straggler_ms: standard deviation of the computation, over ranks and steps, >= 0. Default 0.
      overhead_ms: what each exchange costs beside bandwidth and latency, >= 0. Default 0.
      wire_dtype: in what form gossips send: `"float32"`, `"bfloat16"` or `"int8"`.
      overlap: whether gossips travel during the next step's computation.
      H: periods of global averages, a list of whole numbers from 2 to 10000.
      topology: who gossips with whom, a list of names, or of `Topology` objects for so many ranks;
        each has another name.

    Returns:
      A dict that JSON can hold: `settings`; `rows`, each with `name`, `method`, `topology`, `H`,
      `step_ms`, `speedup` (over Parallel SGD), `beta`, `transient_iid`, `transient_non_iid`
      (orders; None where beta is not computed, above 512 ranks), Parallel SGD first; and
      `recommendation`, `{"name": …, "reasons": […]}`.

    Raises:
      ValueError: an argument is out of its range, or a topology does not admit so many ranks.
      TypeError: a topology is neither a name nor a `Topology`.
      MemoryError: the complete graph of so many ranks would not fit into this machine's memory.

    Example:

        predict(nodes=32, parameters=model, compute_ms=250, mbit=1000, straggler_ms=20)
    """
    n, periods, graphs = _compared(nodes, H, topology)
    elements = probe.count(parameters)
    compute_ms, mbit = _number("compute_ms", compute_ms), _number("mbit", mbit)
    latency_ms = _number("latency_ms", latency_ms)
    straggler_ms = _number("straggler_ms", straggler_ms)
    overhead_ms = _number("overhead_ms", overhead_ms)
    if not mbit:
        raise ValueError("mbit, million bits a second of a link, must be above 0, received 0.")
    if straggler_ms and not compute_ms:
        raise ValueError(f"straggler_ms={straggler_ms:g} needs compute_ms > 0: it is its spread.")
    full, sent = (wire_lib.resolve(form).bytes(elements, 4) for form in ("float32", wire_dtype))
    costs = {
        "compute_ms": compute_ms,
        "straggler_ms": straggler_ms,
        "message_ms": 8e-3 * sent / mbit,
        "latency_ms": latency_ms + overhead_ms,
        "average_ms": 2 * (n - 1) * (8e-3 * full / mbit / n + latency_ms) + overhead_ms,
    }
    nobody = topology_lib.disconnected(n)
    runs = [("Parallel SGD", nobody, 1), *(("Local SGD", nobody, period) for period in periods)]
    for graph in graphs:
        runs += [("Gossip SGD", graph, None), *(("Gossip-PGA", graph, H) for H in periods)]
    rows = [_row(method, graph, period, costs, overlap) for method, graph, period in runs]
    for row in rows:
        row["speedup"] = rows[0]["step_ms"] / row["step_ms"] if row["step_ms"] else 1.0
    settings = {"nodes": n, "parameters": elements, **costs, "mbit": mbit, "wire_dtype": wire_dtype}
    settings |= {"latency_ms": latency_ms, "overhead_ms": overhead_ms, "overlap": bool(overlap)}
    return {"settings": settings, "rows": rows, "recommendation": recommend(rows, compute_ms)}


def _row(method: str, graph, period: int | None, costs: dict, overlap: bool) -> dict:
    gossips = method.startswith("Gossip")
    periodic = period not in (None, 1)
    beta = cost.beta_of(graph) if gossips else None
    iid, non_iid = cost.transient(method, graph.size, beta, period)
    return {
        "name": ", ".join([method, *[graph.name] * gossips, *[f"H={period}"] * periodic]),
        "method": method,
        "topology": graph.name if gossips else None,
        "H": period,
        "step_ms": cost.step_ms(graph, schedule_lib.resolve(period), costs, overlap),
        "beta": beta,
        "transient_iid": iid,
        "transient_non_iid": non_iid,
    }


def recommend(rows: list[dict], compute_ms: float) -> dict:
    """Which of the rows to take, `{"name", "reasons"}`.

    Candidates are Gossip-PGA in all settings, and Gossip SGD where its transient stage is at most a
    tenth longer than that of the longest period on the same graph: elsewhere global averages are
    what it lacks. Of the candidates within a tenth of the fastest, and of these within a tenth of
    the shortest transient stage, the fastest is taken. But Parallel SGD, which has no such stage,
    where that gains less than a tenth.
    """
    parallel, near = rows[0], _near(rows)
    least = min(map(_order, near))
    best = min((row for row in near if _order(row) <= (1 + _WORTH) * least), key=_time)
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
        return {"name": parallel["name"], "reasons": [*reasons, _local(rows, parallel)]}
    reasons.append(_chosen(near))
    plain, *periodic = _of_graph(rows, best["topology"])
    reasons.append(_insurance(periodic) if best is plain else _beside(plain, best))
    return {"name": best["name"], "reasons": [*reasons, _local(rows, best)]}


def _near(rows: list[dict]) -> list[dict]:
    """The candidates within a tenth of the fastest."""
    candidates = []
    for graph in dict.fromkeys(row["topology"] for row in rows if row["topology"]):
        plain, *periodic = _of_graph(rows, graph)
        catches_up = _order(plain) <= (1 + _WORTH) * _order(_longest(periodic))
        known = _order(plain) < math.inf
        candidates += [plain, *periodic] if known and catches_up else periodic
    bound = (1 + _WORTH) * min(map(_time, candidates))
    return [row for row in candidates if _time(row) <= bound]


def _of_graph(rows: list[dict], graph: str) -> list[dict]:
    """Gossip SGD, and Gossip-PGA with each period."""
    return [row for row in rows if row["topology"] == graph]


def _longest(periodic: list[dict]) -> dict:
    return max(periodic, key=lambda row: row["H"])


def _chosen(near: list[dict]) -> str:
    """Why it is the one that is taken of those near the fastest."""
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
        "of size, a tenth more counting as alike."
    )
    return text + " Stages that are not known count as longer." * (len(known) < len(near))


def _insurance(periodic: list[dict]) -> str:
    """What is said of Gossip-PGA where Gossip SGD on the same graph is recommended."""
    row = _longest(periodic)
    return (
        f"{row['name']} takes {_time(row):.4g} ms a step: an insurance, where data differ or "
        "replicas drift apart."
    )


def _local(rows: list[dict], best: dict) -> str:
    fastest = min((row for row in rows if row["method"] == "Local SGD"), key=_time)
    return _beside(fastest, best)


def _beside(other: dict, best: dict) -> str:
    """What is said of an algorithm that is not recommended."""
    share = _time(other) / _time(best) if _time(best) else 1.0
    return f"{other['name']} takes {share:.2f} times its time, {_lag(other, best)}."


def _lag(other: dict, best: dict) -> str:
    """How their transient stages compare: a ratio where there is one."""
    mine, theirs = _order(best), _order(other)
    if 0 < mine < math.inf and 0 < theirs < math.inf:
        return f"with {theirs / mine:.3g} times as long a transient stage where data differ"
    if not theirs:
        return "without a transient stage"
    if not mine:
        return "with a transient stage, which it has not"
    if other["beta"] is not None and theirs == math.inf:
        return "and never catches up"
    return "and which of the two catches up first is not known"


def _time(row: dict) -> float:
    return row["step_ms"]


def _order(row: dict) -> float:
    return math.inf if row["transient_non_iid"] is None else row["transient_non_iid"]


# ---- What is given ------------------------------------------------------------------------------


def _compared(nodes, H, topology) -> tuple[int, list, list]:  # noqa: N803
    """Number of ranks, periods and graphs."""
    n = _validate.whole(nodes, 2)
    if n is None:
        raise ValueError(
            f"nodes must be a whole number, at least 2; received {nodes!r}. One worker exchanges "
            "nothing."
        )
    graphs = [_graph(each, n) for each in _list("topology", topology)]
    name, times = collections.Counter(graph.name for graph in graphs).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"topology has {times} of the name {name!r}, which the rows could not tell apart. Give "
            "each one once; two matrices of your own need two plans."
        )
    return n, [_period(each) for each in _list("H", H)], graphs


def _period(value) -> int:
    period = _validate.whole(value, 2)
    if period is None or period > LONGEST:
        raise ValueError(
            f"H must be a whole number, at least 2 and at most {LONGEST}; received {value!r}. H=1 "
            "is Parallel SGD and None is Gossip SGD, which are in every plan."
        )
    return period


def _number(name: str, value) -> float:
    number = _validate.number(value)
    if number is None or number < 0:
        raise ValueError(f"{name} must be a finite number, at least 0; received {value!r}.")
    return number


def _list(name: str, values) -> list:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        values = [values]
    values = list(values)
    if not values:
        raise ValueError(f"{name} must name at least one to compare, received none.")
    return values


def _graph(topology, n: int):
    graph = topology_lib.resolve(topology, n)
    if not any(len(each.edge_weights) for each in graph.cycle):
        raise ValueError(
            f"In the topology {graph.name!r} nobody gossips: that is Local SGD, which is in every "
            f"plan. Give another, for example {TOPOLOGIES[0]}."
        )
    return graph


# ---- What is shown ------------------------------------------------------------------------------


def table(plan: dict) -> str:
    """What `predict` found, as text."""
    settings, rows = plan["settings"], plan["rows"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        "{nodes} workers, {parameters:,} parameters, {wire_dtype} gossips{during}",
        "computation {compute_ms:.4g} ms a step, standard deviation {straggler_ms:.4g} ms",
        "links of {mbit:.4g} Mbit/s, latency {latency_ms:.3g} ms, overhead {overhead_ms:.3g} ms: "
        "a message takes {message_ms:.4g} ms, a global average {average_ms:.4g} ms",
    ]
    during = " during the next step's computation" if settings["overlap"] else ""
    lines = [line.format(**settings, during=during) for line in lines]
    lines += ["", f"{'':{width}}  ms a step  speed-up    beta   transient: iid   non-iid"]
    for row in rows:
        forms = {"beta": ".4f", "transient_iid": ".1e", "transient_non_iid": ".1e"}
        beta, iid, non_iid = (
            "-" if row[name] is None else f"{row[name]:{form}}" for name, form in forms.items()
        )
        lines.append(
            f"{row['name']:{width}}  {_time(row):9.1f}  {row['speedup']:7.2f}x  {beta:>6}  "
            f"{iid:>15}  {non_iid:>8}"
        )
    lines += ["", f"Recommended: {plan['recommendation']['name']}"]
    lines += [f"  - {reason}" for reason in plan["recommendation"]["reasons"]]
    lines += [
        "Transient stages are orders without their constants, and not all of their forms could be",
        "held against the paper's text: compare them with one another alone.",
    ]
    return "\n".join(lines)


def draw(plan: dict, path):
    """Writes a picture of what `predict` found; needs matplotlib."""
    from matplotlib.figure import Figure

    rows, settings = plan["rows"], plan["settings"]
    names, chosen = [row["name"] for row in rows], plan["recommendation"]["name"]
    figure = Figure(figsize=(13, 1.6 + 0.3 * len(rows)), dpi=110, layout="constrained")
    figure.suptitle(
        f"{settings['nodes']} workers, {settings['parameters']:,} parameters, "
        f"{settings['mbit']:.4g} Mbit/s. Recommended: {chosen}",
        fontweight="bold",
    )
    time_, order = figure.subplots(1, 2, sharey=True)
    colors = ["#d9722b" if name == chosen else "#2563a8" for name in names]
    time_.barh(range(len(rows)), [_time(row) for row in rows], color=colors)
    time_.axvline(settings["compute_ms"], color="#777777", ls="--", label="computation")
    time_.set(title="Time of a step", xlabel="milliseconds", yticks=range(len(rows)))
    time_.set_yticklabels(names)
    time_.legend(frameon=False)
    for field, marker in (("transient_iid", "o"), ("transient_non_iid", "s")):
        known = [(row[field], place) for place, row in enumerate(rows) if row[field]]
        label = {"o": "alike data", "s": "different data"}[marker]
        order.plot(*zip(*known, strict=True), marker, label=label)
    order.set(title="Transient stage, in order of size", xscale="log", xlabel="no unit")
    order.legend(frameon=False)
    time_.invert_yaxis()
    for axes in (time_, order):
        axes.grid(axis="x", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _define_flags(flags):
    """Of the command alone: a program that imports this module has flags of its own."""
    flags.DEFINE_integer("nodes", None, "Workers to plan for; default with --measure: as running.")
    flags.DEFINE_integer("parameters", None, "How many numbers are averaged.")
    flags.DEFINE_string("model", None, "Instead: a file of a Keras model.")
    flags.DEFINE_integer("batch_size", 32, "With --model and --measure: of a step.", lower_bound=1)
    flags.DEFINE_float("compute_ms", None, "A step's computation; default: --measure's of --model.")
    flags.DEFINE_float("mbit", None, "Of a link in each direction, million bits a second.")
    flags.DEFINE_float("latency_ms", None, "Of a message; default 0.1.")
    flags.DEFINE_float("straggler_ms", None, "Standard deviation of the computation; default 0.")
    flags.DEFINE_float("overhead_ms", None, "Cost of an exchange beside these; default 0.")
    flags.DEFINE_string("wire_dtype", "float32", f"Of gossips: {', '.join(wire_lib.BY_NAME)}.")
    flags.DEFINE_bool("overlap", False, "Whether gossips travel during the next computation.")
    flags.DEFINE_list("H", list(PERIODS), "Periods to compare.")
    flags.DEFINE_list(
        "topology", list(TOPOLOGIES), f"To compare: {', '.join(topology_lib.BY_NAME)}."
    )
    flags.DEFINE_bool("measure", False, "Measure what is not given, on the running cluster.")
    flags.DEFINE_string("output", None, "Write a JSON file, and a picture beside it.")


def _main(argv):
    from absl import flags

    given = flags.FLAGS
    try:
        if argv[1:]:
            raise ValueError(f"unknown arguments: {' '.join(argv[1:])}")
        path = None if given.output is None else output.check(given.output)
        plan = _plan_of(given)
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"python -m tf_gossip_pga.plan: {error}")
    if plan is None:  # not the chief
        return
    print(table(plan), flush=True)
    if path:
        output.write(path, "tf_gossip_pga.plan", plan, functools.partial(draw, plan))


def _plan_of(given) -> dict | None:
    """The plan that the flags ask for; None on all ranks but the chief."""
    names = ("compute_ms", "mbit", "latency_ms", "straggler_ms", "overhead_ms")
    arguments = {name: given[name].value for name in names if given[name].value is not None}
    cluster, parameters = None, given.parameters
    if None not in (given.model, parameters):
        raise ValueError("give either --parameters or --model: a model has its own number of them")
    periods = [int(each) if str(each).isdecimal() else each for each in given.H]
    if given.measure:
        from tf_gossip_pga.exchange import collectives

        cluster = collectives.initialize()
    nodes = given.nodes
    if nodes is None and cluster and cluster.size > 1:  # one worker cannot measure
        nodes = cluster.size
    if nodes is not None:  # before anything is loaded or measured
        _compared(nodes, periods, given.topology)
    if given.model is not None:
        import keras

        parameters = keras.models.load_model(given.model, compile=False)
    if parameters is None:
        raise ValueError("give --parameters=NUMBER, or --model=FILE.keras")
    if given.measure:
        step = None if given.model is None else probe.step_of(parameters, given.batch_size)
        arguments = measure(parameters, step) | arguments
    settings = {"nodes": nodes, "compute_ms": None, "mbit": None} | arguments
    missing = [f"--{name}" for name, value in settings.items() if value is None]
    if missing:
        raise ValueError(f"give {', '.join(missing)}, or --measure on a running cluster")
    if cluster and not cluster.is_chief:
        return None
    return predict(
        parameters=parameters,
        wire_dtype=given.wire_dtype,
        overlap=given.overlap,
        H=periods,
        topology=given.topology,
        **settings,
    )
