"""Time exchanges on loopback, compared to the all-reduce of MultiWorkerMirroredStrategy.

    python benchmarks/exchange.py --workers=4 --output=output/exchange.json
    python benchmarks/exchange.py --workers=2 --device=gpu

Each row is the time from a common start until the last rank has finished. Rows are measured in
alternation, so a change in the machine's speed affects all of them, and their medians are compared.
Rows of this library include all costs of an exchange in training: packing the variables, the
exchange, mixing and assignment. The row of MultiWorkerMirroredStrategy is only the all-reduce of
one tensor. Both use the same transport. The messages that each rank issues are printed first.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, exchanges, report, timing

SMALL_STEPS = 60  # ten periods of H=6
MWMS = "MultiWorkerMirrored all-reduce"
STEPS = f"{SMALL_STEPS} steps of a 10 kB model, H=6"
BARE = f"{SMALL_STEPS} bare all-reduces of 4 bytes"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
    """
    parser = cli.parser(__doc__)
    parser.add_argument("--workers", type=int, default=4, help="number of workers, at least 2")
    parser.add_argument("--repetitions", type=int, default=11, help="repetitions of each row")
    parser.add_argument("--megabytes", type=float, default=100, help="size of the large model")
    parser.add_argument("--output", help="JSON file to write")
    cli.add_device(parser)
    options = parser.parse_args(argv)
    if options.workers < 2:
        parser.error(f"--workers must be at least 2, received {options.workers}")
    return options


def worker(options: argparse.Namespace) -> None:
    """Run one rank of the benchmark, and report on rank 0.

    Args:
      options: the options of the command line.
    """
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    actions = {**_large(options.megabytes), **_small()}
    timing.measure(cluster, actions, timing.warm_up(cluster.size), "Warming up")
    traced = exchanges.traced()
    measured = timing.measure(cluster, actions, options.repetitions, "Exchanges")
    retraced = exchanges.traced() - traced
    everyone = cluster.gather(measured, timing.PATIENCE_S)
    if cluster.is_chief:
        _report(everyone, retraced, options)


def _large(megabytes: float) -> dict[str, Callable[[], object]]:
    """Return the exchanges of the large model, `{name: function}`."""
    import tensorflow as tf

    shapes = exchanges.shapes(megabytes)
    variables = exchanges.variables_of(shapes)
    actions = {MWMS: exchanges.all_reduce(tf.zeros([exchanges.bytes_of(shapes) // 4]))}
    for name in (exchanges.default_topology(), "ring", "static_exponential"):
        actions[f"{name} gossip"] = exchanges.gossip(exchanges.averager(variables, name))
    averager = exchanges.averager(variables, exchanges.default_topology())
    actions["global average"] = exchanges.global_average(averager)
    exchanges.print_messages(variables, exchanges.default_topology())
    return actions


def _small() -> dict[str, Callable[[], object]]:
    """Return two functions: `SMALL_STEPS` steps of a 10 kB model, and bare all-reduces of 4 bytes.

    Both run `SMALL_STEPS` exchanges.
    """
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

    # 49 * 50 + 50 = 2500 parameters. Call the callback as Keras would, but without training.
    model = keras.Sequential([keras.Input((49,)), keras.layers.Dense(50)])
    model.compile("sgd", "mse")
    callback = pga.GossipPGA(H=6)
    callback.set_model(model)
    callback.set_params({"epochs": 1, "steps": 1 << 30})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    # Change the weights, as the first training step would. Until they change, the callback checks
    # them after each step.
    model.set_weights([weights + 1 for weights in model.get_weights()])
    bare = exchanges.all_reduce(tf.zeros([1]))
    return {
        STEPS: lambda: [callback.on_train_batch_end(0) for _ in range(SMALL_STEPS)],
        BARE: lambda: [bare() for _ in range(SMALL_STEPS)],
    }


def _report(everyone: list[dict], retraced: int, options: argparse.Namespace) -> None:
    rows = [report.row(name, timing.last(everyone, name)) for name in everyone[0]]
    medians = {each["name"]: each["median_ms"] for each in rows}
    ratios = {
        "gossip_over_mwms": medians[f"{exchanges.default_topology()} gossip"] / medians[MWMS],
        "global_over_mwms": medians["global average"] / medians[MWMS],
        "ring_over_mwms": medians["ring gossip"] / medians[MWMS],
        "small_step_over_bare_allreduce": medians[STEPS] / medians[BARE],
    }
    title = f"{options.workers} workers, {options.megabytes:g} MB of float32, loopback"
    report.publish(title, rows, ratios, options.output)
    print(f"functions traced again after the warm-up: {retraced}")


if __name__ == "__main__":
    sys.exit(cli.run(worker, parse()))
