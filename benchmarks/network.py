"""Time exchanges and training steps over slow links, and compare them to alternatives.

    python benchmarks/network.py --hosts=8 --mbit=250 --output=output/network.json

Each worker is a separate host behind a link of `--mbit` (see links.py), which requires root.
Without root, all workers share the loopback interface. The column "of limit", which compares each
exchange to the TCP row described below, then means little.
Exchanges and steps are measured in alternation, each from a common start until the last rank has
finished, and their medians are compared. The same run includes:

    TCP       The limit of the links. Each host sends the bytes of the parameters to the next one
              through a plain socket, while receiving the same number of bytes.
    PyTorch   All-reduce and pair exchange over gloo, and Decent-DP on top of it. The exchange of
              Decent-DP is part of the backward pass, so its row is one step of a model of the same
              size without computation. Requires the packages in benchmarks/requirements.txt;
              otherwise, these rows are left out.
    steps     `model.fit` of a model of the same size. Its computation leaves the CPU idle, as with
              an accelerator. If tf_keras is installed, the comparison includes Parallel SGD with
              tf_keras and MultiWorkerMirroredStrategy.

`tf_gossip_pga.plan` predicts times from only two measurements: the rate of the TCP row and the time
of the computation. CPU seconds are summed over all ranks for one repetition.

Memory is measured for some of this library's exchanges. The result is the peak of any rank beyond
its parameters, as a multiple of their size. It includes memory that an exchange keeps for the next
one. Memory is sampled every 2 ms in fresh processes that do nothing else.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, exchanges, links, memory, network_report, peers, steps, timing
from benchmarks.network_report import BFLOAT16, DURING, GLOBAL, GOSSIP, INT8, MWMS, RING, STATIC
from tf_gossip_pga import launch

if TYPE_CHECKING:
    from tf_gossip_pga import Cluster

WEIGHED = (GOSSIP, BFLOAT16, INT8, DURING, GLOBAL)  # the exchanges whose memory is measured
Shapes = Sequence[tuple[int, ...]]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
    """
    parser = cli.parser(__doc__)
    parser.add_argument("--hosts", type=int, default=4, help="number of workers, at least 2")
    parser.add_argument(
        "--mbit", type=float, default=500, help="link bandwidth per direction, in Mbit/s"
    )
    parser.add_argument("--megabytes", type=float, default=50, help="size of the parameters")
    parser.add_argument("--repetitions", type=int, default=7, help="repetitions of each exchange")
    parser.add_argument(
        "--fits", type=int, default=1, help="fits of 6 steps for each kind of step; 0: no training"
    )
    parser.add_argument("--output", help="JSON file to write; the picture is a .png next to it")
    for internal in ("--join", "--memory", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name, least in (("hosts", 2), ("repetitions", 1), ("fits", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, received {getattr(options, name)}")
    for name in ("mbit", "megabytes"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0, received {getattr(options, name)}")
    return options


def main() -> int:
    """Create the hosts and start the workers, or run as one of them; return the exit code."""
    options = parse()
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    cli.hide_gpus()
    command = [sys.executable, __file__, *sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(links.hosts(options.hosts, options.mbit))
            command.append(f"--join={hosts.flag}")
        except links.NoHostsError as reason:
            print(f"No separate hosts ({reason}): all workers share the loopback.", flush=True)
        command.append(f"--folder={stack.enter_context(tempfile.TemporaryDirectory())}")
        for name in WEIGHED:
            print(f"Memory: {name}", flush=True)
            failed = launch.run([*command, f"--memory={name}"], options.hosts)
            if failed:
                return failed
        return launch.run(command, options.hosts)


def worker(options: argparse.Namespace) -> None:
    """Run one rank of the benchmark, and report on rank 0.

    Args:
      options: the options of the command line.
    """
    if options.join:
        links.join(options.join)
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    shapes = exchanges.shapes(options.megabytes)
    if options.memory:
        measure_memory(cluster, shapes, options.memory, options.folder)
        return
    timed, trained = measure_exchanges(cluster, shapes, options.repetitions), {}
    if options.fits:
        gossip_s = float(np.median(timed[GOSSIP]["seconds"]))
        slowest_s = max(cluster.gather(gossip_s, timing.PATIENCE_S))
        trained = steps.measure(cluster, shapes, slowest_s, options.fits)
    everyone = cluster.gather([timed, trained], timing.PATIENCE_S)
    if cluster.is_chief:
        network_report.publish(everyone, options)


def measure_exchanges(cluster: "Cluster", shapes: Shapes, repetitions: int) -> dict:
    """Time all exchanges.

    Args:
      cluster: the cluster.
      shapes: shapes of the parameters.
      repetitions: how often to time each exchange.

    Returns:
      See `timing.measure`.
    """
    actions = {
        **peers.tcp(cluster, exchanges.bytes_of(shapes)),
        **{name: build() for name, build in builders(shapes).items()},
        **peers.torch(cluster, shapes),
        **peers.decent_dp(cluster, shapes),
    }
    timing.measure(cluster, actions, timing.warm_up(cluster.size), "Warming up")
    return timing.measure(cluster, actions, repetitions, "Exchanges")


def builders(shapes: Shapes) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return the exchanges to time, `{name: function that builds the exchange}`.

    Args:
      shapes: shapes of the parameters.
    """
    import tensorflow as tf

    variables = exchanges.variables_of(shapes)
    gradients = [tf.ones(shape) for shape in shapes]
    flat = tf.zeros([exchanges.bytes_of(shapes) // 4])

    def gossip(topology: str = "one_peer_exponential", wire_dtype: str = "float32"):
        return exchanges.gossip(exchanges.averager(variables, topology, wire_dtype))

    def step():
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(gradient)

    def during():
        return exchanges.gossip_during(exchanges.averager(variables, "one_peer_exponential"), step)

    return {
        MWMS: lambda: exchanges.all_reduce(flat),
        GOSSIP: gossip,
        BFLOAT16: functools.partial(gossip, wire_dtype="bfloat16"),
        INT8: functools.partial(gossip, wire_dtype="int8"),
        DURING: during,
        RING: functools.partial(gossip, "ring"),
        STATIC: functools.partial(gossip, "static_exponential"),
        GLOBAL: lambda: exchanges.global_average(exchanges.averager(variables, "ring")),
    }


def measure_memory(cluster: "Cluster", shapes: Shapes, name: str, folder: str) -> None:
    """Measure how many copies of the parameters an exchange needs, and write the number to a file.

    Args:
      cluster: the cluster.
      shapes: shapes of the parameters.
      name: name of the exchange.
      folder: directory for the file, to which rank 0 writes the maximum over ranks.
    """
    builders([(64,)])[name]()()  # exclude one-time allocations of TensorFlow
    held = memory.peak_of(builders(shapes)[name], timing.warm_up(cluster.size))
    copies = max(cluster.gather(held, timing.PATIENCE_S)) / exchanges.bytes_of(shapes)
    if cluster.is_chief:
        pathlib.Path(folder, f"{name}.json").write_text(json.dumps(copies))


if __name__ == "__main__":
    sys.exit(main())
