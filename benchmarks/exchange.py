"""Exchanges on loopback, beside TensorFlow's own MultiWorkerMirrored all-reduce in the same run.

    python benchmarks/exchange.py --workers=4 --output=output/exchange.json

Every row is the time until the last rank has finished, from a common start. Rows are repeated in
turn, so that a change in the machine's speed meets all of them, and compared by their medians. Our
rows include everything a training step pays: packing the variables, the exchange, the mixing and
the assignment; the MultiWorkerMirrored row is the bare all-reduce of one tensor.
"""

import argparse
import sys

import report

SMALL_STEPS = 60  # ten whole periods of H=6
MWMS = "MultiWorkerMirrored all-reduce"
STEPS = f"{SMALL_STEPS} steps of a 10 kB model, H=6"
BARE = f"{SMALL_STEPS} bare all-reduces of 4 bytes"


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--megabytes", type=float, default=100, help="of the large model")
    parser.add_argument("--output", help="write a JSON file")
    options = parser.parse_args(argv)
    if options.workers < 2:
        parser.error(f"--workers must be at least 2, received {options.workers}")
    return options


def worker(options):
    """One rank of the benchmark; rank 0 reports."""
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    from tf_gossip_pga.exchange import averaging, collectives

    mine = collectives.active()
    actions = {**_large(mine, options.megabytes), **_small(mine)}
    report.measure(mine, actions, report.warm_up(cluster.size), "Warming up")
    traced = averaging.Traced.total
    measured = report.measure(mine, actions, options.repetitions, "Exchanges")
    retraced = averaging.Traced.total - traced
    everyone = mine.gather(measured, "the end", 600)
    if cluster.is_chief:
        _report(everyone, retraced, options)


def _large(mine, megabytes: float) -> dict:
    """Name -> one exchange of the large model."""
    import tensorflow as tf

    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import averaging

    variables = [tf.Variable(tf.random.normal(shape)) for shape in report.shapes(megabytes)]
    flat = tf.zeros([sum(v.shape.num_elements() for v in variables)])
    actions = {MWMS: report.all_reduce(mine.all_workers, flat)}
    for name in ("one_peer_exponential", "ring", "static_exponential"):
        averager = averaging.Averager(
            mine, topology.BY_NAME[name](mine.cluster.size), variables, [], [], 300, 600
        )
        actions[f"{name} gossip"] = report.Cycle(averager)
    actions["global average"] = report.Cycle(averager, is_global=True)
    return actions


def _small(mine) -> dict:
    """Name -> `SMALL_STEPS` steps of a 10 kB model, or as many bare all-reduces of 4 bytes."""
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

    # 49 * 50 + 50 = 2500 parameters. The callback is called as Keras calls it, without training.
    model = keras.Sequential([keras.Input((49,)), keras.layers.Dense(50)])
    model.compile("sgd", "mse")
    callback = pga.GossipPGA(H=6)
    callback.set_model(model)
    callback.set_params({"epochs": 1, "steps": 1 << 30})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    bare = report.all_reduce(mine.all_workers, tf.zeros([1]))
    return {
        STEPS: lambda: [callback.on_train_batch_end(0) for _ in range(SMALL_STEPS)],
        BARE: lambda: [bare() for _ in range(SMALL_STEPS)],
    }


def _report(everyone: list[dict], retraced: int, options):
    rows = [report.row(name, report.last(everyone, name)) for name in everyone[0]]
    medians = {each["name"]: each["median_ms"] for each in rows}
    ratios = {
        "gossip_over_mwms": medians["one_peer_exponential gossip"] / medians[MWMS],
        "global_over_mwms": medians["global average"] / medians[MWMS],
        "ring_over_mwms": medians["ring gossip"] / medians[MWMS],
        "small_step_over_bare_allreduce": medians[STEPS] / medians[BARE],
    }
    title = f"{options.workers} workers, {options.megabytes:g} MB of float32, loopback"
    report.publish(title, rows, ratios, options.output)
    print(f"functions traced again after the warm-up: {retraced}")


if __name__ == "__main__":
    sys.exit(report.run(worker, parse()))
