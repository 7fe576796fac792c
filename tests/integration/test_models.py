"""Ordinary models that are more than layers and one optimizer, and ordinary mistakes."""

import contextlib
import json
import logging

import numpy as np
import pytest

from tests.support import gan as gans

pytestmark = pytest.mark.multiprocess

UNEVEN = [[0.75, 0.25], [0.25, 0.75]]  # a gossip of two that does not average exactly


def _gossip(H=3, **arguments):  # noqa: N803
    import tf_gossip_pga as pga

    return pga.GossipPGA(H=H, topology=pga.topology.from_matrix(UNEVEN), **arguments)


def _data(rank: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(rank).normal(size=(24, 4)).astype("float32")
    return x, x.sum(1, keepdims=True)


FIT = {"batch_size": 4, "epochs": 1, "shuffle": False, "verbose": 0}  # six steps


@contextlib.contextmanager
def _heard():
    """Yield a list that fills with what the package warns of."""
    handler, texts = logging.Handler(logging.WARNING), []
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("tf_gossip_pga")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def _flat(tensors) -> list[float]:
    return [float(x) for t in tensors for x in np.asarray(t.numpy(), np.float64).ravel()]


# ---- Two optimizers, no call --------------------------------------------------------------------


def _gan(cluster, state):
    from tf_gossip_pga.training import variables

    model = gans.a_gan(cluster.rank)
    variables.build(model)
    held = [each for each in variables.held(model) if each.kind == "optimizer"]
    for each in held:  # these differ, so that a broadcast shows
        if each.is_slot:
            each.assign(each.value + cluster.rank + 1)
    gossip = _gossip(optimizer_state=state)
    history = model.fit(gans.data(cluster.rank), callbacks=[gossip], **FIT)
    return {
        "weights": _flat(each.value for each in variables.held(model) if each.kind == "trainable"),
        "slots": _flat(each.value for each in held if each.is_slot),
        "iterations": [int(model.d_optimizer.iterations), int(model.g_optimizer.iterations)],
        "steps": [int(model.steps), gossip.global_steps],
        "distance": history.history["consensus_distance"][-1],
    }


@pytest.mark.parametrize("state", ["local", "average"])
def test_a_model_with_two_optimizers_and_no_call_trains(pools, state):
    first, second = pools.run(_gan, 2, state=state)
    assert first["weights"] == second["weights"]
    # The last of the six steps is a global average.
    assert (first["slots"] == second["slots"]) == (state == "average")
    for rank in (first, second):
        assert (rank["iterations"], rank["steps"]) == ([6, 6], [6, 2])
        assert rank["distance"] > 0


# ---- Variables of every kind --------------------------------------------------------------------


def _kinds(cluster):
    import keras
    import tensorflow as tf

    random = np.random.default_rng(cluster.rank)

    class Kinds(keras.layers.Layer):
        def build(self, shape):
            fixed = {"trainable": False, "initializer": "zeros"}
            self.mask = self.add_weight(shape=(4, 3), dtype="bool", name="mask", **fixed)
            self.base = self.add_weight(shape=(4, 3), dtype="int8", name="base", **fixed)
            self.bank = self.add_weight(shape=(2,), name="bank", **fixed)
            self.wave = self.add_weight(shape=(4, 3), dtype="complex64", name="wave")
            self.temperature = tf.Variable(1.0 + cluster.rank)
            self.words = tf.Variable([b"of its own"])
            self.mask.assign(random.random((4, 3)) > 0.5)
            self.base.assign(random.integers(-99, 99, (4, 3)))
            self.bank.assign(random.random(2))
            self.wave.assign(random.random((4, 3)) + 1j * random.random((4, 3)))

        def call(self, x):
            kernel = keras.ops.real(self.wave.value) * keras.ops.cast(self.mask, "float32")
            return x @ (kernel + 0.01 * keras.ops.cast(self.base, "float32")) * self.temperature

    layer = Kinds()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.001), "mse")
    bank = _flat([layer.bank])
    x, y = _data(cluster.rank)
    with _heard() as texts:
        model.fit(x, y, callbacks=[_gossip(local=["bank"])], **FIT)
    return {
        "heard": [text for text in texts if "words (string, shape (1,))" in text],
        "equal": [
            _flat([layer.mask, layer.base]),
            [str(z) for z in np.asarray(layer.wave).ravel()],
            _flat([layer.temperature, *model.layers[-1].weights]),
        ],
        "own": [bank, _flat([layer.bank])],
    }


def test_variables_of_every_type_begin_and_end_equal_and_local_ones_stay(pools):
    ranks = pools.run(_kinds, 2)
    assert ranks[0]["equal"] == ranks[1]["equal"]
    assert ranks[0]["own"] != ranks[1]["own"]
    assert [len(rank["heard"]) for rank in ranks] == [1, 0]  # what cannot be sent, once
    assert all(before == after for before, after in (rank["own"] for rank in ranks))


# ---- Mistakes -----------------------------------------------------------------------------------


def _dense(rank=0, **arguments):
    import keras

    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(arguments.get("rate", 0.01)), "mse")
    return model


def _trained(rank, data_of, gossip, callbacks=(), **arguments) -> list[str]:
    """What a rank hears while it trains."""
    with _heard() as texts:
        model = _dense(rank, **arguments)
        model.fit(*_data(data_of), callbacks=[*callbacks, gossip], **FIT)
    return texts


def _mistakes(cluster):
    import keras

    import tf_gossip_pga as pga

    def spoil(batch, logs=None):
        if cluster.rank == 1 and batch == 1:
            one.model.layers[0].bias.assign([np.nan])

    one = keras.callbacks.LambdaCallback(on_train_batch_end=spoil)
    return {
        "unsharded": _trained(0, 0, _gossip(H=4)),
        "unsharded, H=1": _trained(0, 0, _gossip(H=1)),
        "unsharded, overlap": _trained(0, 0, _gossip(H=4, overlap=True)),
        "unsharded, without averages": _trained(0, 0, _gossip(H=None)),
        "sharded": _trained(0, cluster.rank, _gossip(H=4)),
        # A gossip of two is an average, after which the validation or the end sees equal ranks.
        "sharded, without averages": _trained(0, cluster.rank, pga.GossipPGA(H=None)),
        "nothing trained": _trained(0, 0, _gossip(H=1), rate=0.0),
        "NaN": _trained(0, cluster.rank, _gossip(H=6), [one]),
        "NaN, H=1": _trained(0, cluster.rank, _gossip(H=1), [one]),
        "NaN, overlap": _trained(0, cluster.rank, _gossip(H=6, overlap=True), [one]),
    }


@pytest.fixture(scope="module")
def heard(pools):
    return pools.run(_mistakes, 2)


@pytest.mark.parametrize(
    "case", ["unsharded", "unsharded, H=1", "unsharded, overlap", "unsharded, without averages"]
)
def test_ranks_that_train_on_the_same_examples_are_noticed(heard, case):
    chief, other = (rank[case] for rank in heard)
    assert len(chief) == 1 and "identical steps; is the data sharded?" in chief[0]
    assert other == []


@pytest.mark.parametrize("case", ["sharded", "sharded, without averages", "nothing trained"])
def test_ranks_that_are_rightly_equal_are_not(heard, case):
    assert [rank[case] for rank in heard] == [[], []]


@pytest.mark.parametrize("case", ["NaN", "NaN, H=1", "NaN, overlap"])
def test_the_rank_and_step_of_the_first_nan_are_named(heard, case):
    chief, other = (rank[case] for rank in heard)
    assert len(chief) == 1 and "By step 2 the parameters of rank 1 were no longer" in chief[0]
    assert other == []


def _errors(cluster):
    import keras
    import tensorflow as tf

    texts = {}
    words = tf.constant(["a", "b", "c"][cluster.rank :])
    lookup = keras.layers.StringLookup(name="words")
    lookup.adapt(words)
    model = keras.Sequential(
        [keras.Input((), dtype="string"), lookup, keras.layers.Embedding(5, 1)]
    )
    model.compile("sgd", "mse")
    x, y = tf.constant(["a", "b"] * 4), np.ones([8, 1])
    try:
        model.fit(x, y, callbacks=[_gossip()], **FIT)
    except ValueError as error:
        texts["vocabulary"] = str(error)

    class Late(keras.Model):
        def train_step(self, data):
            return {"loss": tf.reduce_mean(self.late(self.early(data)))}

    model = Late()
    model.early = keras.layers.Dense(2)
    model.early.build((None, 4))
    model.late = keras.layers.Dense(2, name="late")
    model.compile("sgd")
    try:
        model.fit(_data(0)[0], callbacks=[_gossip()], **FIT)
    except ValueError as error:
        texts["late"] = str(error)
    return json.dumps(texts)


def test_tables_and_late_variables_that_differ_end_all_ranks_with_their_names(pools):
    first, second = map(json.loads, pools.run(_errors, 2))
    assert first == second
    assert "differ in the adapted layer 'words': rank 0 has" in first["vocabulary"]
    assert (
        "created variables that may differ between ranks: late/kernel, late/bias" in first["late"]
    )


# ---- Adaptive period ----------------------------------------------------------------------------


def _adaptive(cluster):
    import tf_gossip_pga as pga

    model = gans.a_gan(cluster.rank)
    gossip = pga.GossipPGA(H=pga.AdaptivePeriod(initial=2, warmup_steps=2))
    with _heard() as texts:
        history = model.fit(gans.data(cluster.rank), callbacks=[gossip], **FIT | {"epochs": 2})
    return [gossip.state["period"]["initial_loss"], history.history["H"], texts]


def test_a_period_follows_the_loss_that_a_train_step_returns(pools):
    first, second = pools.run(_adaptive, 2)
    assert first[:2] == second[:2]
    assert first[0] > 0
    assert [texts for _, _, texts in (first, second)] == [[], []]
