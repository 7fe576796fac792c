"""Steps of a real `fit` beside what `tf_gossip_pga.plan` foresees from its own measurements.

    python benchmarks/predict.py --workers=4 --output=output/predict.json
    python benchmarks/predict.py --workers=4 --mbit=250        # hosts of their own, see links.py

A dense network on random numbers. In each repetition `plan.measure` times exchanges and single
steps, and then each algorithm fits, in turn. All that is predicted follows from the medians of what
`measure` found. A step's time is the mean over ranks; the first period of a fit is left out.
"""

import argparse
import os
import statistics
import sys
import time

import links
import report

from tf_gossip_pga import launch, plan

PERIOD = 6
STEPS = 10 * PERIOD  # of a fit that are timed
WAIT_S = 600
# What is fitted: name -> arguments of GossipPGA, and the row of the plan.
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
    """Starts the workers, or is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mbit", type=float, help="of a link; default: all share the loopback")
    parser.add_argument("--width", type=int, default=512, help="of three hidden layers")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5, help="of a fit")
    parser.add_argument("--output", help="write a JSON file")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    command = [sys.executable, *sys.argv]
    if options.mbit is None:
        return launch.run(command, options.workers)
    with links.hosts(options.workers, options.mbit) as hosts:
        return launch.run([*command, f"--join={hosts.flag}"], options.workers)


def worker(options):
    """One rank; rank 0 reports."""
    if options.join:
        links.join(options.join)
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga
    from tf_gossip_pga.exchange import collectives

    cluster = pga.initialize()
    keras.utils.set_random_seed(cluster.rank)
    batch = tf.random.normal([options.batch_size, 256]), tf.random.normal([options.batch_size, 10])

    def compiled():
        layers = [keras.layers.Dense(options.width, "relu") for _ in range(3)]
        model = keras.Sequential([keras.Input((256,)), *layers, keras.layers.Dense(10)])
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        return model

    mine, probed, founds = collectives.active(), compiled(), []
    trainers = {
        name: (compiled(), [pga.GossipPGA(**arguments)])
        for name, (arguments, _) in ALGORITHMS.items()
    }
    trainers = {"computation alone": (compiled(), []), **trainers}
    seconds = {name: [] for name in trainers}
    for repetition in range(options.repetitions):
        if cluster.is_chief:
            print(f"Fits: repetition {repetition + 1} of {options.repetitions}", flush=True)
        founds.append(plan.measure(probed, lambda: probed.train_on_batch(*batch)))
        for name, (model, callbacks) in trainers.items():
            mine.gather(None, "the common start", WAIT_S)
            each = mine.gather(fit(keras, tf, model, batch, callbacks), "the end", WAIT_S)
            seconds[name].append(sum(each) / len(each))
    if cluster.is_chief:
        found = {name: statistics.median(each[name] for each in founds) for name in founds[0]}
        publish(options, probed.count_params(), found, seconds)


def fit(keras, tf, model, batch, callbacks) -> float:
    """Seconds of a step."""

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == PERIOD - 1:
                self.started = time.perf_counter()
            self.ended = time.perf_counter()

    clock, steps = Clock(), PERIOD + STEPS
    model.fit(
        tf.data.Dataset.from_tensors(batch).repeat(steps),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, clock],
    )
    return (clock.ended - clock.started) / STEPS


def publish(options, parameters: int, found: dict, seconds: dict):
    """Rows of measured and predicted times, and how they compare."""
    settings = {"nodes": options.workers, "parameters": parameters, "H": PERIOD, **found}
    plans = {overlap: plan.predict(overlap=overlap, **settings) for overlap in (False, True)}
    rows = [report.row(name, values) for name, values in seconds.items()]
    rows[0]["predicted_ms"] = found["compute_ms"]
    for row in rows[1:]:
        arguments, name = ALGORITHMS[row["name"]]
        foreseen = plans[arguments.get("overlap", False)]["rows"]
        row["predicted_ms"] = next(r["step_ms"] for r in foreseen if r["name"] == name)
    ratios = {row["name"]: row["predicted_ms"] / row["median_ms"] for row in rows}
    where = f"links of {options.mbit:g} Mbit/s" if options.join else "loopback"
    print("Measured: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    title = f"A step of fit, {options.workers} workers, {parameters} parameters, {where}"
    report.publish(title, rows, ratios, options.output)


if __name__ == "__main__":
    sys.exit(main())
