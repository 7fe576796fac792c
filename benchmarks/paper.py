"""Measure how many steps Gossip-PGA takes to match Parallel SGD, and compare with the theory.

python benchmarks/paper.py --output=output/paper.json

This is the experiment of Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging",
ICML 2021: logistic regression, d = 10, 8000 samples per node, step size 0.2 halved every 1000
steps, H = 16, 20, 50 and 100 nodes, 50 trials. The paper's text was not available. Its batch size
is therefore unknown; this benchmark uses 32.

Every 75th step is measured. The transient stage is the first measured step from which the mean over
trials of f(mean of the nodes) - f* stays below a bound, 1.1 times the value of Parallel SGD. Each
transient stage is printed with an interval, which spans 16% to 84% of 400 bootstraps of the trials,
with the same trials for all methods. The interval is conditional on one data set and one draw of
optima per n, because only batches vary. If a curve is below the bound at every measurement, its
transient stage is at most the first measured step. If the curve is above the bound at the last
measurement, its transient stage is longer than the run.

The theory gives orders of magnitude with unknown constants, for a step size that suits the length
of the run. Therefore, the tables compare growth with n and ratios between methods, not steps.

The measurements must cover all positions between two global averages equally often, because f at
the mean is highest right after a global average and falls within three steps. They do, because 75
shares no factor with H = 16. Measuring every 100th step would cover only four of the sixteen
positions, including the worst.
"""

import argparse
import concurrent.futures
import itertools
import math
import multiprocessing
import os
import pathlib
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from matplotlib import pyplot

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, report
from tf_gossip_pga import simulate
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.plan import cost
from tf_gossip_pga.simulate import curves, figure

GRAPHS = ("ring", "grid", "static_exponential")
DATA = {"iid": 0.0, "non-iid": 1.0}
H = 16
BOOTSTRAPS = 400
FACTORS = (1.1, 1.2, 1.5)  # ratios to Parallel SGD; all tables but the last use only the first


def orders(graph: topology.Topology, heterogeneous: bool) -> dict[str, float]:
    """Return the order of each method's transient stage, and beta, C and D as in `plan.cost`.

    Args:
      graph: the topology.
      heterogeneous: whether the data are non-iid.
    """
    beta = graph.beta
    found: dict[str, Any] = dict(zip("CD", cost.between_averages(beta, H), strict=True), beta=beta)
    methods = {"gossip": ("Gossip SGD", None), "pga": ("Gossip-PGA", H), "local": ("Local SGD", H)}
    for name, (method, period) in methods.items():
        alike, different = cost.transient(method, graph.size, beta, period)
        found[name] = different if heterogeneous else alike
    return found


def simulated(sizes: Sequence[int], options: argparse.Namespace) -> dict:
    """Simulate all methods, with one single-threaded process per core.

    A step is too short to benefit from multiple threads.

    Args:
      sizes: numbers of nodes.
      options: the options of the command line.

    Returns:
      `(data, nodes)` -> name of a method, followed by its graph if it gossips -> curve.
    """
    keys = [(data, n) for n in sorted(sizes, reverse=True) for data in DATA]  # longest first
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), spawn, one_thread) as pool:
        curves_of = pool.map(curves_of_a_problem, keys, itertools.repeat(options))
        return dict(zip(keys, curves_of, strict=True))


def one_thread() -> None:
    """Restrict TensorFlow to one thread in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def curves_of_a_problem(key: tuple[str, int], options: argparse.Namespace) -> dict:
    """Simulate all methods for one kind of data and number of nodes.

    Args:
      key: `(data, nodes)`.
      options: the options of the command line.

    Returns:
      Name of a method, followed by its graph if it gossips -> curve.
    """
    data, n = key
    problem = simulate.logistic(n, DATA[data])
    methods = {"parallel": "ring", "local": "ring"}  # the graph has no effect on these
    methods |= {f"{name}, {graph}": graph for graph in GRAPHS for name in ("gossip", "pga")}
    shared = {"step_size": 0.2, "halve_every": 1000, "batch_size": 32, "trials": options.trials}
    found = {}
    for name, graph in methods.items():
        started = time.perf_counter()
        settings = simulate.settings_of(name.partition(",")[0], graph, H, options.iterations)
        simulation = simulate.Simulation(problem, **settings, **shared, jit_compile=True)
        found[name] = simulate.run(simulation, options.iterations, every=options.every)
        print(f"{data}, n = {n}, {name}: {time.perf_counter() - started:.1f} s", flush=True)
    return found


def transients(found: dict, factor: float, trials: int) -> dict:
    """Return the transient stage of each method, for all trials and for each bootstrap.

    Args:
      found: the result of `simulated`.
      factor: largest ratio to Parallel SGD that counts as caught up.
      trials: number of trials.

    Returns:
      `(data, nodes)` -> name -> steps, `[1 + BOOTSTRAPS]`. Steps are infinite if the method has not
      caught up with Parallel SGD by the end of the run.
    """
    random = np.random.default_rng(0)
    chosen = [np.arange(trials), *random.integers(trials, size=(BOOTSTRAPS, trials))]

    def steps(curve, parallel, these) -> float:
        mean, target = (each.excess[:, these].mean(axis=1) for each in (curve, parallel))
        joined = curves.joins(curve.steps, mean, target, factor)
        return math.inf if joined is None else joined

    return {
        key: {
            name: np.array([steps(curve, methods["parallel"], these) for these in chosen])
            for name, curve in methods.items()
            if name != "parallel"
        }
        for key, methods in found.items()
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the quantiles at 16% and 84%, either of which may be infinite."""
    low, high = np.quantile(values, (0.16, 0.84), method="nearest").tolist()
    return low, high


def exponents(sizes: Sequence[int], measured: dict, theory: dict, every: int) -> list[dict]:
    """Return least-squares slopes of log(transient) over log(n).

    A method has a slope only if, for all sizes, its transient stage is finite and ends after the
    first measurement.

    Args:
      sizes: numbers of nodes.
      measured: the result of `transients`.
      theory: the result of `predicted`.
      every: number of steps between measurements.
    """
    rows = []
    x = np.log(sizes) - np.mean(np.log(sizes))
    for data in DATA:
        for name in measured[data, sizes[0]]:
            steps = np.array([measured[data, n][name] for n in sizes])  # [sizes, 1 + BOOTSTRAPS]
            known = np.all(np.isfinite(steps) & (steps > every), axis=0)
            slopes = x @ np.log(steps[:, known]) / (x @ x)
            predicted = x @ np.log([theory[data, n][name] for n in sizes]) / (x @ x)
            row = {"data": data, "method": name, "predicted": float(predicted), "measured": None}
            row["bootstraps_with_a_slope"] = float(known[1:].mean())
            if known[0]:
                low, high = interval(slopes[1:]) if len(slopes) > 1 else (math.nan, math.nan)
                row |= {"measured": float(slopes[0]), "low": low, "high": high}
            rows.append(row)
    return rows


def growth_line(row: dict) -> str:
    """Return a row of `exponents` as text, with the share of bootstraps that have a slope."""
    found = "-"
    if row["measured"] is not None:
        interval_ = f"({row['low']:.2f} … {row['high']:.2f})"
        found = (
            f"{row['measured']:.2f} {interval_}, {row['bootstraps_with_a_slope']:.0%} of bootstraps"
        )
    return f"{row['data']:8} {row['method']:26} predicted {row['predicted']:6.2f}  {found}"


def predicted(sizes: Sequence[int]) -> dict:
    """Return the theoretical orders: `(data, nodes)` -> name -> order of the transient stage."""
    found = {}
    for data in DATA:
        for n in sizes:
            methods = found[data, n] = {}
            for graph in GRAPHS:
                order = orders(topology.BY_NAME[graph](n), data == "non-iid")
                methods["local"] = order["local"]
                methods |= {f"{name}, {graph}": order[name] for name in ("gossip", "pga")}
    return found


def table(
    sizes: Sequence[int], measured: dict, theory: dict, options: argparse.Namespace
) -> list[dict]:
    """Print one line per method, and return the lines as rows.

    Args:
      sizes: numbers of nodes.
      measured: the result of `transients`.
      theory: the result of `predicted`.
      options: the options of the command line.
    """
    rows = []
    print(f"{'':35}{'n':>4}{'beta':>8}{'C':>7}{'D':>7}{'order':>10}   transient, 16 … 84 %")
    for data in DATA:
        for n in sizes:
            for name, steps in measured[data, n].items():
                graph = name.partition(", ")[2]
                row = {"data": data, "nodes": n, "method": name, "order": theory[data, n][name]}
                cells = " " * 22
                if graph:
                    facts = orders(topology.BY_NAME[graph](n), data == "non-iid")
                    row |= {key: facts[key] for key in ("beta", "C", "D")}
                    cells = f"{row['beta']:8.4f}{row['C']:7.2f}{row['D']:7.2f}"
                low, high = interval(steps[1:])
                for key, value in (("transient", float(steps[0])), ("low", low), ("high", high)):
                    row[key] = int(value) if math.isfinite(value) else None
                rows.append(row)
                values = [in_words(value, options) for value in (steps[0], low, high)]
                print(
                    f"{data:8} {name:26}{n:>4}{cells}{row['order']:10.1e}   "
                    f"{values[0]}, {values[1]} … {values[2]}"
                )
    return rows


def in_words(steps: float, options: argparse.Namespace) -> str:
    """Return a transient stage as text."""
    if math.isinf(steps):
        return f">{options.iterations}"
    return f"<={options.every}" if steps <= options.every else f"{steps:.0f}"


def draw(sizes: Sequence[int], found: dict, path: pathlib.Path) -> None:
    """Draw the methods on a ring, in one panel per number of nodes and kind of data.

    Args:
      sizes: numbers of nodes.
      found: the result of `simulated`.
      path: the file to write.
    """
    shape = {"nrows": len(DATA), "ncols": len(sizes), "sharex": True}
    _, axes = pyplot.subplots(
        **shape, squeeze=False, figsize=(5 * len(sizes), 4 * len(DATA)), layout="constrained"
    )
    for row, data in zip(axes, DATA, strict=True):
        for panel, n in zip(row, sizes, strict=True):
            names = ("parallel", "gossip, ring", "local", "pga, ring")
            figure.draw(panel, {name: found[data, n][name] for name in names})
            panel.set_title(f"{data}, {n} nodes")
    for panel in axes[-1]:
        panel.set_xlabel("step (dot: end of the transient stage)")
    for panel in axes[:, 0]:
        panel.set_ylabel("f(mean of the nodes) - f*, mean ± standard error")
    axes[0, 0].legend()
    pyplot.savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.parser(__doc__)
    cli.add_simulation(parser, [20, 50, 100], 5000, 50, 75, "output/paper.json")
    return parser


def main() -> None:
    """Simulate, print the tables, and write the JSON file and the figure next to it."""
    options = parser().parse_args()
    started = time.perf_counter()
    sizes = options.nodes
    found = simulated(sizes, options)
    theory = predicted(sizes)
    by_factor = {factor: transients(found, factor, options.trials) for factor in FACTORS}
    measured = by_factor[FACTORS[0]]
    print(f"\n{report.machine()}\n")
    rows = table(sizes, measured, theory, options)
    growth = exponents(sizes, measured, theory, options.every) if len(sizes) > 1 else []
    if growth:
        print("\nGrowth with n, transient ~ n^p (16 … 84 % of the bootstraps with a slope):")
        print("\n".join(map(growth_line, growth)))
    print("\nTransient stages for several ratios to Parallel SGD, non-iid, ring:")
    for factor, steps in by_factor.items():
        for name in ("gossip, ring", "local", "pga, ring"):
            line = [in_words(steps["non-iid", n][name][0], options) for n in sizes]
            print(f"{factor}  {name:14} {line}")
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(each.ru_utime + each.ru_stime for each in used)
    content = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "settings": vars(options) | {"output": str(options.output), "H": H, "factor": FACTORS[0]},
        "rows": rows,
        "growth": growth,
        "factors": {
            str(factor): [
                {"data": data, "nodes": n, "method": name, "transient": in_words(value[0], options)}
                for (data, n), methods in steps.items()
                for name, value in methods.items()
            ]
            for factor, steps in by_factor.items()
        },
        "curves": [
            {
                "data": data,
                "nodes": n,
                "method": name,
                "steps": curve.steps.tolist(),
                "mean": curve.mean.tolist(),
                "standard_error": curve.standard_error.tolist(),
            }
            for (data, n), methods in found.items()
            for name, curve in methods.items()
        ],
    }
    report.write(options.output, **content)
    draw(sizes, found, options.output.with_suffix(".png"))
    print(f"\n{seconds:.0f} s, {cpu_seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
