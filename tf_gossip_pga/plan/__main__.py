"""Estimate the step time of each algorithm on your network, and recommend one.

python -m tf_gossip_pga.plan --nodes=32 --parameters=25557032 --compute_ms=250 --mbit=1000
python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure --model=FILE.keras

The first command needs no cluster. The second runs on a cluster, and measures the cluster's network
and the time of a step's computation.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from tf_gossip_pga import plan
from tf_gossip_pga.algorithm import schedule, topology
from tf_gossip_pga.exchange import wire
from tf_gossip_pga.plan import arguments, probe
from tf_gossip_pga.tools import output

_TIMES = ("compute_ms", "mbit", "latency_ms", "straggler_ms", "overhead_ms")


def define_flags() -> None:
    """Define the command-line flags."""
    flags.DEFINE_integer(
        "nodes", None, "Number of workers to plan for. Default with --measure: the running ones."
    )
    flags.DEFINE_integer("parameters", None, "Number of trainable parameters.")
    flags.DEFINE_string("model", None, "File of a Keras model, instead of --parameters.")
    flags.DEFINE_integer(
        "batch_size",
        32,
        "Batch size of a worker, to measure the computation with --measure and --model.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "compute_ms",
        None,
        "Mean time of a step without any exchange, in ms. Required unless --measure and --model "
        "measure it.",
    )
    flags.DEFINE_float(
        "mbit",
        None,
        "Link bandwidth per direction, in Mbit/s. Required unless --measure measures it.",
    )
    flags.DEFINE_float("latency_ms", None, "Latency of one message, in ms. Default: 0.1.")
    flags.DEFINE_float(
        "straggler_ms", None, "Standard deviation of the computation, in ms. Default: 0."
    )
    flags.DEFINE_float(
        "overhead_ms",
        None,
        "Cost of an exchange in addition to bandwidth and latency, in ms. Default: 0.",
    )
    flags.DEFINE_string(
        "wire_dtype", "float32", f"Wire format of gossips: {', '.join(wire.BY_NAME)}."
    )
    flags.DEFINE_bool(
        "overlap", False, "Whether gossips overlap with the computation of the next steps."
    )
    flags.DEFINE_integer(
        "gossip_every", 1, "Number of steps from one gossip to the next.", lower_bound=1
    )
    flags.DEFINE_list(
        "H",
        [str(each) for each in plan.PERIODS],
        "Periods to compare: numbers of steps, each at least 2.",
    )
    names = [name for name in topology.BY_NAME if name != "disconnected"]  # it is Local SGD
    flags.DEFINE_list("topology", list(plan.TOPOLOGIES), f"Graphs to compare: {', '.join(names)}.")
    flags.DEFINE_bool(
        "measure",
        False,
        "Measure the network on the running cluster, and with --model also the computation. A "
        "value given as a flag replaces the measured one.",
    )
    flags.DEFINE_string(
        "output", None, "JSON file to write; the picture is a .png next to it. Default: no file."
    )


def main(argv: Sequence[str]) -> None:
    """Predict, print the table, and write the output files if requested.

    Args:
      argv: the program name and any non-flag arguments, which are rejected.
    """
    given = flags.FLAGS
    try:
        if argv[1:]:
            raise ValueError(f"unknown arguments: {' '.join(argv[1:])}")
        path = None if given.output is None else output.check(given.output)
        found = _predict(given)
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"python -m tf_gossip_pga.plan: {error}")
    if found is None:  # not the chief
        return
    print(plan.table(found), flush=True)
    if path:
        output.write(path, "tf_gossip_pga.plan", found, functools.partial(plan.draw, found))


def _predict(given: flags.FlagValues) -> dict[str, Any] | None:
    """Return the prediction for the flags, or None on ranks other than the chief."""
    if None not in (given.model, given.parameters):
        raise ValueError(
            "give either --parameters or --model, not both: a model has its own number of "
            "parameters"
        )
    cluster = _initialize() if given.measure else None
    nodes = given.nodes
    if nodes is None and cluster and cluster.size > 1:  # one worker alone cannot measure
        nodes = cluster.size
    periods = [int(each) if str(each).isdecimal() else each for each in given.H]
    if nodes is not None:  # find errors before loading or measuring
        arguments.comparison(nodes, periods, given.topology)
        schedule.resolve(min(periods), given.gossip_every)
    parameters = _parameters(given)
    settings = _complete({"nodes": nodes, **_times(given, parameters)})
    if cluster and not cluster.is_chief:
        return None
    return plan.predict(
        parameters=parameters,
        wire_dtype=given.wire_dtype,
        overlap=given.overlap,
        gossip_every=given.gossip_every,
        H=periods,
        topology=given.topology,
        **settings,
    )


def _initialize() -> Any:
    from tf_gossip_pga.exchange import process

    return process.initialize()


def _parameters(given: flags.FlagValues) -> Any:
    """Return the number of parameters, or the model loaded from `--model`."""
    if given.model is not None:
        import keras

        return keras.models.load_model(given.model, compile=False)
    if given.parameters is None:
        raise ValueError("give --parameters=NUMBER, or --model=FILE.keras")
    return given.parameters


def _times(given: flags.FlagValues, parameters: Any) -> dict[str, Any]:
    """Return the times and the bandwidth: from flags, else measured if `--measure` is given."""
    times = {name: given[name].value for name in _TIMES if given[name].value is not None}
    if not given.measure:
        return times
    step = None if given.model is None else probe.step_of(parameters, given.batch_size)
    return plan.measure(parameters, step) | times


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings. Raise `ValueError` if a required setting is missing."""
    needed = {"nodes": None, "compute_ms": None, "mbit": None} | settings
    missing = [f"--{name}" for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(
            f"values are missing for {', '.join(missing)}: give each one, or measure it with "
            "--measure on a running cluster (to measure --compute_ms, also give --model)"
        )
    return settings


if __name__ == "__main__":
    define_flags()
    app.run(main)
