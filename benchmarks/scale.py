"""Measure how large a simulation can be, and how much faster it is than worker processes.

python benchmarks/scale.py --output=output/scale.json

The problem is least squares, d = 10, with Gossip-PGA (H = 16) on a ring. Each number of nodes runs
in a separate process with one thread, so a large problem does not get more CPU than a small one.
Memory is the peak above what the process held before creating the problem. XLA compiles the steps,
which are timed five times after an untimed first step. For two larger numbers of nodes, time and
memory are extrapolated from the two largest that ran.

The same problem then runs on eight nodes, both as one simulation and as eight processes that train
a Keras model with the callback.

The number of bytes sent is exact. It is what a real worker would send to its neighbors in gossips
and in ring all-reduces.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, report
from tf_gossip_pga import launch
from tf_gossip_pga.algorithm import topology

SIZES = (100, 1000, 10_000, 100_000)
BEYOND = (1_000_000, 10_000_000)
DIMENSION = 10
NODE_STEPS = 10_000_000  # nodes times steps per repetition
REPETITIONS = 5
SAMPLES = {"simulated": 4, "compared": 500}
PGA = {"topology": "ring", "H": 16}
STEP_SIZE = 0.01
EPOCHS = 2


def simulated(nodes: int, samples: int) -> dict:
    """Return times and memory of a simulation in this process.

    Args:
      nodes: number of nodes.
      samples: number of samples per node.
    """
    import tensorflow as tf

    from tf_gossip_pga import simulate

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = simulate.quadratic(nodes, heterogeneity=1, samples=samples, dimension=DIMENSION)
    simulation = simulate.Simulation(problem, **PGA, step_size=STEP_SIZE, jit_compile=True)
    steps = max(100, NODE_STEPS // nodes)
    simulation.advance(1)
    simulation.x.numpy()
    seconds, cpu = [], []
    for _ in range(REPETITIONS):
        started, worked = time.perf_counter(), time.process_time()
        simulation.advance(steps)
        simulation.x.numpy()
        seconds.append((time.perf_counter() - started) / steps)
        cpu.append((time.process_time() - worked) / steps)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = sent_bytes(nodes, len(topology.ring(nodes).cycle[0].receivers))
    return {"nodes": nodes, "seconds": seconds, "cpu": cpu, "kib": after - before, "sent": sent}


def sent_bytes(nodes: int, edges: int) -> float:
    """Return the bytes that a node sends per step, averaged over nodes and one period.

    Args:
      nodes: number of nodes.
      edges: number of messages in a gossip.
    """
    messages = (PGA["H"] - 1) * edges + 2 * (nodes - 1)
    return 4 * DIMENSION * messages / (PGA["H"] * nodes)


def beyond(rows: list[dict], nodes: int) -> dict:
    """Return the row of a larger number of nodes, extrapolated from the last two rows.

    Args:
      rows: the measured rows.
      nodes: number of nodes.
    """
    before, last = rows[-2:]
    slope = (last["kib"] - before["kib"]) / (last["nodes"] - before["nodes"])
    return {
        **{key: last[key] for key in ("ns_a_node", "cpu_ns_a_node")},
        "nodes": nodes,
        "kib": last["kib"] + slope * (nodes - last["nodes"]),
        "sent": sent_bytes(nodes, 2 * nodes),
    }


def trained(options: argparse.Namespace) -> None:
    """Train as one of several processes on the same problem, and write the step time.

    Args:
      options: the options of the command line. Rank 0 writes to `options.result`.
    """
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    import keras

    from tf_gossip_pga import simulate

    problem = simulate.quadratic(cluster.size, heterogeneity=1, samples=SAMPLES["compared"])
    x, y = (array[cluster.rank] for array in problem.data)
    model: Any = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(1, use_bias=False)])
    # The loss of the problem is half the mean square, so "mse" needs half the step size.
    model.compile(keras.optimizers.SGD(STEP_SIZE / 2), "mse")
    gossip = pga.GossipPGA(**PGA)
    model.fit(x, y, batch_size=1, verbose=0, callbacks=[gossip])  # not timed: it traces functions
    started = time.perf_counter()
    model.fit(x, y, batch_size=1, epochs=EPOCHS, verbose=0, callbacks=[gossip])
    seconds = (time.perf_counter() - started) / (EPOCHS * len(x))
    if cluster.is_chief:
        pathlib.Path(options.result).write_text(json.dumps(seconds))


def main() -> None:
    """Measure in separate processes, print the tables, and write the JSON file."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--workers", type=int, default=8, help="number of real processes to compare with"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("output/scale.json"),
        help="JSON file to write",
    )
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)  # nodes, samples
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        pathlib.Path(options.result).write_text(json.dumps(simulated(*options.one)))
        return
    if "TF_CONFIG" in os.environ:
        trained(options)
        return
    rows = [in_a_process(n, SAMPLES["simulated"]) for n in SIZES]
    for row in rows:
        row["ns_a_node"] = 1e9 * float(np.median(row["seconds"])) / row["nodes"]
        row["cpu_ns_a_node"] = 1e9 * float(np.median(row["cpu"])) / row["nodes"]
    further = [beyond(rows, nodes) for nodes in BEYOND]
    print(f"\nA ring, d = {DIMENSION}, one trial\n{report.machine()}\n")
    print(table(rows))
    print(f"Not run: time and memory are extrapolated, bytes sent are exact:\n{table(further)}")
    compared = in_a_process(options.workers, SAMPLES["compared"])
    virtual = options.workers / float(np.median(compared["seconds"]))
    real = options.workers / in_processes(options.workers)
    ratios = {
        **{
            f"largest_over_least_{key}": spread(rows, key) for key in ("ns_a_node", "cpu_ns_a_node")
        },
        "bytes_a_node": 1024
        * (rows[-1]["kib"] - rows[-2]["kib"])
        / (rows[-1]["nodes"] - rows[-2]["nodes"]),
        "simulated_over_processes": virtual / real,
    }
    print(f"\n{options.workers} nodes, node-steps per second:")
    print(f"simulated: {virtual:,.0f}; in worker processes: {real:,.0f}")
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.2f}")
    node_steps = {"simulated": virtual, "processes": real}
    tables = {"rows": rows, "extrapolated": further}
    report.write(options.output, **tables, node_steps_a_second=node_steps, ratios=ratios)


def table(rows: list[dict]) -> str:
    """Return a table of times, memory and bytes sent, with one line per number of nodes."""
    heads = ("nodes", "us a step", "ns a node", "CPU ns a node", "MiB", "B sent a node")
    lines = ["{:>10}{:>12}{:>12}{:>15}{:>9}{:>15}".format(*heads)]
    for row in rows:
        step = row["ns_a_node"] * row["nodes"] / 1000
        times = f"{step:12.1f}{row['ns_a_node']:12.1f}{row['cpu_ns_a_node']:15.1f}"
        lines.append(f"{row['nodes']:10}{times}{row['kib'] / 1024:9.0f}{row['sent']:15.1f}")
    return "\n".join(lines)


def spread(rows: list[dict], key: str) -> float:
    """Return the ratio of the largest to the smallest value of a field over all rows."""
    values = [row[key] for row in rows]
    return max(values) / min(values)


def in_a_process(nodes: int, samples: int) -> dict:
    """Run `simulated` in a separate process, and return its result.

    Args:
      nodes: number of nodes.
      samples: number of samples per node.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder, "result.json")
        flags = [f"--result={result}", "--one", str(nodes), str(samples)]
        ended = subprocess.run(
            [sys.executable, __file__, *flags], stderr=subprocess.PIPE, text=True
        )
        if ended.returncode:
            sys.exit(
                f"{ended.stderr}\n{nodes} nodes: the process ended with exit code "
                f"{ended.returncode}, see above"
            )
        return json.loads(result.read_text())


def in_processes(workers: int) -> float:
    """Train with several processes, and return the step time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder, "result.json")
        cli.hide_gpus()
        launch.launch([sys.executable, __file__, f"--result={result}"], workers)
        return json.loads(result.read_text())


if __name__ == "__main__":
    main()
