"""Compare the graphs in which a rank sends at most one message per gossip, for any number of ranks.

python benchmarks/graphs.py --output=output/graphs.json

`base_2` averages exactly after one cycle of gossips. `one_peer_exponential` does so only if the
number of ranks n is a power of two. This benchmark compares them twice:

1. Gossip alone: each rank starts with a random vector. The error after a gossip is the root mean
   square of the ranks' differences from the mean, divided by that before the first gossip.
2. Gossip in training, as in benchmarks/paper.py: logistic regression on non-iid data, d = 10, 8000
   samples per node, batch size 32, step size 0.2 halved every 1000 steps; Gossip SGD, and
   Gossip-PGA with H = 6. "Distance" is the consensus distance, averaged over all measured steps and
   trials. "Loss" is f(mean of the nodes) - f*, averaged over the second half of the run, divided by
   that of Parallel SGD. "Transient" is the first measured step from which f(mean of the nodes) - f*
   stays below 1.1 times that of Parallel SGD.

By default, every 23rd step is measured. 23 shares no factor with H or with the length of a cycle,
so that the measurements cover all positions in both equally often.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, paper, report
from tf_gossip_pga import simulate
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.simulate import curves

GRAPHS = ("base_2", "one_peer_exponential")
PERIODS = {"gossip": None, "pga": 6}
VECTORS = 1000  # random vectors of each rank, in the first comparison


def errors(graph: topology.Topology, gossips: int) -> list[float]:
    """Return the error after 0, 1, … gossips without training, relative to the first.

    Args:
      graph: the topology.
      gossips: number of gossips.
    """
    values = np.random.default_rng(0).normal(size=(graph.size, VECTORS))
    found = []
    for gossip in range(gossips + 1):
        found.append(float(np.sqrt(np.mean((values - values.mean(axis=0)) ** 2))))
        values = graph.weights(gossip) @ values
    return [error / found[0] for error in found]


def gossip_alone(n: int) -> dict:
    """Return the errors of all graphs for n ranks, during three cycles of `base_2`."""
    gossips = 3 * topology.base_2(n).rounds
    found = {name: errors(topology.BY_NAME[name](n), gossips) for name in GRAPHS}
    return {"nodes": n, "rounds": topology.base_2(n).rounds, "errors": found}


def in_training(n: int, options: argparse.Namespace) -> dict[str, curves.Curve]:
    """Simulate Parallel SGD, and each algorithm on each graph, for n nodes."""
    problem = simulate.logistic(n, 1.0)
    shared = {"step_size": 0.2, "halve_every": 1000, "batch_size": 32, "trials": options.trials}
    methods = {"parallel": ("disconnected", 1)}
    for name, graph in itertools.product(PERIODS, GRAPHS):
        methods[f"{name}, {graph}"] = graph, PERIODS[name]
    found = {}
    for name, (graph, period) in methods.items():
        started = time.perf_counter()
        simulation = simulate.Simulation(problem, graph, H=period, **shared, jit_compile=True)
        found[name] = simulate.run(simulation, options.iterations, every=options.every)
        print(f"n = {n}, {name}: {time.perf_counter() - started:.1f} s", flush=True)
    return found


def training_rows(n: int, found: dict[str, curves.Curve]) -> list[dict]:
    """Return what the second comparison reports for n nodes, one row per algorithm and graph."""
    parallel = found["parallel"]
    late = parallel.steps > parallel.steps[-1] / 2
    rows = []
    for name, curve in found.items():
        if name == "parallel":
            continue
        algorithm, _, graph = name.partition(", ")
        row = {"nodes": n, "algorithm": algorithm, "graph": graph}
        row["distance"] = float(curve.consensus_distance.mean())
        row["loss"] = float(curve.mean[late].mean() / parallel.mean[late].mean())
        row["transient"] = curves.transient(curve, parallel)
        rows.append(row)
    return rows


def publish(alone: list[dict], rows: list[dict]) -> None:
    """Print both tables."""
    print(f"\n{report.machine()}\n\nGossip alone: cycle length, gossips until 1 % and 1e-12 remain")
    for each in alone:
        cells = [f"{each['nodes']:>4}{each['rounds']:>4}"]
        for name, left in each["errors"].items():
            counts = [_gossips_until(left, share) for share in (0.01, 1e-12)]
            cells.append(f"{name}: {counts[0]}, {counts[1]}")
        print("   ".join(cells))
    print(f"\n{'':42}distance     loss  transient")
    for row in rows:
        name = f"{row['algorithm']:7} {row['graph']:22}"
        numbers = f"{row['distance']:10.2e} {row['loss']:8.3f} {row['transient'] or '-':>10}"
        print(f"n = {row['nodes']:>4}  {name}{numbers}")


def _gossips_until(errors: Sequence[float], share: float) -> str:
    reached = [gossip for gossip, error in enumerate(errors) if error <= share]
    return str(reached[0]) if reached else f">{len(errors) - 1}"


def draw(alone: list[dict], found: list[dict], path: pathlib.Path) -> None:
    """Draw both comparisons: a column of panels for each number of nodes.

    Args:
      alone: the results of `gossip_alone`.
      found: the results of `in_training`, for the same numbers of nodes.
      path: the file to write.
    """
    shape = {"nrows": 1 + len(PERIODS), "ncols": len(alone), "squeeze": False}
    _, axes = pyplot.subplots(**shape, figsize=(3.2 * len(alone), 8), layout="constrained")
    for column, (each, methods) in enumerate(zip(alone, found, strict=True)):
        top = axes[0, column]
        for name, left in each["errors"].items():
            top.semilogy(np.maximum(left, 1e-8), label=name)
        top.set(title=f"{each['nodes']} ranks", xlabel="gossip, without training")
        for panel, algorithm in zip(axes[1:, column], PERIODS, strict=True):
            for graph in GRAPHS:
                curve = methods[f"{algorithm}, {graph}"]
                panel.plot(curve.steps, curve.consensus_distance.mean(axis=1), label=graph)
            panel.set(xlabel=f"step of {algorithm}")
    for panel, label in zip(axes[:, 0], ("error", *["consensus distance"] * 2), strict=True):
        panel.set_ylabel(label)
    axes[0, 0].legend()
    pyplot.savefig(path, dpi=80)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.parser(__doc__)
    cli.add_simulation(parser, [3, 5, 6, 12, 20, 48, 100], 3000, 20, 23, "output/graphs.json")
    return parser


def main() -> None:
    """Compare, print the tables, and write the JSON file and the figure next to it."""
    options = parser().parse_args()
    started = time.perf_counter()
    alone = [gossip_alone(n) for n in options.nodes]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), spawn, paper.one_thread) as pool:
        found = list(pool.map(in_training, options.nodes, itertools.repeat(options)))
    rows = [
        row
        for n, methods in zip(options.nodes, found, strict=True)
        for row in training_rows(n, methods)
    ]
    publish(alone, rows)
    settings = vars(options) | {"output": str(options.output)}
    seconds = time.perf_counter() - started
    report.write(options.output, seconds=seconds, settings=settings, alone=alone, rows=rows)
    draw(alone, found, options.output.with_suffix(".png"))
    print(f"\n{seconds:.0f} s")


if __name__ == "__main__":
    main()
