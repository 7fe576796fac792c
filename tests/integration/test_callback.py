"""The semantics of `GossipPGA` that the oracle does not cover, in two real processes."""

import contextlib
import copy
import pathlib
import re
import shutil
import time

import numpy as np
import pytest

from tests.support import deadlines, nursery, product

pytestmark = pytest.mark.multiprocess

STEPS, BATCH = 6, 4

# Weights with which a gossip of two ranks does not average exactly, as one-peer gossip of two does.
UNEVEN = [[0.75, 0.25], [0.25, 0.75]]


def _gossip(H, **arguments):  # noqa: N803
    import tf_gossip_pga as pga

    return pga.GossipPGA(H=H, topology=pga.topology.from_matrix(UNEVEN), **arguments)


def _data(rank: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rank)
    x = random.normal(size=(steps * BATCH, 4)).astype(np.float32)
    return x, x.sum(1, keepdims=True) + rank


def _dense_model(rank: int, optimizer="sgd"):
    """A small compiled model whose initial weights differ from rank to rank."""
    import keras

    keras.utils.set_random_seed(rank)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer, "mse")
    return model


def _flat(variables) -> list[float]:
    return [float(x) for v in variables for x in np.asarray(v, dtype=np.float64).ravel()]


def _recorder(**hooks):
    """A callback whose `hooks` are `on_…=lambda model: …`; it keeps what they return."""
    import keras

    class Recorder(keras.callbacks.Callback):
        pass

    kept = {name: [] for name in hooks}
    for name, look in hooks.items():

        def hook(self, *args, _look=look, _name=name, logs=None):
            kept[_name].append(_look(self.model))

        setattr(Recorder, name, hook)
    recorder = Recorder()
    recorder.kept = kept
    return recorder


# ---- Parallel SGD -------------------------------------------------------------------------------


def _parallel_sgd(cluster):
    import keras

    import tf_gossip_pga as pga

    steps = 20
    sets = [_data(rank, steps) for rank in range(cluster.size)]
    model = _dense_model(0, keras.optimizers.SGD(0.05, momentum=0.9))
    alone = keras.models.clone_model(model)
    alone.set_weights(model.get_weights())
    alone.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    start = _flat(model.weights)
    fit = {"shuffle": False, "verbose": 0}
    model.fit(*sets[cluster.rank], batch_size=BATCH, callbacks=[pga.GossipPGA(H=1)], **fit)
    # The same batches, side by side instead of on two ranks.
    x, y = (
        np.concatenate([part.reshape(steps, BATCH, -1) for part in parts], axis=1)
        for parts in zip(*sets, strict=True)
    )
    alone.fit(x.reshape(-1, 4), y.reshape(-1, 1), batch_size=2 * BATCH, **fit)
    return {"start": start, "together": _flat(model.weights), "alone": _flat(alone.weights)}


def test_h_1_on_two_processes_is_one_process_with_twice_the_batch(pools):
    for rank in pools.run(_parallel_sgd, 2):
        np.testing.assert_allclose(rank["together"], rank["alone"], rtol=0, atol=1e-5)
        assert np.abs(np.subtract(rank["start"], rank["alone"])).max() > 0.01


# ---- What happens when --------------------------------------------------------------------------


def _semantics(cluster):
    import keras

    traced_before = product.traced()

    class Counting(keras.layers.Layer):
        """Counts its calls in an integer variable."""

        def build(self, shape):
            self.count = self.add_weight(shape=(), dtype="int32", name="count")

        def call(self, x, training=False):
            if training:
                self.count.assign_add(1 + cluster.rank)
            return x

    keras.utils.set_random_seed(cluster.rank)
    dropout = keras.layers.Dropout(0.5)
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), norm, Counting(), dropout, keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = _data(cluster.rank)
    seed_before = _flat([dropout.seed_generator.state])

    def trainable(model):
        return _flat(v for v in model.trainable_variables if v.dtype == "float32")

    def statistics(model):
        return _flat([norm.moving_mean, norm.moving_variance])

    before = _recorder(
        on_train_batch_end=statistics,
        on_test_begin=trainable,
        on_epoch_begin=trainable,
        on_epoch_end=trainable,
        on_train_end=trainable,
    )
    after = _recorder(
        on_train_begin=lambda model: trainable(model) + _flat(model.optimizer.variables),
        on_train_batch_end=statistics,
        on_test_begin=trainable,
        on_epoch_end=trainable,
    )
    gossip = _gossip(H=4)
    callbacks = [before, gossip, after]
    own = trainable(model)
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:  # these differ too, so that a broadcast shows
        if not variable.path.endswith("learning_rate"):
            variable.assign(keras.ops.full(variable.shape, cluster.rank, variable.dtype))
    history = model.fit(
        x, y, batch_size=BATCH, epochs=2, validation_data=(x, y), callbacks=callbacks, verbose=0
    )
    # Epochs of 6 steps and H=4: global averages at 4 in the first epoch, at 8 and 12 in the second.
    result = {
        "own": own,
        "before": copy.deepcopy(before.kept),
        "after": copy.deepcopy(after.kept),
        "history": history.history,
        "final": trainable(model),
        "count": int(model.layers[2].count),
        "seed": [seed_before, _flat([dropout.seed_generator.state])],
    }
    traced = product.traced()
    model.fit(x, y, batch_size=BATCH, callbacks=callbacks, verbose=0)
    result["traced"] = [traced - traced_before, product.traced() - traced_before]
    result["steps"] = [gossip.step, gossip.gossip_steps, gossip.global_steps]
    result["distances"] = gossip.distances
    result["bytes"] = gossip.bytes_sent
    # An evaluation outside fit is no exchange: the other ranks need not take part in it.
    if cluster.is_chief:
        model.evaluate(x, y, callbacks=callbacks, verbose=0)
    return result


@pytest.fixture(scope="module")
def semantics(pools):
    return pools.run(_semantics, 2)


def test_all_ranks_start_with_the_weights_and_optimizer_of_rank_0(semantics):
    chief, other = (rank["after"]["on_train_begin"][0] for rank in semantics)
    assert chief == other
    assert chief[: len(semantics[0]["own"])] == semantics[0]["own"]
    assert semantics[0]["own"] != semantics[1]["own"]


def test_statistics_are_averaged_at_global_averages_only(semantics):
    before = np.array([rank["before"]["on_train_batch_end"] for rank in semantics])
    after = np.array([rank["after"]["on_train_batch_end"] for rank in semantics])
    for step in range(1, 13):
        local, mixed = before[:, step - 1], after[:, step - 1]
        assert (local[0] != local[1]).any()
        if step % 4 == 0:
            assert (mixed[0] == mixed[1]).all()
            np.testing.assert_allclose(mixed[0], local.mean(0), rtol=1e-6)
        else:
            assert (mixed == local).all()


def test_what_was_validated_stays_until_the_epochs_end_and_training_goes_on_locally(semantics):
    local = np.array([rank["before"]["on_test_begin"] for rank in semantics])  # [rank, epoch, …]
    seen = np.array([rank["after"]["on_test_begin"] for rank in semantics])
    restored = np.array(
        [
            [rank["before"]["on_epoch_begin"][1], *rank["before"]["on_train_end"]]
            for rank in semantics
        ]
    )
    # The first epoch ends with step 6, a gossip; the second with step 12, a global average.
    assert (local[0, 0] != local[1, 0]).any()
    assert (local[0, 1] == local[1, 1]).all()
    np.testing.assert_allclose(seen[0], local.mean(0), rtol=1e-5, atol=1e-7)
    assert (seen[0] == seen[1]).all()
    for order in ("before", "after"):  # what a ModelCheckpoint saves, wherever it is in the list
        saved = np.array([rank[order]["on_epoch_end"] for rank in semantics])
        assert (saved == seen).all()
    assert (restored == local).all()


def test_all_ranks_end_with_the_same_model(semantics):
    assert semantics[0]["final"] == semantics[1]["final"]


def test_integers_and_seeds_are_left_alone(semantics):
    # 12 training steps of 1 on rank 0 and of 2 on rank 1.
    assert [rank["count"] for rank in semantics] == [12, 24]
    for rank in semantics:
        before, after = rank["seed"]
        assert after != before
    assert semantics[0]["seed"][0] != semantics[1]["seed"][0]
    assert semantics[0]["seed"][1] != semantics[1]["seed"][1]


def test_steps_count_over_epochs_and_fits(semantics):
    # 2 epochs and 1 more of 6 steps: 18, of which 4, 8, 12 and 16 are global.
    assert all(rank["steps"] == [18, 14, 4] for rank in semantics)


def test_what_was_measured_is_in_the_history(semantics):
    for rank in semantics:
        assert rank["history"]["global_averages"] == [1, 2]
        assert all(seconds > 0 for seconds in rank["history"]["communication_seconds"])
        assert rank["distances"] == semantics[0]["distances"]
        assert rank["bytes"] > 0
    # Steps 4, 8, 12, 16; the validation after 6; the end of the second fit. After 12 they agree.
    steps = [step for step, _ in semantics[0]["distances"]]
    assert steps == [4, 6, 8, 12, 16, 18]
    by_step = dict(semantics[0]["distances"][:3])
    local = np.array([rank["before"]["on_test_begin"][0] for rank in semantics])
    mean = local.mean(0)
    rms = np.sqrt(((local - mean) ** 2).sum(1).mean()) / np.linalg.norm(mean)
    assert by_step[6] == pytest.approx(rms, rel=1e-3)
    assert semantics[0]["history"]["consensus_distance"][0] == by_step[6]


def test_nothing_is_traced_twice_not_even_by_a_second_fit(semantics):
    for rank in semantics:
        # A gossip, a global average, a broadcast, a fingerprint.
        assert rank["traced"] == [4, 4]


# ---- Overlap ------------------------------------------------------------------------------------


def _overlapped(cluster):
    """The same steps in one epoch, and in two with a validation in between and after."""
    x, y = _data(cluster.rank)
    weights = {}
    for name, epochs in (("one epoch", 1), ("two epochs", 2)):
        model = _dense_model(0)
        data = (np.tile(x, (3 - epochs, 1)), np.tile(y, (3 - epochs, 1)))
        validation = (x[:2], y[:2]) if epochs == 2 else None
        # Seven steps, so that a gossip is under way when the first epoch of six ends.
        gossip = _gossip(H=7, overlap=True)
        after = _recorder(on_train_batch_end=lambda model: _flat(model.weights))
        fit = {"shuffle": False, "verbose": 0, "validation_data": validation, "epochs": epochs}
        model.fit(*data, batch_size=BATCH, callbacks=[gossip, after], **fit)
        weights[name] = [*after.kept["on_train_batch_end"], _flat(model.weights)]
        sent = gossip.bytes_sent
    return [weights, sent]


def test_a_gossip_under_way_lasts_over_validation_and_the_end_of_an_epoch(pools):
    ranks = pools.run(_overlapped, 2)
    for weights, _ in ranks:
        one, two = (np.array(weights[name]) for name in ("one epoch", "two epochs"))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
        assert len(one) == 2 * STEPS + 1
    first, second = (np.array(weights["one epoch"]) for weights, _ in ranks)
    same = (first == second).all(1).tolist()
    assert same == [k == 7 or k == 2 * STEPS + 1 for k in range(1, 2 * STEPS + 2)]
    # 19 parameters of 4 bytes. Rank 1, of two, sends them in each of the gossips of steps 1 to 12
    # but 6 and 7, and, with the 7 + 2 * 3 numbers that ranks tell, in the global averages of
    # step 7, two validations and the end.
    assert ranks[1][1] == 4 * (10 * 19 + 4 * 32)


# Rank 1 ends when the gossip of step 2 has ended on both ranks.
DIES = """
import os, pathlib, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
class Dies(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        begun = pathlib.Path(sys.argv[1], "begun")
        if batch == 3 and cluster.rank == 0:
            begun.touch()
        if batch == 3 and cluster.rank == 1:
            while not begun.exists():
                time.sleep(0.01)
            os._exit(0)
try:
    gossip = pga.GossipPGA(H=None, overlap=True)
    x = np.zeros((100, 4), "float32")
    model.fit(x, x[:, :1], batch_size=10, callbacks=[gossip, Dies()], verbose=0)
except pga.WorkerLost as error:
    print("after step", gossip.step, error, flush=True)
    os._exit(0)  # TensorFlow waits for the dead one otherwise
"""


def test_what_goes_wrong_with_a_gossip_under_way_surfaces_at_a_later_batch(tmp_path):
    import sys

    from tf_gossip_pga import launch

    output = []
    command = [sys.executable, "-c", DIES, str(tmp_path)]
    with nursery.forks():
        deadline_s = deadlines.long()
        launch.launch(command, 2, write=output.append, deadline_s=deadline_s)
    # The gossip of step 3 is under way when rank 1 ends, and may have ended; that of 4 cannot.
    assert re.search(
        r"after step [45] Rank 0 of 2 lost .* at the gossip of step [34]", "".join(output)
    ), output


# ---- The optimizer's state ----------------------------------------------------------------------


def _optimizer_state(cluster, optimizer):
    """For each setting, the slots before and after each step's exchange, and the bytes sent."""
    import keras

    results = {}
    for setting in ("local", "average", "reset"):
        model = _dense_model(cluster.rank, keras.optimizers.get(optimizer))
        slots = [v for v in _slots(model) if v.path.endswith(("momentum", "velocity"))]
        x, y = _data(cluster.rank)
        before = _recorder(on_train_batch_end=lambda model, slots=slots: _flat(slots))
        after = _recorder(on_train_batch_end=lambda model, slots=slots: _flat(slots))
        gossip = _gossip(H=3, optimizer_state=setting)
        validation = _recorder(on_test_end=lambda model, slots=slots: _flat(slots))
        model.fit(
            *(x, y),
            batch_size=BATCH,
            validation_data=(x, y),
            callbacks=[before, gossip, after, validation],
            verbose=0,
        )
        results[setting] = {
            "before": before.kept["on_train_batch_end"],
            "after": after.kept["on_train_batch_end"],
            "validated": validation.kept["on_test_end"][0],
            "learning rate": float(model.optimizer.learning_rate),
            "iterations": int(model.optimizer.iterations),
            "bytes": gossip.bytes_sent,
        }
    return results


def _slots(model):
    model.optimizer.build(model.trainable_variables)
    return model.optimizer.variables


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        ({"class_name": "SGD", "config": {"learning_rate": 0.05, "momentum": 0.9}}, 1),
        ({"class_name": "Adam", "config": {"learning_rate": 0.01}}, 2),
    ],
)
def test_optimizer_state_is_local_averaged_or_reset_at_global_averages(pools, optimizer, slots):
    ranks = pools.run(_optimizer_state, 2, optimizer=optimizer)
    for setting in ("local", "average", "reset"):
        before, after = (
            np.array([rank[setting][when] for rank in ranks]) for when in ("before", "after")
        )  # [rank, step, element]
        assert before.shape[1:] == (STEPS, slots * 19)  # 4 x 3 + 3 + 3 x 1 + 1 parameters
        assert (before[0] != before[1]).any(-1).all()
        expected = before.copy()
        for step in (3, 6):  # H=3
            if setting == "average":
                expected[:, step - 1] = before[:, step - 1].mean(0)
            elif setting == "reset":
                expected[:, step - 1] = 0
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-9)
        for rank, last in zip(ranks, after[:, -1], strict=True):
            assert rank[setting]["validated"] == last.tolist()
            assert rank[setting]["iterations"] == STEPS
            assert rank[setting]["learning rate"] == pytest.approx(
                optimizer["config"]["learning_rate"]
            )
    for rank in ranks:
        assert rank["reset"]["bytes"] == rank["local"]["bytes"]
        # Two global averages, each of two ranks sending its slots once.
        assert rank["average"]["bytes"] - rank["local"]["bytes"] == 2 * slots * 19 * 4


# ---- Gossip-AGA and logs ------------------------------------------------------------------------


def _adaptive(cluster, folder):
    import json

    import keras

    import tf_gossip_pga as pga

    x, y = _data(cluster.rank)

    class StopError(Exception):
        pass

    def stop(epoch, logs=None):
        if epoch == 4:
            raise StopError

    def fit(state, **more):
        model = _dense_model(0, keras.optimizers.SGD(0.02))
        own = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: running.append(logs["loss"]),
            on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]),
        )
        losses, running = [], []
        settings = pga.AdaptivePeriod(initial=2, warmup_steps=4, maximum=12)
        gossip = _gossip(H=settings)
        if state:
            gossip.state = state
        backup = keras.callbacks.BackupAndRestore(
            f"{folder}/{cluster.rank}", delete_checkpoint=False
        )
        history = keras.callbacks.History()
        callbacks = [own, gossip, backup, keras.callbacks.LambdaCallback(**more), history]
        with contextlib.suppress(StopError):
            model.fit(
                x, y, batch_size=BATCH, shuffle=False, epochs=8, callbacks=callbacks, verbose=0
            )
        return {
            "own losses": losses,
            "running losses": running,
            "history": history.history,
            "global": [step for step, _ in gossip.distances],
            "state": json.loads(json.dumps(gossip.state)),
        }

    whole = fit(None)
    shutil.rmtree(f"{folder}/{cluster.rank}")
    interrupted = fit(None, on_epoch_begin=stop)
    return [whole, interrupted, fit(interrupted["state"])]


@pytest.fixture(scope="module")
def adaptive(pools, tmp_path_factory):
    return pools.run(_adaptive, 2, folder=str(tmp_path_factory.mktemp("backup")))


def test_all_ranks_derive_the_same_period_from_the_averaged_loss(adaptive):
    first, second = (rank[0] for rank in adaptive)
    assert first["global"] == second["global"]
    assert first["state"] == second["state"]
    assert first["history"]["H"] == second["history"]["H"]
    assert first["own losses"] != second["own losses"]
    # This loss falls.
    periods = first["history"]["H"]
    assert 2 < periods[0] < periods[-1] <= 12
    # Steps 2 and 4 warm up; the next average follows two steps later.
    assert first["global"][:3] == [2, 4, 6]


def test_an_adaptive_period_survives_resumption(adaptive):
    for _, interrupted, resumed in adaptive:
        state = interrupted["state"]
        assert state["step"] == 4 * STEPS
        assert state["period"]["H"] > 2
        # The first global average comes when it was due, not after the 2 steps of a new run.
        assert resumed["global"][0] == state["period"]["last"] + state["period"]["H"]
        assert resumed["state"]["period"]["initial_loss"] == state["period"]["initial_loss"]
        assert resumed["history"]["H"][0] > 2
    assert adaptive[0][2]["global"] == adaptive[1][2]["global"]


def test_the_period_follows_the_loss_of_the_first_batch_after_a_global_average(adaptive):
    # Keras' running means: batch k has the loss k * mean_k - (k - 1) * mean_(k-1).
    running = np.array([rank[0]["running losses"][:STEPS] for rank in adaptive])
    batches = np.diff(running * np.arange(1, STEPS + 1), prepend=0, axis=1).mean(0)
    # The averages of steps 2 and 4 warm up, with the batches 1 and 3. The next is of step 6, with
    # batch 5, and the first to change the period.
    expected = (batches[0] + batches[2]) / 2
    for rank in adaptive:
        assert rank[0]["state"]["period"]["initial_loss"] == pytest.approx(expected, rel=1e-5)
        assert rank[0]["history"]["H"][0] == np.ceil(2 * expected / batches[4])


def test_logs_are_means_over_ranks(adaptive):
    first, second = (rank[0] for rank in adaptive)
    assert first["history"]["loss"] == second["history"]["loss"]
    mean = np.mean([first["own losses"], second["own losses"]], axis=0)
    np.testing.assert_allclose(first["history"]["loss"], mean, rtol=1e-12)


def test_the_loss_is_that_of_the_first_batch_of_an_epoch_and_of_a_fit_too():
    import keras

    import tf_gossip_pga as pga

    x, y = _data(0, steps=8)
    model = _dense_model(0)
    gossip = pga.GossipPGA(H=pga.AdaptivePeriod(initial=4, warmup_steps=12, maximum=4))
    running = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: running.append(logs["loss"])
    )
    for steps in (8, 2, 6):  # three fits of one epoch; the first ends with a global average
        rows = slice(0, steps * BATCH)
        fit = {"batch_size": BATCH, "shuffle": False, "callbacks": [gossip, look], "verbose": 0}
        model.fit(x[rows], y[rows], **fit)
    # Averages at 4 (of batch 1), 8 (of batch 5) and 12 (of batch 11, which begins a fit).
    fifth = 5 * running[4] - 4 * running[3]
    expected = ((running[0] + fifth) / 2 + running[10]) / 2
    assert gossip.state["period"]["initial_loss"] == pytest.approx(expected, rel=1e-5)


def _bad_loss(cluster):
    import warnings

    import pytest

    import tf_gossip_pga as pga

    model = _dense_model(cluster.rank)
    x, y = _data(cluster.rank)
    if cluster.rank == 1:
        y[-BATCH:] = np.nan  # in the last batch, on one rank
    gossip = _gossip(H=pga.AdaptivePeriod(initial=2, warmup_steps=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(
            x, y, batch_size=BATCH, shuffle=False, epochs=2, callbacks=[gossip], verbose=0
        )
    said = [str(each.message) for each in caught if "no period can be derived" in str(each.message)]
    period = {"H": 2, "last": 2, "initial_loss": 1.0}
    broken = [{"H": 0}, {"last": 4}, {"last": -1}, {"initial_loss": "x"}, {"initial_loss": 0}]
    for state in (None, *({**period, **each} for each in broken)):
        with pytest.raises(ValueError, match="state must be the state of a GossipPGA"):
            gossip.state = {"step": 3, "period": state}
    with pytest.raises(ValueError, match="state must be the state of a GossipPGA"):
        pga.GossipPGA(H=3).state = gossip.state
    return [gossip.step, history.history["H"], len(said)]


def test_a_loss_that_is_nan_on_one_rank_ends_no_rank(pools):
    first, second = pools.run(_bad_loss, 2)
    assert first == second
    # It was longer before the loss became NaN, and fell back to what it was initially.
    assert first[1][0] > first[1][1] == 2
    assert [first[0], first[2]] == [12, 1]


# ---- Models, optimizers and inputs --------------------------------------------------------------


def _fit(cluster, model, data, H=3, **arguments):  # noqa: N803
    """Trains, and returns a digest of the final weights and the losses."""
    import hashlib

    callback = _gossip(H)
    history = model.fit(*data, callbacks=[callback], verbose=0, **arguments)
    content = hashlib.sha256()
    for variable in [*model.trainable_variables]:
        content.update(np.asarray(variable.value).tobytes())
    return {
        "digest": content.hexdigest(),
        "loss": history.history["loss"][-1],
        "steps": callback.step,
        "first distance": callback.distances[0][1],
    }


def _kinds(cluster):
    import keras
    import tensorflow as tf

    x, y = _data(cluster.rank)
    keras.utils.set_random_seed(cluster.rank)
    results = {}

    for jit in (True, False, "auto"):
        model = _dense_model(cluster.rank)
        model.compile("adam", "mse", jit_compile=jit)
        results[f"jit_compile={jit}"] = _fit(cluster, model, (x, y), batch_size=BATCH)

    for optimizer in ("rmsprop", "lion", "adafactor", "ftrl"):
        model = _dense_model(cluster.rank, optimizer)
        results[optimizer] = _fit(cluster, model, (x, y), batch_size=BATCH)
    model = _dense_model(
        cluster.rank, keras.optimizers.SGD(0.01, use_ema=True, gradient_accumulation_steps=2)
    )
    results["moving average, accumulation"] = _fit(cluster, model, (x, y), batch_size=BATCH)

    left, right = keras.Input((2,)), keras.Input((2,))
    shared = keras.layers.Dense(3, "relu")
    both = keras.layers.add([shared(left), shared(right)])
    frozen = keras.layers.Dense(3, trainable=False)(both)
    model = keras.Model(
        [left, right],
        {"sum": keras.layers.Dense(1, name="sum")(frozen), "twice": both},
    )
    model.compile("sgd", {"sum": "mse", "twice": "mae"})
    results["functional"] = _fit(
        cluster,
        model,
        ([x[:, :2], x[:, 2:]], {"sum": y, "twice": np.repeat(y, 3, 1)}),
        batch_size=BATCH,
    )

    class Tied(keras.Model):
        """An autoencoder whose decoder is its encoder transposed."""

        def __init__(self):
            super().__init__()
            self.encoder = keras.layers.Dense(3, use_bias=False)

        def build(self, shape):
            self.encoder.build(shape)
            self.built = True

        def call(self, x):
            return keras.ops.matmul(self.encoder(x), keras.ops.transpose(self.encoder.kernel))

    model = Tied()
    model.build((None, 4))
    model.compile("sgd", "mse")
    results["subclassed, tied"] = _fit(cluster, model, (x, x), batch_size=BATCH)

    for policy in ("mixed_float16", "mixed_bfloat16", "bfloat16", "float16", "float64"):
        keras.config.set_dtype_policy(policy)
        results[policy] = _fit(cluster, _dense_model(cluster.rank), (x, y), batch_size=BATCH)
    keras.config.set_dtype_policy("float32")

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return STEPS

        def __getitem__(self, index):
            part = slice(index * BATCH, (index + 1) * BATCH)
            return x[part], y[part]

    results["PyDataset"] = _fit(cluster, _dense_model(cluster.rank), (Batches(),))
    dataset = tf.data.Dataset.from_tensor_slices(_data(0, 2 * STEPS))
    dataset = cluster.shard(dataset).batch(BATCH)
    results["tf.data"] = _fit(cluster, _dense_model(cluster.rank), (dataset,), shuffle=False)
    results["tf.data, repeated"] = _fit(
        cluster,
        _dense_model(cluster.rank),
        (dataset.repeat(),),
        steps_per_epoch=STEPS,
        shuffle=False,
    )
    return results


def test_every_kind_of_model_optimizer_and_input_trains(pools):
    ranks = pools.run(_kinds, 2)
    assert len(ranks[0]) == 18
    for kind in ranks[0]:
        first, second = (rank[kind] for rank in ranks)
        assert first["digest"] == second["digest"], kind
        assert first["steps"] == second["steps"] == STEPS, kind
        assert np.isfinite([first["loss"], second["loss"]]).all(), kind
        assert first["first distance"] > 0, f"{kind}: the ranks never differed"


# ---- Resumption and skipped steps ---------------------------------------------------------------


def _resume(cluster, folder):
    import keras

    x, y = _data(cluster.rank)

    class StopError(Exception):
        pass

    def stop_in_third_epoch(epoch, logs=None):
        if epoch == 2:
            raise StopError

    def fit(folder, order, **more):
        model = _dense_model(cluster.rank, "adam")
        gossip = _gossip(H=5)
        backup = keras.callbacks.BackupAndRestore(
            f"{folder}/{cluster.rank}", delete_checkpoint=False
        )
        start = _recorder(on_train_batch_begin=lambda model: _flat(model.trainable_variables))
        pair = [gossip, backup] if order == "gossip first" else [backup, gossip]
        callbacks = [*pair, start, keras.callbacks.LambdaCallback(**more)]
        with contextlib.suppress(StopError):
            model.fit(x, y, batch_size=BATCH, epochs=4, callbacks=callbacks, verbose=0)
        return {
            "step": gossip.step,
            "first": start.kept["on_train_batch_begin"][0],
            "final": _flat(model.trainable_variables),
            "iterations": int(model.optimizer.iterations),
            "global steps": gossip.global_steps,
        }

    interrupted = fit(f"{folder}/a", "gossip first", on_epoch_begin=stop_in_third_epoch)
    shutil.copytree(f"{folder}/a/{cluster.rank}", f"{folder}/b/{cluster.rank}")
    return [interrupted, fit(f"{folder}/a", "gossip first"), fit(f"{folder}/b", "backup first")]


def test_a_run_resumes_where_backup_and_restore_left_it(pools, tmp_path):
    ranks = pools.run(_resume, 2, folder=str(tmp_path))
    for interrupted, *resumed in ranks:
        assert interrupted["step"] == 12
        # Restored after two epochs of 6 steps; two more epochs, with global averages at 15 and 20.
        assert resumed[0]["step"] == 24
        assert resumed[0]["iterations"] == 24
        assert resumed[0]["global steps"] == 2
        assert resumed[0]["first"] != interrupted["first"]
    for attempt in (1, 2):
        first, second = (rank[attempt] for rank in ranks)
        # Either order of the callbacks: the ranks' backups differ, rank 0's is the one that counts.
        assert first["first"] == second["first"]
        assert first["final"] == second["final"]


def _skipped_step(cluster):
    import keras

    model = _dense_model(
        cluster.rank, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    )
    x, y = _data(cluster.rank)
    if cluster.rank == 1:
        x[BATCH] = np.inf  # one value of the second batch: that step is skipped, here alone
    callback = _gossip(H=4)
    fit = {"batch_size": BATCH, "shuffle": False, "callbacks": [callback], "verbose": 0}
    model.fit(x, y, **fit)
    iterations = int(model.optimizer.iterations)
    model.fit(x, y, **fit)
    return [callback.step, callback.global_steps, iterations, _flat(model.trainable_variables)]


def test_a_step_that_loss_scaling_skips_on_one_rank_still_counts(pools):
    first, second = pools.run(_skipped_step, 2)
    assert first[:2] == second[:2] == [12, 3]
    assert [first[2], second[2]] == [6, 5]
    assert first[3] == second[3]
    assert np.isfinite(first[3]).all()


def _interrupted(cluster):
    """A fit that ends in the middle of a validation, then another with the same callback."""
    import keras

    x, y = _data(cluster.rank)
    model = _dense_model(cluster.rank)
    gossip = _gossip(H=5)

    def stop(batch, logs=None):
        raise KeyboardInterrupt

    fit = {"batch_size": BATCH, "validation_data": (x, y), "verbose": 0}
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(
            x, y, callbacks=[gossip, keras.callbacks.LambdaCallback(on_test_batch_end=stop)], **fit
        )
    # Outside fit an evaluation is no exchange; here rank 1 would not join it.
    if cluster.is_chief:
        model.evaluate(x, y, callbacks=[gossip], verbose=0)
    # Steps 7 … 10 end with a global average: nothing to swap in, and nothing old to put back.
    look = _recorder(
        on_test_begin=lambda model: _flat(model.trainable_variables),
        on_test_end=lambda model: _flat(model.trainable_variables),
    )
    model.fit(x[: 4 * BATCH], y[: 4 * BATCH], callbacks=[gossip, look], **fit)
    return [gossip.step, look.kept]


def test_an_interrupted_validation_leaves_nothing_to_the_next_fit(pools):
    first, second = pools.run(_interrupted, 2)
    assert first[0] == second[0] == 10
    assert first[1]["on_test_begin"] == first[1]["on_test_end"]
    assert first[1] == second[1]


def _interrupted_overlap(cluster, folder):
    """A fit that ends while a gossip is under way, then another with a new callback."""
    import keras

    x, y = _data(cluster.rank)
    model = _dense_model(cluster.rank)
    at_once, most = [0], [0]
    rank_0_is_at_the_next_fit = pathlib.Path(folder, "next")

    @contextlib.contextmanager
    def counted(doing):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            if cluster.rank == 1 and doing == "the gossip of step 2":
                deadlines.Deadline(60).until(rank_0_is_at_the_next_fit.exists)
            yield
        finally:
            at_once[0] -= 1

    def stop(batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt

    def tell(logs=None):
        if cluster.rank == 0:
            rank_0_is_at_the_next_fit.touch()

    fit = {"batch_size": BATCH, "verbose": 0}
    before, after = _gossip(H=None, overlap=True), _gossip(H=5, overlap=True)
    stopping = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    telling = keras.callbacks.LambdaCallback(on_train_begin=tell)
    with product.around_exchanges(counted):
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(x, y, callbacks=[before, stopping], **fit)
        model.fit(x, y, callbacks=[telling, after], **fit)
    return [most[0], after.step, _flat(model.trainable_variables)]


def test_a_gossip_that_an_interrupted_fit_began_ends_before_the_next_exchange(pools, tmp_path):
    first, second = pools.run(_interrupted_overlap, 2, folder=str(tmp_path))
    assert first[0] == second[0] == 1  # never two at once
    assert first[1] == second[1] == STEPS
    assert first[2] == second[2]


def _early_stopping(cluster, folder):
    import keras

    x, y = _data(0)  # every rank validates on the same data
    rank_0_is_done = pathlib.Path(folder, "done")

    def keep_waiting(epoch, logs=None):
        if cluster.rank == 0:
            rank_0_is_done.touch()
        elif epoch == 0:
            deadlines.Deadline(60).until(rank_0_is_done.exists)
            time.sleep(1)

    model = _dense_model(cluster.rank, keras.optimizers.SGD(0.3))
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    slow = keras.callbacks.LambdaCallback(on_epoch_end=keep_waiting)
    gossip = _gossip(H=None)
    history = model.fit(
        *_data(cluster.rank),
        batch_size=BATCH,
        epochs=20,
        validation_data=(x, y),
        callbacks=[stop, gossip, slow],
        verbose=0,
    )
    losses = history.history
    return [losses["val_loss"], _flat(model.trainable_variables), gossip.communication_seconds]


def test_early_stopping_on_val_loss_stops_all_ranks_with_the_same_model(pools, tmp_path):
    first, second = pools.run(_early_stopping, 2, folder=str(tmp_path))
    assert first[0] == second[0]
    assert 2 <= len(first[0]) < 20
    assert first[1] == second[1]
    # Rank 1 slept for a second while rank 0 waited for it.
    assert first[2] > 0.1


def _stops(cluster):
    """Where each rank stands after one of them, rank 1, has wanted to stop."""
    import keras

    def stop(model, now: bool):
        model.stop_training = model.stop_training or (now and cluster.rank == 1)

    ended = {}
    for when in ("after step 2", "after step 6", "after epoch 1"):
        model = _dense_model(cluster.rank, keras.optimizers.SGD(0.1))
        before = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, m=model, w=when: stop(
                m, w == f"after step {int(m.optimizer.iterations)}"
            ),
            on_epoch_end=lambda epoch, logs, m=model, w=when: stop(m, w == "after epoch 1"),
        )
        gossip = _gossip(H=5)
        for _ in range(2):  # the second fit must not remember
            history = model.fit(
                *_data(cluster.rank, steps=7),
                batch_size=BATCH,
                epochs=3,
                callbacks=[before, gossip],
                verbose=0,
            )
            ended.setdefault(when, []).append([gossip.step, len(history.history["loss"])])
        ended[when].append(_flat(model.trainable_variables))
    return ended


def test_all_ranks_stop_together_where_one_wants_to(pools):
    first, second = pools.run(_stops, 2)
    assert first == second
    # At the next global average, of step 5; at the end of the epoch, of 7 steps; then three epochs.
    assert first["after step 2"][:2] == [[5, 1], [5 + 21, 3]]
    assert first["after step 6"][:2] == [[7, 1], [7 + 21, 3]]
    assert first["after epoch 1"][:2] == [[7, 1], [14, 1]]


# ---- The tutorial that Keras 3 broke ------------------------------------------------------------


def _tutorial(cluster):
    """The shape of TensorFlow's "Multi-worker training with Keras" tutorial: its CNN on MNIST-like
    images, an endless dataset with `steps_per_epoch`, then `evaluate`."""
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

    keras.utils.set_random_seed(cluster.rank)
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 512)
    images = random.normal(0.1, 0.1, (512, 28, 28)).astype(np.float32)
    images[np.arange(512), 2 * labels, :] += 1  # a bright line whose height is the class
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    training = cluster.shard(dataset).shuffle(512).repeat().batch(32)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(0.02),
        metrics=["accuracy"],
    )
    model.fit(training, epochs=3, steps_per_epoch=15, callbacks=[pga.GossipPGA(H=6)], verbose=0)
    return model.evaluate(dataset.batch(64), return_dict=True, verbose=0)


def test_keras_issue_20585_the_multi_worker_tutorial_trains(pools):
    first, second = pools.run(_tutorial, 2)
    assert first == second
    assert first["accuracy"] > 0.8
