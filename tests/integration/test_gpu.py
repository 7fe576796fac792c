"""Exchanges over NCCL between workers that share one GPU: the oracle, a death, all messages.

    python -m pytest -m gpu

needs an NVIDIA GPU, TensorFlow with CUDA, and NCCL. On a machine whose only network interface is
the loopback, set NCCL_SOCKET_IFNAME=lo.
"""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.integration import test_exactness
from tests.support import deadlines, gpus, graphs, kinds, product, reference, workers

pytestmark = [pytest.mark.gpu, pytest.mark.multiprocess]

COUNT = "import tensorflow as tf; print('GPUs:', len(tf.config.list_physical_devices('GPU')))"


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    if not pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has no NVIDIA driver")
    with gpus.shown():
        found = subprocess.run(
            [sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=deadlines.long()
        )
    if "GPUs: 0" in found.stdout:
        pytest.skip("TensorFlow sees no GPU")
    assert "GPUs: " in found.stdout, found.stderr


def test_the_oracle_holds_over_nccl():
    cases = [("one_peer_exponential", 3), ("hypercube", 3), ("ring", None), ("complete", 1)]
    n, steps = 4, test_exactness.STEPS
    ranks = workers.run(test_exactness.train_cases, n, shares_gpu=True, cases=cases)
    data = [reference.batches(rank, steps, test_exactness.BATCH) for rank in range(n)]
    for index, (name, H) in enumerate(cases):  # noqa: N806
        after = np.array([rank[index][1] for rank in ranks])  # [ranks, steps, parameters]
        expected = reference.train(
            reference.initial_weights(seed=0),
            data,
            reference.matrix_of_step(graphs.topology_of(name, n), H),
            test_exactness.RATE,
            test_exactness.MOMENTUM,
        )
        np.testing.assert_allclose(
            after.transpose(1, 0, 2), expected, rtol=0, atol=test_exactness.TOLERANCE, err_msg=name
        )


def _over_nccl(cluster, encoding):
    assert product.active().transport.is_nccl
    return kinds.exchange(cluster, encoding)


# `test_collectives` runs the same over gRPC.
@pytest.mark.parametrize(
    ("n", "encoding", "tolerance"),
    [(2, "float32", 1e-6), (4, "float32", 1e-6), (4, "bfloat16", 0.05), (2, "int8", 0.05)],
)
def test_every_kind_of_message_travels_over_nccl(n, encoding, tolerance):
    ranks = workers.run(_over_nccl, n, shares_gpu=True, encoding=encoding)
    kinds.check(ranks, tolerance)


def _one_dies(cluster):
    """Train on; rank 2 is killed in mid-epoch."""
    import keras

    import tf_gossip_pga as pga

    class Die(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if cluster.rank == 2 and batch == 13:
                os.kill(os.getpid(), signal.SIGKILL)

    keras.utils.set_random_seed(1)
    x = np.random.default_rng(cluster.rank).normal(size=(400, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    gossip = pga.GossipPGA(H=5, on_worker_lost="continue")
    model.fit(x, x[:, :1], batch_size=20, epochs=3, verbose=0, callbacks=[gossip, Die()])
    return [list(cluster.members), [each.tolist() for each in model.get_weights()]]


def test_the_survivors_of_a_death_end_with_one_model_over_nccl():
    first, second = workers.run(_one_dies, 3, shares_gpu=True, min_workers=2)
    assert first[0] == [0, 1]
    assert first == second
