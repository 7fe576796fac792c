"""The oracle has tests of its own: gradients by differences, and the paper's special cases."""

import numpy as np

from tests.support import reference
from tf_gossip_pga.algorithm import topology

STEPS, BATCH = 6, 3


def _data(ranks):
    return [reference.batches(rank, STEPS, BATCH) for rank in range(ranks)]


def test_gradient_equals_finite_differences():
    weights = reference.initial_weights()
    x, y = (part[0] for part in reference.batches(0, 1, BATCH))

    def loss(weights):
        kernel1, bias1, kernel2, bias2 = reference.unflatten(weights)
        return np.mean((np.tanh(x @ kernel1 + bias1) @ kernel2 + bias2 - y) ** 2)

    for index in range(0, reference.PARAMETERS, 5):
        nudge = np.zeros(reference.PARAMETERS)
        nudge[index] = 1e-6
        slope = (loss(weights + nudge) - loss(weights - nudge)) / 2e-6
        np.testing.assert_allclose(reference.gradient(weights, x, y)[index], slope, atol=1e-6)


def test_a_global_average_in_every_step_is_training_on_the_merged_batch():
    data = _data(2)
    merged = [tuple(np.concatenate(parts, axis=1) for parts in zip(*data, strict=True))]
    start = reference.initial_weights()
    two = reference.train(start, data, lambda step: np.full((2, 2), 0.5), 0.1, 0.9)
    one = reference.train(start, merged, lambda step: np.eye(1), 0.1, 0.9)
    np.testing.assert_allclose(two[:, 0], one[:, 0], rtol=1e-12)


def test_without_neighbours_each_rank_trains_alone():
    data = _data(3)
    start = reference.initial_weights()
    together = reference.train(start, data, lambda step: np.eye(3), 0.1, 0.9)
    for rank in range(3):
        alone = reference.train(start, data[rank : rank + 1], lambda step: np.eye(1), 0.1, 0.9)
        np.testing.assert_allclose(together[:, rank], alone[:, 0], rtol=1e-12)
    assert np.ptp(together[-1], axis=0).max() > 0.01  # the ranks really differ


def test_the_global_average_replaces_the_gossip():
    matrix = reference.matrix_of_step(topology.ring(4), H=3)
    # Step 2 gossips: a third of rank 1's weight comes from rank 0. Step 3 takes a quarter of all.
    np.testing.assert_allclose(matrix(2)[1], [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(matrix(3)[1], [1 / 4, 1 / 4, 1 / 4, 1 / 4])
