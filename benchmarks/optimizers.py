"""Find the learning rate of SGD, Adam and AdamW on n workers, compared to one process.

    python benchmarks/optimizers.py --output=output/optimizers.json
    python benchmarks/optimizers.py --tasks text --optimizers adam --workers=16

One process and n virtual workers train with the same global batch size on three small tasks, whose
data come with installed packages. Each worker draws 1/n of the global batch from its own 1/n of the
data. All runs take the same number of steps with a constant learning rate. The result is the final
validation loss of the mean of the workers, as mean and standard deviation over seeds, which
determine initial weights and batches.

The first table has one row per learning rate of a grid. A column "x f" is for n workers with the
defaults of Gossip-PGA and f times the row's learning rate. The second table compares settings at
the learning rate that gave one process the lowest loss. Its differences are between runs with the
same seed, and are given with their standard error. The column "step" is the length of a step of the
workers' mean relative to a step of one process: root mean square over parameters, mean over steps.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import tensorflow as tf

from benchmarks import cli, report
from benchmarks.replicas import Replicas
from models import mlp
from tf_gossip_pga import simulate
from tf_gossip_pga.algorithm import topology

# Name -> the grid of learning rates, and the rule of `GossipPGA`: n -> factor on learning rates.
OPTIMIZERS: dict[str, tuple[list[float], Callable[[int], float]]] = {
    "sgd": ([0.01 * 2**k for k in range(7)], lambda n: 1.0),
    "adam": ([2.5e-4 * 2**k for k in range(7)], math.sqrt),
    "adamw": ([2.5e-4 * 2**k for k in range(7)], math.sqrt),
}
WEIGHT_DECAY = 0.1  # of AdamW with one process; `Study` divides it by the rate's factor
BATCH = 64  # over all workers
WINDOW = 16  # characters that predict the next one


@dataclasses.dataclass(frozen=True)
class Task:
    """A task to train on.

    Attributes:
      model: function that creates a model with new weights.
      loss: loss or its name, as for `Model.compile`.
      training, validation: inputs and targets, each `[samples, …]`.
      steps: number of steps of a run.
    """

    model: Callable[[], keras.Model]
    loss: Any
    training: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    steps: int


def digits() -> Task:
    """Classify the handwritten digits of scikit-learn. Every fifth image is used for validation."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), labels.astype(np.int32)
    validates = np.arange(len(y)) % 5 == 0
    return Task(
        lambda: mlp.mlp((64,), 10),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        (x[~validates], y[~validates]),
        (x[validates], y[validates]),
        steps=300,
    )


def text() -> Task:
    """Predict the next character of the Python manual. Every sixth topic is used for validation."""
    from pydoc_data.topics import topics

    titles = sorted(topics)
    parts = [[t for k, t in enumerate(titles) if (k % 6 == 0) is held] for held in (False, True)]
    training, validation = ("\n".join(topics[t] for t in part).lower() for part in parts)
    frequent = sorted(set(training), key=training.count, reverse=True)[:63]
    code = {character: number for number, character in enumerate(frequent)}

    def windows(characters: str, every: int):
        ids = np.array([code.get(each, 63) for each in characters], np.int32)
        view = np.lib.stride_tricks.sliding_window_view(ids, WINDOW + 1)[::every]
        return view[:, :-1], view[:, -1]

    def model():
        return keras.Sequential(
            [
                keras.Input((WINDOW,), dtype="int32"),
                keras.layers.Embedding(64, 16),
                keras.layers.Flatten(),
                keras.layers.Dense(64, "relu"),
                keras.layers.Dense(64),
            ]
        )

    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Task(model, entropy, windows(training, 1), windows(validation, 37), steps=600)


def regression() -> Task:
    """Fit a random network of 32 hidden units with noise of standard deviation 0.1."""
    random = np.random.default_rng(0)
    x = random.standard_normal((6000, 16))
    hidden = np.tanh(x @ random.standard_normal((16, 32)) / 2)
    y = hidden @ random.standard_normal((32, 1)) / math.sqrt(32)
    y += 0.1 * random.standard_normal(y.shape)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Task(
        lambda: mlp.mlp((16,), 1), "mse", (x[:4000], y[:4000]), (x[4000:], y[4000:]), steps=400
    )


TASKS = {task.__name__: task for task in (digits, text, regression)}


class Study:
    """Run one optimizer on one task.

    Args:
      task: the task.
      optimizer: a name in `OPTIMIZERS`.
      workers: number of workers that share the global batch.
      seeds: number of runs per configuration.

    Attributes:
      rule: factor on the learning rate that the documentation of `GossipPGA` recommends.
      workers: number of workers.
    """

    def __init__(self, task: Task, optimizer: str, workers: int, seeds: int):
        self.rule, self.workers = OPTIMIZERS[optimizer][1](workers), workers
        self._task, self._optimizer, self._seeds = task, optimizer, seeds
        self._problems = [_problem(task, seed) for seed in range(seeds)]
        self._replicas = functools.cache(self._make_replicas)
        self._ended = functools.cache(self._train)

    def alone(self, rate: float) -> dict:
        """Train one process on the global batch, and return a row of the JSON file.

        Args:
          rate: learning rate.
        """
        return self._row(1, rate, 1.0, None, "local")

    def shared(
        self,
        rate: float,
        factor: float,
        H: int | None = 6,  # noqa: N803
        optimizer_state: str = "local",
    ) -> dict:
        """Train all workers, and return a row of the JSON file.

        Args:
          rate: learning rate of one process.
          factor: the workers train with `factor * rate`.
          H: period of the global average in steps; None: never. Default 6.
          optimizer_state: as in `GossipPGA`. Default `"local"`.
        """
        return self._row(self.workers, rate, factor, H, optimizer_state)

    def _row(self, workers: int, rate: float, factor: float, H: int | None, state: str) -> dict:  # noqa: N803
        # A step decays by learning rate * weight decay. Dividing by the factor keeps the product.
        decay = WEIGHT_DECAY / factor if self._optimizer == "adamw" else 0.0
        losses, moved = self._ended(workers, decay, rate * factor, H, state)
        return {
            "workers": workers,
            "learning_rate": rate,
            "factor": factor,
            "H": H,
            "optimizer_state": state,
            "val_loss": losses.tolist(),
            "val_loss_mean": float(losses.mean()),
            "val_loss_std": float(losses.std(ddof=1)),
            "moved": moved,
        }

    def _train(self, workers: int, decay: float, rate: float, H: int | None, state: str):  # noqa: N803
        replicas = self._replicas(workers, decay)
        moved = replicas.run(_batches(self._task, workers, self._seeds), rate, H, state)
        loss = self._problems[0].loss
        ends = [float(loss(tf.constant(each), *self._task.validation)) for each in replicas.mean]
        return np.array(ends), float(moved.mean())

    def _make_replicas(self, workers: int, decay: float) -> Replicas:
        optimizer = {
            "sgd": lambda: keras.optimizers.SGD(momentum=0.9),
            "adam": keras.optimizers.Adam,
            "adamw": lambda: keras.optimizers.AdamW(weight_decay=decay),
        }[self._optimizer]()
        initial = np.stack([problem.initial for problem in self._problems])
        graph = topology.one_peer_exponential(workers)
        return Replicas(self._problems[0].loss, initial, optimizer, graph)


def _problem(task: Task, seed: int) -> simulate.Problem:
    keras.utils.set_random_seed(seed)
    x, y = task.validation  # only the shapes matter
    return simulate.from_keras(task.model(), task.loss, x[np.newaxis], y[np.newaxis])


def _batches(task: Task, workers: int, seeds: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield inputs and targets of each step, `[workers, seeds, batch, …]`.

    Each worker draws with replacement from its own part of the data.
    """
    randoms = [np.random.default_rng(seed) for seed in range(seeds)]
    share, size = len(task.training[0]) // workers, (workers, BATCH // workers)
    for _ in range(task.steps):
        drawn = np.stack([random.integers(share, size=size) for random in randoms], axis=1)
        places = drawn * workers + np.arange(workers)[:, np.newaxis, np.newaxis]
        yield tuple(part[places] for part in task.training)


def grid(study: Study, rates: list[float], factors: list[float]) -> list[dict]:
    """Print the table over learning rates, and return its rows.

    Args:
      study: an optimizer on a task.
      rates: learning rates of one process.
      factors: factors on the learning rate for all workers.
    """
    heads = [f"{study.workers} workers, x {factor:g}" for factor in factors]
    print("| learning rate | one process |", " | ".join(heads), "| step at x 1 |")
    print("|---" * (len(factors) + 3) + "|")
    rows = []
    for rate in rates:
        alone, shared = study.alone(rate), [study.shared(rate, factor) for factor in factors]
        cells = " | ".join(map(_loss, [alone, *shared]))
        print(f"| {rate:g} | {cells} | {shared[0]['moved'] / alone['moved']:.2f} |", flush=True)
        rows += [alone, *shared]
    return rows


def comparison(study: Study, rates: list[float]) -> list[dict]:
    """Print the table at the best learning rate of one process, and return its rows.

    Args:
      study: an optimizer on a task.
      rates: learning rates of one process.
    """
    alone = min(map(study.alone, rates), key=lambda row: row["val_loss_mean"])
    rate = alone["learning_rate"]
    print(f"\n| learning rate {rate:g} | validation loss | minus one process | step |")
    print("|---" * 4 + "|")
    print(f"| one process | {_loss(alone)} | | |", flush=True)
    kinds = [(study.rule, 6, state) for state in ("local", "average", "reset")]
    kinds += [(study.rule, 1, "local"), (study.rule, None, "local")]
    rows = []
    for factor, H, state in dict.fromkeys([(1.0, 6, "local"), *kinds]):  # noqa: N806
        row = study.shared(rate, factor, H, state)
        away = np.subtract(row["val_loss"], alone["val_loss"])
        error = away.std(ddof=1) / math.sqrt(len(away))
        print(
            f"| x {factor:g}, H={H}, {state} | {_loss(row)} | {away.mean():+.4f} ± {error:.4f} "
            f"| {row['moved'] / alone['moved']:.2f} |",
            flush=True,
        )
        rows.append(row)
    return rows


def _loss(row: dict) -> str:
    return f"{row['val_loss_mean']:.4f} ± {row['val_loss_std']:.4f}"


def main() -> None:
    """Run every optimizer on every task."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workers", type=int, default=4, help="number of workers, at least 2")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind, at least 2")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        help="learning rates of the grid (default: those of the optimizer)",
    )
    parser.add_argument(
        "--factors",
        nargs="+",
        type=float,
        help="factors of the learning rate with n workers (default: 1, sqrt(n) and n)",
    )
    parser.add_argument("--steps", type=int, help="steps of a run (default: those of the task)")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks to train"
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=OPTIMIZERS,
        default=list(OPTIMIZERS),
        help="optimizers to compare",
    )
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if options.seeds < 2 or options.workers < 2 or BATCH % options.workers:
        parser.error(
            f"--seeds must be at least 2, received {options.seeds}. --workers must be at least 2 "
            f"and divide the global batch size of {BATCH}, received {options.workers}."
        )
    n, rows = options.workers, []
    factors = options.factors or [1.0, math.sqrt(n), float(n)]
    for name in options.tasks:
        task = TASKS[name]()
        task = dataclasses.replace(task, steps=options.steps or task.steps)
        for optimizer in options.optimizers:
            print(f"\n### {optimizer} on {name}: {task.steps} steps, {options.seeds} seeds\n")
            study = Study(task, optimizer, n, options.seeds)
            rates = options.rates or OPTIMIZERS[optimizer][0]
            found = grid(study, rates, factors) + comparison(study, rates)
            what = {"name": f"{optimizer} on {name}", "task": name, "optimizer": optimizer}
            rows += [{**what, **row} for row in found]
    if options.output:
        report.write(options.output, rows=rows)


if __name__ == "__main__":
    main()
