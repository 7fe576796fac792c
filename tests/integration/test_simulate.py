"""The simulation against real processes."""

import keras
import numpy as np
import pytest

from benchmarks.replicas import Replicas
from tests.integration import test_exactness
from tests.support import graphs, simulated
from tf_gossip_pga import simulate

pytestmark = pytest.mark.multiprocess


def test_four_processes_do_what_four_virtual_workers_do(pools):
    n = 4
    cases = [("ring", 3), ("one_peer_exponential", 4), ("from_matrix", None), ("disconnected", 3)]
    ranks = pools.run(test_exactness.train_cases, n, cases=cases, momentum=0.0)
    problem = simulate.from_keras(simulated.keras_network(), "mse", *simulated.oracles_data(n))
    for index, (name, H) in enumerate(cases):  # noqa: N806
        real = np.array([rank[index][1] for rank in ranks])  # [ranks, steps, parameters]
        topo = graphs.topology_of(name, n)
        virtual = simulated.steps_of(problem, topology=topo, H=H)
        assert np.abs(virtual[-1] - virtual[0]).max() > 0.01
        np.testing.assert_allclose(
            virtual.transpose(1, 0, 2), real, rtol=0, atol=1e-5, err_msg=f"{name}, H={H}"
        )


@pytest.mark.slow  # with SGD: the test above
@pytest.mark.parametrize("optimizer_state", ["average", "local"])
def test_four_processes_with_adam_do_what_four_replicas_do(pools, optimizer_state):
    n, name, H = 4, "one_peer_exponential", 5  # noqa: N806
    ranks = pools.run(
        test_exactness.train_cases, n, cases=[(name, H)], adam=True, optimizer_state=optimizer_state
    )
    real = np.array([rank[0][1][-1] for rank in ranks])  # [ranks, parameters], after the last step
    problem = simulate.from_keras(simulated.keras_network(), "mse", *simulated.oracles_data(n))
    replicas = Replicas(
        problem.loss,
        problem.initial[np.newaxis],
        keras.optimizers.Adam(),
        graphs.topology_of(name, n),
    )
    shape = (n, simulated.STEPS, 1, simulated.BATCH, -1)
    parts = [np.moveaxis(part.reshape(shape), 1, 0) for part in problem.data]
    batches = list(zip(*parts, strict=True))  # of each step: [n, 1, batch, …]
    replicas.run(batches, test_exactness.RATE, H, optimizer_state)
    np.testing.assert_allclose(replicas.x[:, 0], real, rtol=0, atol=1e-4)
