"""Several devices in one worker: `cluster.strategy`, with logical CPU devices in real processes.

`tests/test_exactness.py` has the oracle's view of it.
"""

import collections
import re

import numpy as np
import pytest

from tests.support import workers

pytestmark = pytest.mark.multiprocess

DEVICES, STEPS, BATCH = 2, 6, 4


def _data(rank: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rank)
    x = random.normal(size=(STEPS * BATCH, 4)).astype(np.float32)
    return x, x.sum(1, keepdims=True) + rank


def _model(rank: int, optimizer="adam", norm=None, **arguments):
    import keras

    keras.utils.set_random_seed(rank)
    layers = [keras.Input((4,)), keras.layers.Dense(3, "tanh"), norm, keras.layers.Dense(1)]
    model = keras.Sequential([layer for layer in layers if layer is not None])
    model.compile(optimizer, "mse", **arguments)
    return model


def _gossip(cluster, H, **arguments):  # noqa: N803
    import tf_gossip_pga as pga

    uneven = np.full((cluster.size, cluster.size), 0.25 / (cluster.size - 1))
    np.fill_diagonal(uneven, 0.75)  # ranks differ after a gossip, as with one-peer they would not
    return pga.GossipPGA(H=H, topology=pga.topology.from_matrix(uneven), **arguments)


def _per_device(cluster, variables) -> list[list[float]]:
    """`[device][element]`."""
    copies = [cluster.strategy.experimental_local_results(v.value) for v in variables]
    return [
        [float(x) for copy in device for x in copy.numpy().ravel()]
        for device in zip(*copies, strict=True)
    ]


# ---- What happens when --------------------------------------------------------------------------


def _semantics(cluster):
    """Parameters and statistics of each device, before and after `GossipPGA` does anything."""
    import keras

    with cluster.strategy.scope():
        norm = keras.layers.BatchNormalization()
        model = _model(cluster.rank, norm=norm)

    class Look(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = collections.defaultdict(list)

        def look(self, when):
            everything = [*model.trainable_variables, *model.optimizer.variables]
            self.seen[f"{when} parameters"].append(_per_device(cluster, everything))
            statistics = [norm.moving_mean, norm.moving_variance]
            self.seen[f"{when} statistics"].append(_per_device(cluster, statistics))

        def on_train_begin(self, logs=None):
            self.look("start")

        def on_train_batch_end(self, batch, logs=None):
            self.look("step")

        def on_test_begin(self, logs=None):
            self.look("validation")

        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                self.look("restored")

        def on_train_end(self, logs=None):
            self.look("restored")

    x, y = _data(cluster.rank)
    before, after = Look(), Look()
    gossip = _gossip(cluster, H=4)
    history = model.fit(
        *(x, y),
        batch_size=BATCH,
        epochs=2,
        validation_data=(x, y),
        callbacks=[before, gossip, after],
        verbose=0,
    )
    after.look("end")
    return {
        "before": before.seen,
        "after": after.seen,
        "history": history.history,
        "steps": [gossip.step, gossip.global_steps],
    }


@pytest.fixture(scope="module")
def semantics(pools):
    return pools.run(_semantics, 2, devices=DEVICES)


def _seen(semantics, order: str, name: str) -> np.ndarray:
    """`[rank, time, device, element]`."""
    return np.array([rank[order][name] for rank in semantics])


def test_parameters_and_optimizer_are_the_same_on_all_devices(semantics):
    for order, names in (("before", ["step"]), ("after", ["start", "step", "restored", "end"])):
        for name in names:
            values = _seen(semantics, order, f"{name} parameters")
            assert values.shape[2] == DEVICES
            assert (values == values[:, :, :1]).all(), (order, name)
    own = _seen(semantics, "before", "start parameters")
    common = _seen(semantics, "after", "start parameters")
    assert (own[0] != own[1]).any()
    assert (common == own[0]).all()


def test_statistics_become_their_mean_over_all_devices_at_global_averages(semantics):
    before = _seen(semantics, "before", "step statistics")
    after = _seen(semantics, "after", "step statistics")
    for step in range(1, 2 * STEPS + 1):
        local, mixed = before[:, step - 1], after[:, step - 1]
        assert (local[:, 0] != local[:, 1]).any()  # each device has seen half a batch
        if step % 4 == 0:
            assert (mixed == mixed[0, 0]).all()
            np.testing.assert_allclose(mixed[0, 0], local.mean((0, 1)), rtol=1e-6)
        else:
            assert (mixed == local).all()


def test_validation_sees_the_average_and_every_device_continues_from_its_own(semantics):
    for kind in ("parameters", "statistics"):
        local = _seen(semantics, "before", f"validation {kind}")
        seen = _seen(semantics, "after", f"validation {kind}")
        restored = _seen(semantics, "before", f"restored {kind}")
        assert (local[0, 0] != local[1, 0]).any()
        assert (restored == local).all()
        if kind == "statistics":
            assert (seen == seen[0, :, 0][:, np.newaxis]).all()
            np.testing.assert_allclose(seen[0, :, 0], local.mean((0, 2)), rtol=1e-5)
    first, second = (rank["history"] for rank in semantics)
    assert first["val_loss"] == second["val_loss"]


def test_steps_are_of_the_whole_batch_and_all_end_with_one_model(semantics):
    assert all(rank["steps"] == [2 * STEPS, 3] for rank in semantics)
    parameters = _seen(semantics, "after", "end parameters")[..., :25]  # then come Adam's
    statistics = _seen(semantics, "after", "end statistics")
    assert (parameters == parameters[0, 0, 0]).all()
    assert (statistics == statistics[0, 0, 0]).all()


# ---- Settings -----------------------------------------------------------------------------------


def _settings(cluster):
    """What each setting ends with; `fit` is called inside the scope, as some do."""
    import keras

    import tf_gossip_pga as pga

    x, y = _data(cluster.rank)
    adaptive = pga.AdaptivePeriod(initial=2, warmup_steps=4, maximum=12)
    results = {}
    for name, arguments in {
        "average, overlap": {"H": 5, "optimizer_state": "average", "overlap": True},
        "reset, int8": {"H": 5, "optimizer_state": "reset", "wire_dtype": "int8"},
        "adaptive": {"H": adaptive},
    }.items():
        with cluster.strategy.scope():
            model = _model(0, keras.optimizers.SGD(0.02, momentum=0.5))
            gossip = _gossip(cluster, **arguments)
            history = model.fit(
                *(x, y), batch_size=BATCH, shuffle=False, epochs=4, callbacks=[gossip], verbose=0
            )
        results[name] = {
            "weights": _per_device(cluster, model.variables),
            "slots": _per_device(cluster, model.optimizer.variables[2:]),
            "global": [step for step, _ in gossip.distances],
            "loss": history.history["loss"],
        }
    return results


@pytest.mark.slow
def test_every_setting_trains_as_on_one_device(pools):
    alone, together = (pools.run(_settings, 2, devices=devices) for devices in (1, DEVICES))
    for name in alone[0]:
        for rank in (0, 1):
            one, two = alone[rank][name], together[rank][name]
            for kind in ("weights", "slots"):
                assert len(two[kind]) == DEVICES
                assert two[kind][0] == two[kind][1], name
                # int8 rounds, and numbers on an edge to one side or the other.
                tolerance = 1e-3 if "int8" in name else 1e-5
                np.testing.assert_allclose(two[kind][0], one[kind][0], rtol=0, atol=tolerance)
            assert two["global"] == one["global"]
            np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-2)
        assert together[0][name]["weights"] == together[1][name]["weights"]


# ---- Errors -------------------------------------------------------------------------------------


def _refusals(cluster):
    import tensorflow as tf

    results = {}
    for name, strategy, arguments in (
        ("outside", tf.distribute.get_strategy(), {}),
        ("another", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), {}),
        ("compiled", cluster.strategy, {"jit_compile": True}),
    ):
        with strategy.scope():
            model = _model(0, **arguments)
        try:
            model.fit(*_data(0), callbacks=[_gossip(cluster, H=2)], verbose=0)
        except ValueError as error:
            results[name] = str(error)
    return results


def test_a_model_that_would_not_use_all_devices_is_refused():
    outside = r"has 2 devices, but the model 'sequential.*' was not built for them.*scope\(\)"
    for rank in workers.run(_refusals, 2, devices=DEVICES):
        assert re.search(outside, rank["outside"])
        assert re.search(outside, rank["another"])
        assert re.search("2 devices.*compiled by XLA.*jit_compile=False", rank["compiled"])


def _colliding(cluster):
    """Sums over two devices with our strategy, then with TensorFlow's own choice."""
    import tensorflow as tf

    results = []
    for strategy in (cluster.strategy, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):

        @tf.function(autograph=False)
        def total(strategy=strategy):
            def replica():
                replicas = tf.distribute.get_replica_context()
                return replicas.all_reduce("SUM", tf.identity(1.0))

            return strategy.experimental_local_results(strategy.run(replica))

        try:
            results.append([each.numpy().tolist() for each in total()])
        except tf.errors.OpError as error:
            results.append(error.message)
    return results


def test_why_the_strategy_is_not_the_default_mirrored_one():
    ranks = workers.run(_colliding, 2, devices=DEVICES)
    assert [ours for ours, _ in ranks] == [[2, 2]] * 2
    # For the leader the devices of both processes are one group of two.
    assert "already full (group_key=1)" in str([theirs for _, theirs in ranks])
