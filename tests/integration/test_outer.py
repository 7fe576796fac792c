"""Outer optimizers in real processes: against the oracle, and in checkpoints."""

import pathlib

import numpy as np
import pytest

from tests.integration.test_exactness import (
    BATCH,
    MOMENTUM,
    RATE,
    STEPS,
    TOLERANCE,
    check_training,
    train_cases,
)
from tests.support import checkpoints as kit
from tests.support import graphs, reference

# Keras' own, where it saves weights under NumPy 2.
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

# Learning rate, momentum, Nesterov.
DILOCO = (0.7, 0.8, True)
SLOWMO = (1.0, 0.5, False)


@pytest.mark.parametrize(
    ("outer", "overlap", "cases"),
    [
        pytest.param(DILOCO, False, [("disconnected", 4), ("ring", 3)], marks=pytest.mark.slow),
        (SLOWMO, True, [("one_peer_exponential", 3)]),
        pytest.param(SLOWMO, False, [("ring", 3), ("disconnected", 5)], marks=pytest.mark.slow),
        pytest.param(DILOCO, True, [("ring", 4), ("complete", 3)], marks=pytest.mark.slow),
    ],
)
def test_every_step_equals_the_oracle(pools, outer, overlap, cases):
    ranks = pools.run(train_cases, 3, cases=cases, overlap=overlap, outer=outer)
    check_training(ranks, 3, cases, overlap=overlap, outer=outer)


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


@pytest.mark.slow
def test_two_devices_of_a_worker_take_one_outer_step(pools):
    cases, outer = [("ring", 3)], (0.7, 0.8, True)
    ranks = pools.run(train_cases, 2, cases=cases, devices=2, copies=2, outer=outer)
    after = np.array([rank[0][1] for rank in ranks])
    expected = reference.train(
        reference.initial_weights(seed=0),
        [reference.batches(rank, STEPS, BATCH) for rank in range(2)],
        reference.matrix_of_step(graphs.topology_of("ring", 2), 3),
        RATE,
        MOMENTUM,
        outer=reference.Outer(*outer, 3),
    )
    np.testing.assert_allclose(after.transpose(1, 0, 2), expected, rtol=0, atol=TOLERANCE)


def _resumed(cluster, folder, outer, epochs):
    """Resume from what is in the folder. Return the outer optimizer's state at the first batch."""
    import keras

    import tf_gossip_pga as pga

    model, gossip = kit.a_model(cluster.rank, "momentum"), kit.a_gossip(outer=outer)
    checkpoint, begun = pga.Checkpoint(gossip, folder), {}
    start = checkpoint.restore(model)

    def look(batch, logs=None):
        if batch or begun or not gossip.run.outer:
            return
        state, weights = gossip.run.outer, [v.numpy() for v in model.trainable_variables]
        begun["at its weights"] = all(map(np.array_equal, state.anchor, weights))
        begun["velocity"] = max([float(np.abs(v.numpy()).max()) for v in state.velocity], default=0)

    model.fit(
        *kit.data(cluster.rank),
        batch_size=kit.BATCH,
        epochs=epochs,
        initial_epoch=start,
        shuffle=False,
        callbacks=[gossip, checkpoint, keras.callbacks.LambdaCallback(on_train_batch_begin=look)],
        verbose=0,
    )
    return {"start": start, "files": sorted(files_of(folder)), **begun}


def _again(cluster, folder, outer):
    """Train, restore the checkpoint, and train on, in one process. Return all weights."""
    import tf_gossip_pga as pga

    model, gossip = kit.a_model(cluster.rank, "momentum"), kit.a_gossip(outer=outer)
    checkpoint = pga.Checkpoint(gossip, folder)
    fit = {"batch_size": kit.BATCH, "shuffle": False, "verbose": 0}
    seen = []
    for epochs in (1, 3):
        start = checkpoint.restore(model)
        model.fit(
            *kit.data(cluster.rank),
            epochs=epochs,
            initial_epoch=start,
            callbacks=[gossip, checkpoint],
            **fit,
        )
        state = gossip.run.outer
        seen.append([v.numpy().tolist() for v in [*model.trainable_variables, *state.variables]])
    return seen


def test_ranks_stay_equal_if_a_process_restores_its_own_checkpoint(pools, tmp_path):
    first, *others = pools.run(_again, 2, folder=str(tmp_path), outer=[0.7, 0.9, True])
    assert all(each == first for each in others)


def files_of(folder) -> list[str]:
    newest = max(pathlib.Path(folder).glob("checkpoint-*"))
    return [path.name for path in newest.glob("*.npz")]


@pytest.mark.slow
def test_a_checkpoint_with_or_without_an_outer_optimizer_can_be_resumed_with_the_other(
    pools, tmp_path
):
    outer, ranks = [0.7, 0.9, True], ["rank-0.npz", "rank-1.npz"]

    def run(size, outer, epochs):
        first, *others = pools.run(_resumed, size, folder=str(tmp_path), outer=outer, epochs=epochs)
        assert all(each == first for each in others)
        return first

    assert run(2, None, 1) == {"start": 0, "files": ranks}
    fresh = {"at its weights": True, "velocity": 0}
    assert run(2, outer, 2) == {"start": 1, "files": ["outer.npz", *ranks], **fresh}
    begun = run(2, outer, 3)  # in the middle of a period
    assert begun["velocity"] > 0 and not begun["at its weights"]
    assert run(2, None, 4) == {"start": 3, "files": ranks}
    run(2, outer, 5)
    # A single worker takes no outer steps, so it neither reads nor writes their state.
    alone = run(1, outer, 6)
    assert (alone["start"], alone["velocity"], alone["files"]) == (5, 0, ["rank-0.npz"])
