"""Outer optimizers in real processes: against the oracle, and after a loss or a join."""

import numpy as np
import pytest

from tests.integration.test_exactness import (
    BATCH,
    MOMENTUM,
    RATE,
    STEPS,
    TOLERANCE,
    end_with_overlap,
    train_cases,
)
from tests.support import graphs, reference

pytestmark = pytest.mark.multiprocess

# Learning rate, momentum, Nesterov.
DILOCO = (0.7, 0.8, True)
SLOWMO = (1.0, 0.5, False)


@pytest.mark.parametrize(
    ("outer", "overlap", "cases"),
    [
        (DILOCO, False, [("disconnected", 4), ("ring", 3)]),
        (SLOWMO, True, [("one_peer_exponential", 3)]),
        pytest.param(SLOWMO, False, [("ring", 3), ("disconnected", 5)], marks=pytest.mark.slow),
        pytest.param(DILOCO, True, [("ring", 4), ("complete", 3)], marks=pytest.mark.slow),
    ],
)
def test_every_step_equals_the_oracle(pools, outer, overlap, cases):
    n = 3
    ranks = pools.run(train_cases, n, cases=cases, overlap=overlap, outer=outer)
    data = [reference.batches(rank, STEPS, BATCH) for rank in range(n)]
    for index, (name, H) in enumerate(cases):  # noqa: N806
        label = f"{name}, H={H}"
        _, after, final = (np.array([rank[index][part] for rank in ranks]) for part in range(3))
        expected = reference.train(
            reference.initial_weights(seed=0),
            data,
            reference.matrix_of_step(graphs.topology_of(name, n), H),
            RATE,
            MOMENTUM,
            ends=lambda step, H=H: end_with_overlap(step, H) if overlap else step,  # noqa: N803
            outer=reference.Outer(*outer, H),
        )
        np.testing.assert_allclose(
            after.transpose(1, 0, 2), expected, rtol=0, atol=TOLERANCE, err_msg=label
        )
        np.testing.assert_allclose(final[0], expected[-1].mean(0), rtol=0, atol=TOLERANCE)
        assert (final == final[0]).all(), f"{label}: the ranks end with different models"
        for step in range(H, STEPS + 1, H):
            x = after[:, step - 1]
            assert (x == x[0]).all(), f"{label}: not bit-identical after step {step}"


@pytest.mark.parametrize("nesterov", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_learning_rate_one_without_momentum_is_a_plain_average_bit_for_bit(pools, nesterov):
    plain = pools.run(train_cases, 3, cases=[("ring", 3)])
    assert pools.run(train_cases, 3, cases=[("ring", 3)], outer=(1.0, 0.0, nesterov)) == plain


def test_int8_sends_differences_from_the_result_of_the_outer_step(pools):
    n, H, outer = 3, 3, (2.0, 0.5, False)  # noqa: N806
    cases = [("ring", H)]
    ranks = pools.run(train_cases, n, cases=cases, wire_dtype="int8", outer=outer)
    before, after, _ = (np.array([rank[0][part] for rank in ranks]) for part in range(3))
    anchor, oracle, lost = reference.initial_weights(seed=0), reference.Outer(*outer, H), 0.0
    for step in range(1, STEPS + 1):
        x, y = after[:, step - 1], before[:, step - 1]
        if step % H == 0:
            anchor = oracle.step(anchor, y.mean(0))
            np.testing.assert_allclose(x, np.tile(anchor, (n, 1)), rtol=0, atol=TOLERANCE)
            assert (x == x[0]).all()
            continue
        difference = np.abs(x - graphs.topology_of("ring", n).weights(step - 1) @ y).max()
        # As without an outer optimizer, but relative to the result of the outer step. The plain
        # mean is far from it, so that differences from the mean would lose more.
        assert difference < 1.01 * np.abs(y - anchor).max() / 127 + 1e-6
        lost = max(lost, difference)
    assert lost > 1e-5  # it did round
