r"""Measure the time until training reaches the loss of synchronous training, over slow links.

    python benchmarks/time_to_loss.py --workers=8 --mbit=100 --model=resnet20 --batch_size=4 \
        --learning_rate=0.1 --epochs=15 --steps_per_epoch=20 --output=output/time_to_loss.json

Each worker is a separate host behind a link of `--mbit` (see links.py), which requires root.
Without root, all workers share the loopback interface. The benchmark accepts every flag of
`train.py`, and sets the flags under comparison itself (`ROWS`). All rows train the same number of
steps, with the same batches of each worker, from the same initial weights, in the same worker
processes, one seed after another. The baseline is synchronous training with
`MultiWorkerMirroredStrategy` (see synchronous.py), which requires tf-keras (requirements.txt).

    seconds   of training, from the end of step `COLD`: the steps until then compile the
              computation and the exchanges. Starting, validation and what belongs to it are
              excluded; the last average, which gives all workers one model, is included. The time
              is that of the last worker.
    loss      of the averaged model on all validation examples, at the end of each epoch. Each
              worker stores a copy of its own model, whose time is excluded too. The copies are
              averaged and validated after training, so validation does not change training.
    target    the loss of the row "Parallel SGD" after 90% and after all of its steps, from the mean
              over seeds (of the baseline, if that row is left out). Learning rates decay, so the
              loss falls until the end. A row that ends as low but for noise may miss the last
              target, so there is an earlier one. The time to a target is read off the mean curve of
              each row, the baseline too, at the first crossing, with linear interpolation.

The ratio of computation to communication decides what a faster exchange is worth. The benchmark
reports both: the time of a step without exchanges, of all workers at once, and that of an
all-reduce of the gradients.
"""

import contextlib
import functools
import importlib
import os
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import train
from benchmarks import exchanges, links, synchronous, time_to_loss_report, timing
from benchmarks.time_to_loss_report import BASELINE
from job import flags as job_flags
from job.flags import FLAGS
from job.spec import Job, find_job

if TYPE_CHECKING:
    from tf_gossip_pga import Cluster, GossipPGA

COLD = 6  # steps before the clock starts: one period, after which every exchange is compiled
ALONE_STEPS = 10  # steps without exchanges to time
REPETITIONS = 5  # of the all-reduce

# Name -> flags.
ROWS = {
    BASELINE: {},
    "Parallel SGD": {"algorithm": "parallel"},
    "PGA": {"algorithm": "pga"},
    "PGA overlap": {"algorithm": "pga", "overlap": True},
    "PGA int8": {"algorithm": "pga", "wire_dtype": "int8"},
    "PGA overlap int8": {"algorithm": "pga", "overlap": True, "wire_dtype": "int8"},
    "AGA": {"algorithm": "aga"},
    "Local SGD": {"algorithm": "local"},
    "DiLoCo-like": {
        "algorithm": "pga",
        "H": 100,
        "gossip_every": 20,
        "outer_learning_rate": 1.0,
        "outer_momentum": 0.3,
        "outer_nesterov": True,
    },
    "H=auto": {"algorithm": "auto"},
}
SEED_STRIDE = 10_000  # larger than any number that ranks add to the seed

flags.adopt_module_key_flags(job_flags)  # for --help
flags.DEFINE_float("mbit", 100, "Link bandwidth per direction, in Mbit/s.", lower_bound=1)
flags.DEFINE_list("rows", list(ROWS), "Rows to measure; the baseline is always one of them.")
flags.DEFINE_integer("seeds", 3, "Number of runs with different seeds, per row.", lower_bound=1)
flags.DEFINE_string("output", None, "JSON file to write; the picture is a .png next to it.")
flags.DEFINE_string("join", None, "Set by this program: the hosts of the workers.")
flags.DEFINE_string("folder", None, "Set by this program: a folder that all workers share.")


def main(argv: list[str]) -> None:
    """Check the flags, and then create the hosts and start the workers, or run as one of them.

    Args:
      argv: the program name and the arguments that remain after parsing flags.
    """
    unknown = [name for name in FLAGS.rows if name not in ROWS]
    if unknown:
        sys.exit(f"time_to_loss.py: unknown row {unknown[0]!r}. Rows: {', '.join(ROWS)}.")
    with contextlib.ExitStack() as stack:
        if "TF_CONFIG" not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="time-to-loss-"))
            sys.argv.append(f"--folder={folder}")
            try:
                hosts = stack.enter_context(links.hosts(FLAGS.workers, FLAGS.mbit))
                sys.argv.append(f"--join={hosts.flag}")
            except links.NoHostsError as reason:
                print(f"No separate hosts ({reason}): all workers share the loopback.", flush=True)
        train.start(argv, worker)


def worker() -> None:
    """Run one rank of the benchmark, and report on rank 0."""
    if FLAGS.join:
        links.join(FLAGS.join)
    import keras

    import tf_gossip_pga as pga

    cluster = pga.initialize()
    job = find_job(cluster.size)
    train.check_vocabularies(cluster, job.data)
    bench = Bench(cluster, job)
    costs = bench.costs()
    rows = [name for name in ROWS if name in FLAGS.rows or name == BASELINE]
    changed = {flag for name in rows for flag in ROWS[name]}
    defaults = {flag: FLAGS[flag].value for flag in changed}
    first_seed, runs = FLAGS.seed, {name: [] for name in rows}
    for number in range(FLAGS.seeds):
        seed = first_seed + number * SEED_STRIDE
        keras.utils.set_random_seed(seed)
        initial = train.models.build(FLAGS.model, **job.data.arguments).get_weights()
        for name in rows:
            for flag, value in {**defaults, **ROWS[name]}.items():
                setattr(FLAGS, flag, value)
            runs[name].append(bench.run(name, seed, initial))
            if cluster.is_chief:
                last = runs[name][-1]
                print(
                    f"seed {number}, {name}: validation loss {last['losses'][-1]:.4f} after "
                    f"{last['seconds'][-1]:.1f} s",
                    flush=True,
                )
    if cluster.is_chief:
        where = f"links of {FLAGS.mbit:g} Mbit/s" if FLAGS.join else "loopback"
        title = f"{FLAGS.model} on {job.data.name}, {cluster.size} workers, {where}"
        time_to_loss_report.publish(title, runs, bench.steps, costs, FLAGS.output)


class Bench:
    """One rank's model and data, with which it trains every row.

    The model is compiled once. Each run starts it over.

    Args:
      cluster: the cluster.
      job: what to train.
    """

    def __init__(self, cluster: "Cluster", job: Job):
        """Build the model for `GossipPGA`, and the one for MultiWorkerMirroredStrategy."""
        self.cluster, self.job = cluster, job
        self.model = train.compiled_model(cluster, job)
        self.model.optimizer.build(self.model.trainable_variables)
        self.mirrored = synchronous.trainer(self.model, job, cluster.size)
        self.gossips: dict[str, tuple[GossipPGA, dict]] = {}
        self.validation = job.data.validation(0, 1, 256)

    @property
    def steps(self) -> list[int]:
        """The numbers of the steps after which the model is validated."""
        each = self.job.steps_per_epoch
        return [each * (epoch + 1) for epoch in range(self.job.recipe.epochs)]

    def costs(self) -> dict[str, float]:
        """Return the median milliseconds of a step without exchanges and of an all-reduce."""
        import tensorflow as tf

        batches = self._batches()
        parameters = sum(int(np.prod(each.shape)) for each in self.model.trainable_variables)
        actions = {
            "compute": functools.partial(
                self.model.fit, batches, steps_per_epoch=ALONE_STEPS, shuffle=False, verbose="0"
            ),
            "all_reduce": exchanges.all_reduce(tf.zeros([parameters])),
        }
        timing.measure(self.cluster, actions, 1, "Warming up")
        timed = timing.measure(self.cluster, actions, REPETITIONS, "Costs")
        everyone = self.cluster.gather(timed, timing.PATIENCE_S)
        seconds = {name: float(np.median(timing.last(everyone, name))) for name in actions}
        return {
            "parameters": parameters,
            "compute_ms": 1000 * seconds["compute"] / ALONE_STEPS,
            "all_reduce_ms": 1000 * seconds["all_reduce"],
        }

    def run(self, name: str, seed: int, initial: list[np.ndarray]) -> dict:
        """Train once with the current flags.

        Args:
          name: name of the row.
          seed: seed of the data.
          initial: initial weights.

        Returns:
          `seconds`, `losses` and `accuracies`, each with one number per validation.
        """
        import keras

        tf_keras = importlib.import_module("tf_keras")
        is_baseline = name == BASELINE
        self._start_over(initial)
        keras.utils.set_random_seed(seed + self.cluster.rank)
        self.cluster.barrier(timing.PATIENCE_S)
        if is_baseline:
            strategy = exchanges.synchronous_strategy()
            batches = strategy.distribute_datasets_from_function(lambda context: self._batches())
            recorder = _recorder(tf_keras, self._weights_of_mirrored)
            model, callbacks = self.mirrored, [recorder]
        else:
            recorder = _recorder(keras, self.model.get_weights)
            model, batches = self.model, self._batches()
            callbacks = [self._gossip(name), recorder]
        model.fit(
            batches,
            epochs=self.job.recipe.epochs,
            steps_per_epoch=self.job.steps_per_epoch,
            shuffle=False,
            callbacks=callbacks,
            verbose=0,  # pyright: ignore[reportArgumentType]
        )
        seconds = self.cluster.gather(recorder.seconds, timing.PATIENCE_S)
        return {"seconds": np.max(seconds, axis=0).tolist(), **self._validate(recorder.weights)}

    def _gossip(self, name: str) -> "GossipPGA":
        """Return the callback of a row, as if it were new.

        The seeds share it, because tracing the exchanges of a new one takes longer than a short
        training. Only the state of an outer optimizer cannot be started over.
        """
        if name not in self.gossips or "outer_momentum" in ROWS[name]:
            gossip = train.gossip_callback(self.job)
            self.gossips[name] = gossip, gossip.state
        gossip, state = self.gossips[name]
        gossip.state = state
        return gossip

    def _batches(self):
        job, cluster = self.job, self.cluster
        return job.data.training(
            cluster.rank,
            cluster.size,
            job.recipe.batch_size,
            job.classes_per_worker,
            job.recipe.augment,
        )

    def _start_over(self, initial: list[np.ndarray]):
        """Give both models the initial weights, and clear the state of their optimizers."""
        self.model.set_weights(initial)
        pairs = zip(self.mirrored.parts, self.model.trainable_variables, strict=True)
        for part, variable in pairs:
            part.assign(variable.value)
        for variable in (*self.model.optimizer.variables, *self.mirrored.optimizer.variables):
            variable.assign(np.zeros_like(variable.numpy()))

    def _weights_of_mirrored(self) -> list[np.ndarray]:
        pairs = zip(self.mirrored.parts, self.model.trainable_variables, strict=True)
        for part, variable in pairs:
            variable.assign(part.numpy())
        return self.model.get_weights()

    def _validate(self, own: list[list[np.ndarray]]) -> dict[str, list[float]]:
        """Validate the averages of all ranks' copies, each rank some of them."""
        shapes = [each.shape for each in own[0]]
        flat = np.array([np.concatenate([w.ravel() for w in weights]) for weights in own])
        rank, size = self.cluster.rank, self.cluster.size
        np.save(_file(rank), flat)
        self.cluster.barrier(timing.PATIENCE_S)
        mean = np.mean([np.load(_file(each), "r")[rank::size] for each in range(size)], axis=0)
        measured = []
        cuts = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1]
        for average in mean:
            parts = np.split(average, cuts)
            self.model.set_weights([p.reshape(s) for p, s in zip(parts, shapes, strict=True)])
            measured.append(self.model.evaluate(self.validation, verbose="0", return_dict=True))
        everyone = self.cluster.gather(measured, timing.PATIENCE_S)
        points = [everyone[index % size][index // size] for index in range(len(own))]
        return {
            "losses": [each["loss"] for each in points],
            "accuracies": [each["accuracy"] for each in points],
        }


def _file(rank: int) -> pathlib.Path:
    return pathlib.Path(FLAGS.folder, f"{rank}.npy")


def _recorder(library: Any, weights):
    """Return a callback that records the time and this worker's weights at the ends of epochs.

    Put this callback last. Its last record is of the end of training instead of the last epoch.

    Args:
      library: Keras or tf_keras.
      weights: function that returns this worker's weights.
    """

    class Recorder(library.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.steps, self.seconds, self.weights = 0, [], []

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == COLD:
                self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.record()

        def on_train_end(self, logs=None):
            del self.seconds[-1], self.weights[-1]
            self.record()

        def record(self):
            now = time.perf_counter()
            self.seconds.append(now - self.started)
            self.weights.append(weights())
            self.started += time.perf_counter() - now  # this copy is not part of training

    return Recorder()


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
