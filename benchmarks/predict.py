"""Compare the steps of a real `fit` with the predictions of `tf_gossip_pga.plan`.

    python benchmarks/predict.py --workers=4 --output=output/predict.json
    python benchmarks/predict.py --workers=4 --mbit=250        # separate hosts, see links.py

A dense network trains on random numbers. In each repetition, `plan.measure` times exchanges and
single steps, and then the algorithms train one after another. The predictions use the medians of
the `plan.measure` results. The step time is the mean over ranks, without the first period of a fit.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, links, report
from tf_gossip_pga import launch, plan

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

PERIOD = 6
STEPS = 10 * PERIOD  # timed steps of a fit
WAIT_S = 600.0
# Name of a row -> arguments of GossipPGA, and the row of the plan that predicts it.
ALGORITHMS = {
    "Parallel SGD": ({"H": 1}, "Parallel SGD"),
    "Local SGD": ({"H": PERIOD, "topology": "disconnected"}, f"Local SGD, H={PERIOD}"),
    "Gossip SGD": ({"H": None}, "Gossip SGD, one_peer_exponential"),
    "PGA": ({"H": PERIOD}, f"Gossip-PGA, one_peer_exponential, H={PERIOD}"),
    "Gossip SGD, ring": ({"H": None, "topology": "ring"}, "Gossip SGD, ring"),
    "Gossip SGD, overlap": ({"H": None, "overlap": True}, "Gossip SGD, one_peer_exponential"),
    "PGA, overlap": (
        {"H": PERIOD, "overlap": True},
        f"Gossip-PGA, one_peer_exponential, H={PERIOD}",
    ),
}


def main() -> int:
    """Start the workers, or run as one of them; return the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workers", type=int, default=4, help="number of workers")
    parser.add_argument(
        "--mbit",
        type=float,
        help="link bandwidth per direction, in Mbit/s (default: all workers share the loopback)",
    )
    parser.add_argument("--width", type=int, default=512, help="units of the three hidden layers")
    parser.add_argument("--batch_size", type=int, default=256, help="batch size of a worker")
    parser.add_argument("--repetitions", type=int, default=5, help="fits of each algorithm")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    cli.hide_gpus()
    command = [sys.executable, *sys.argv]
    if options.mbit is None:
        return launch.run(command, options.workers)
    with links.hosts(options.workers, options.mbit) as hosts:
        return launch.run([*command, f"--join={hosts.flag}"], options.workers)


def worker(options: argparse.Namespace) -> None:
    """Run one rank of the benchmark, and report on rank 0.

    Args:
      options: the options of the command line.
    """
    if options.join:
        links.join(options.join)
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

    cluster = pga.initialize()
    keras.utils.set_random_seed(cluster.rank)
    batch = tf.random.normal([options.batch_size, 256]), tf.random.normal([options.batch_size, 10])
    probed, founds = compiled(options.width), []
    trainers = {"computation alone": fitter(compiled(options.width), batch, [])}
    for name, (arguments, _) in ALGORITHMS.items():
        trainers[name] = fitter(compiled(options.width), batch, [pga.GossipPGA(**arguments)])
    seconds = {name: [] for name in trainers}
    for repetition in range(options.repetitions):
        if cluster.is_chief:
            print(f"Fits: repetition {repetition + 1} of {options.repetitions}", flush=True)
        founds.append(plan.measure(probed, lambda: probed.train_on_batch(*batch)))
        for name, train in trainers.items():
            cluster.barrier(WAIT_S)
            each = cluster.gather(train(), WAIT_S)
            seconds[name].append(sum(each) / len(each))
    if cluster.is_chief:
        found = {name: statistics.median(each[name] for each in founds) for name in founds[0]}
        publish(options, probed.count_params(), found, seconds)


def compiled(width: int) -> "keras.Model":
    """Return a compiled dense network with three hidden layers.

    Args:
      width: width of the hidden layers.
    """
    import keras

    layers = [keras.layers.Dense(width, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((256,)), *layers, keras.layers.Dense(10)])
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def fitter(
    model: "keras.Model",
    batch: "tuple[tf.Tensor, tf.Tensor]",
    callbacks: "Sequence[keras.callbacks.Callback]",
) -> Callable[[], float]:
    """Return a function that trains and returns the mean time of a step, in seconds.

    Args:
      model: a compiled model.
      batch: the batch of every step.
      callbacks: callbacks for `fit`.
    """
    import keras
    import tensorflow as tf

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == PERIOD - 1:
                self.started = time.perf_counter()
            self.ended = time.perf_counter()

    def fit() -> float:
        clock, steps = Clock(), PERIOD + STEPS
        model.fit(
            tf.data.Dataset.from_tensors(batch).repeat(steps),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,  # pyright: ignore[reportArgumentType]
            callbacks=[*callbacks, clock],
        )
        return (clock.ended - clock.started) / STEPS

    return fit


def publish(options: argparse.Namespace, parameters: int, found: dict, seconds: dict) -> None:
    """Report measured and predicted times, and their ratios.

    Args:
      options: the options of the command line.
      parameters: number of parameters.
      found: medians of the results of `plan.measure`.
      seconds: name of a row -> time of a step in each repetition.
    """
    settings = {"nodes": options.workers, "parameters": parameters, "H": PERIOD, **found}
    plans = {overlap: plan.predict(overlap=overlap, **settings) for overlap in (False, True)}
    rows = [report.row(name, values) for name, values in seconds.items()]
    rows[0]["predicted_ms"] = found["compute_ms"]
    for row in rows[1:]:
        arguments, name = ALGORITHMS[row["name"]]
        predicted = plans[arguments.get("overlap", False)]["rows"]
        row["predicted_ms"] = next(r["step_ms"] for r in predicted if r["name"] == name)
    ratios = {row["name"]: row["predicted_ms"] / row["median_ms"] for row in rows}
    where = f"links of {options.mbit:g} Mbit/s" if options.join else "loopback"
    print("Measured: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    title = f"A step of fit, {options.workers} workers, {parameters} parameters, {where}"
    report.publish(title, rows, ratios, options.output)


if __name__ == "__main__":
    sys.exit(main())
