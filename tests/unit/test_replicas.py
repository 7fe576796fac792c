"""Virtual workers with Keras' optimizers by hand, and why averaged steps of Adam are short."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import optimizers
from benchmarks.replicas import Replicas
from tf_gossip_pga.algorithm import topology


def _given(x, gradient):
    """A loss whose gradient is what the batch says, `[1, d]`."""
    return tf.reduce_sum(x * gradient[0])


def _constant(gradients, steps: int):
    """Batches `[workers, 1, 1, 1]`: each worker's gradient, the same in every step."""
    return [(np.reshape(gradients, (-1, 1, 1, 1)).astype(np.float32),)] * steps


@pytest.mark.parametrize(
    ("optimizer_state", "expected"),
    [("local", [-2.5, -6]), ("average", [-3.25, -5.25]), ("reset", [-2.5, -4.5])],
)
def test_momentum_at_a_global_average(optimizer_state, expected):
    # v <- v / 2 - g. Two steps of gradients 0 and 2 leave v = 0 and -3, x = 0 and -5, mean -2.5.
    optimizer = keras.optimizers.SGD(momentum=0.5)
    replicas = Replicas(_given, np.zeros((1, 1), np.float32), optimizer, topology.disconnected(2))
    for _ in range(2):  # each run starts from the beginning
        replicas.run(_constant([0, 2], steps=3), 1.0, 2, optimizer_state)
        assert replicas.x.ravel().tolist() == expected
        assert replicas.mean.tolist() == [[np.mean(expected)]]


@pytest.mark.parametrize(
    ("optimizer", "of_noise"), [(keras.optimizers.SGD, 1.0), (keras.optimizers.Adam, 0.5)]
)
def test_the_mean_of_four_workers_steps_beside_one_process(optimizer, of_noise):
    # Gradients of a quarter of the batch have twice the noise, of which averaging leaves a half:
    # just what the whole batch has. Adam has divided by the doubled one before.
    random, d = np.random.default_rng(0), 2000

    def moved(workers: int, noise: float, signal: float):
        shape = (20, workers, 1, 1, d)
        gradients = signal + noise * random.standard_normal(shape, np.float32)
        start = np.zeros((1, d), np.float32)
        replicas = Replicas(_given, start, optimizer(), topology.one_peer_exponential(workers))
        return replicas.run([(each,) for each in gradients], 0.01, 6)[0]

    assert moved(4, 2, 0) / moved(1, 1, 0) == pytest.approx(of_noise, rel=0.03)
    assert moved(4, 0, 1) / moved(1, 0, 1) == pytest.approx(1, rel=1e-4)


def test_workers_are_compared_with_one_process_seed_by_seed(capsys):
    def row(losses, moved):
        mean, std = np.mean(losses), np.std(losses, ddof=1)
        return {"val_loss": losses, "val_loss_mean": mean, "val_loss_std": std, "moved": moved}

    ends = {0.1: [3, 4, 5], 0.2: [1, 2, 3], 0.4: [float("nan")] * 3}
    study = types.SimpleNamespace(
        workers=4,
        rule=2.0,
        alone=lambda rate: {"learning_rate": rate, **row(ends[rate], 0.5)},
        # One process plus 1, 2 and 3: 2 on average, standard error 1 / sqrt(3).
        shared=lambda rate, factor, *_: row(np.add(ends[rate], [1, 2, 3]), factor / 4),
    )
    rows = optimizers.comparison(study, list(ends))
    assert len(rows) == 6
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "| one process | 2.0000 ± 1.0000 | | |"
    assert lines[4] == "| x 1, H=6, local | 4.0000 ± 2.0000 | +2.0000 ± 0.5774 | 0.50 |"
    assert lines[5] == "| x 2, H=6, local | 4.0000 ± 2.0000 | +2.0000 ± 0.5774 | 1.00 |"
