r"""Compare the accuracy and time of all five algorithms on one workload with several seeds.

    python benchmarks/compare.py --seeds=5 --workers=16 --topology=ring --model=mlp \
        --classes_per_worker=2 --epochs=10 --steps_per_epoch=30 --output=output/compare.json

    python benchmarks/compare.py --compare=optimizer_state --output=output/optimizer_state.json

The benchmark accepts every flag of `train.py`, and sets the flags under comparison itself. All runs
use the same worker processes, one seed after another, so a change in the machine's speed affects
all methods. The benchmark prints a table, and writes a picture next to the JSON file. There are two
controls:

    one worker            plain Keras in one process, which trains on the global batch of all
                          workers, drawn from all data. Synchronous training should match it.
    gossip, not averaged  the workers' own models at the end of Gossip SGD, before the global
                          average that concludes every algorithm here.
"""

import dataclasses
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import train
from benchmarks import compare_report
from job import flags as job_flags
from job import results
from job.flags import FLAGS
from job.spec import Job, find_job

if TYPE_CHECKING:
    import tensorflow as tf

    from tf_gossip_pga import Cluster

# Name -> flags. Adaptive periods start at 4, so the comparison includes a fixed period of 4.
METHODS = {
    "algorithm": {
        "parallel": {"algorithm": "parallel"},
        "pga": {"algorithm": "pga"},
        "pga, H = 4": {"algorithm": "pga", "H": 4},
        "aga": {"algorithm": "aga"},
        "auto": {"algorithm": "auto"},
        "local": {"algorithm": "local"},
        "gossip": {"algorithm": "gossip"},
    },
    "optimizer_state": {
        "local": {"optimizer_state": "local"},
        "average": {"optimizer_state": "average"},
        "reset": {"optimizer_state": "reset"},
    },
    "exchange": {
        "float32": {"wire_dtype": "float32", "overlap": False},
        "bfloat16": {"wire_dtype": "bfloat16", "overlap": False},
        "int8": {"wire_dtype": "int8", "overlap": False},
        "float32, overlap": {"wire_dtype": "float32", "overlap": True},
        "int8, overlap": {"wire_dtype": "int8", "overlap": True},
    },
}
SEED_STRIDE = 10_000  # larger than any number that ranks add to the seed

flags.adopt_module_key_flags(job_flags)  # for --help
flags.DEFINE_enum("compare", "algorithm", list(METHODS), "Setting that differs from run to run.")
flags.DEFINE_integer(
    "seeds", 3, "Number of runs with different seeds, of each method.", lower_bound=2
)
flags.DEFINE_string("output", None, "JSON file to write; the picture is a .png next to it.")


def main(argv: list[str]) -> None:
    """Check the flags, and then start the workers or run as one of them.

    Args:
      argv: the program name and the arguments that remain after parsing flags.
    """
    if FLAGS.compare == "algorithm" and FLAGS["algorithm"].present:
        sys.exit(
            "compare.py: --compare=algorithm runs all algorithms, received "
            f"--algorithm={FLAGS.algorithm}. Leave --algorithm out."
        )
    if FLAGS.output:  # fail before the runs, not after them
        if pathlib.Path(FLAGS.output).suffix == ".png":
            sys.exit(
                f"compare.py: --output={FLAGS.output} ends in .png, but names the JSON file. Use a "
                "name that ends in .json."
            )
        try:
            pathlib.Path(FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
            open(FLAGS.output, "a").close()
        except OSError as error:
            sys.exit(f"compare.py: --output={FLAGS.output} cannot be written ({error.strerror}).")
    train.start(argv, worker)


def worker() -> None:
    """Run one rank of the comparison, and report on rank 0."""
    import keras

    import tf_gossip_pga as pga

    cluster = pga.initialize()
    job = find_job(cluster.size)
    train.check_vocabularies(cluster, job.data)
    period, first_seed, methods = FLAGS.H, FLAGS.seed, METHODS[FLAGS.compare]
    common_period = job_flags.period()  # period of the methods that do not set one
    runs = {name: [] for name in (*methods, compare_report.ALONE)}
    for seed in range(FLAGS.seeds):
        for name, measurements in runs.items():
            keras.backend.clear_session()
            FLAGS.seed = first_seed + seed * SEED_STRIDE
            for flag, value in {"H": period, **methods.get(name, {})}.items():
                setattr(FLAGS, flag, value)
            measured = measure(cluster, job) if name in methods else alone(cluster, job)
            measurements.append(measured)
            if cluster.is_chief:
                print(
                    f"seed {seed}, {name}: validation loss {measured['val_loss']:.4f}", flush=True
                )
    if cluster.is_chief:
        title = (
            f"{FLAGS.model} on {job.data.name}, {cluster.size} workers, {FLAGS.topology}, "
            f"H = {common_period}, {job.steps} steps, {FLAGS.seeds} seeds"
            + f", {job.classes_per_worker} classes per worker"
            * bool(job.classes_per_worker)
        )
        compare_report.publish(title, runs, list(methods), job.steps_per_epoch, FLAGS.output)


def measure(cluster: "Cluster", job: Job) -> dict:
    """Train once with the current flags, and return the measurements, complete only on rank 0.

    Args:
      cluster: the cluster.
      job: what to train.
    """
    gossip, clock = train.gossip_callback(job), _clock()
    own = _own_loss(job.data.validation(0, 1, 256))
    run = train.train(cluster, job, [own, gossip, clock])
    measured = results.collect(cluster, job, run, gossip, train.PATIENCE_S)
    # Gather after `collect`, because rank 0 may spend a long time validating in it.
    everyone = cluster.gather(own.losses, train.PATIENCE_S)
    means = {name: float(np.mean([each[name] for each in everyone])) for name in own.losses}
    return {**measured, "own": means, "clock": clock.seconds}


def alone(cluster: "Cluster", job: Job) -> dict:
    """Train on rank 0 only, with the global batch of all workers, while the other ranks wait.

    Args:
      cluster: the cluster.
      job: what to train.

    Returns:
      The measurements on rank 0, and an empty dict on other ranks.
    """
    import tf_gossip_pga as pga

    measured = {}
    if cluster.is_chief:
        batch_size = job.recipe.batch_size * cluster.size
        recipe = dataclasses.replace(job.recipe, batch_size=batch_size)
        job, clock = dataclasses.replace(job, recipe=recipe, classes_per_worker=None), _clock()
        run = train.train(pga.Cluster(strategy=cluster.strategy), job, [clock])
        losses = results.evaluate(job, run.model)
        measured = {
            **{f"val_{name}": losses[name] for name in ("loss", "accuracy")},
            "history": run.history,
            "clock": clock.seconds,
        }
    cluster.barrier(train.PATIENCE_S)
    return measured


def _clock():
    """Return a callback that records the seconds from the first batch's end to each epoch's end."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started, self.seconds = 0.0, []

        def on_train_batch_end(self, batch, logs=None):
            self.started = self.started or time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.started)

    return Clock()


def _own_loss(validation: "tf.data.Dataset"):
    """Return a callback that validates this worker's own model at the end of training.

    This callback must precede `GossipPGA`, which averages at the end of training.
    """
    import keras

    class OwnLoss(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            model: Any = self.model
            self.losses = model.evaluate(validation, verbose=0, return_dict=True)

    return OwnLoss()


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
