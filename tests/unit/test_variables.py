"""Which variables and optimizers a model has, and what becomes of each; no process is started."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_gossip_pga as pga
from tests.support import gan as gans
from tf_gossip_pga.checkpoint import rank_file
from tf_gossip_pga.training import preflight, variables


class _Everything(keras.Model):
    """Variables of every kind, in a model without `call`."""

    def __init__(self):
        super().__init__(name="net")
        self.dense = keras.layers.Dense(2, name="dense")
        self.dense.build((None, 3))
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.norm.build((None, 2))
        self.dropout = keras.layers.Dropout(0.5, name="dropout")
        weight = {"trainable": False, "initializer": "zeros"}
        self.mask = self.add_weight(shape=(3,), dtype="bool", name="mask", **weight)
        self.base = self.add_weight(shape=(5,), dtype="int8", name="base", **weight)
        self.phase = self.add_weight(shape=(2,), dtype="complex64", name="phase")
        self.bank = self.add_weight(shape=(4, 2), name="bank", **weight)
        self.temperature = tf.Variable(1.0)
        self.extra = {"scale": [tf.Variable([2.0], trainable=False)]}
        self.words = tf.Variable(["a"])
        self.again = self.dense.kernel.value  # what Keras knows already
        self.first = keras.optimizers.Adam()
        self.others = [keras.optimizers.SGD(momentum=0.9)]

    def train_step(self, data):
        return {}


@pytest.fixture
def model():
    model = _Everything()
    model.compile(optimizer=None)
    variables.build(model)
    return model


def _names(model, tensors) -> list[str]:
    names = {id(each.value): each.path for each in variables.held(model)}
    return [names[id(each)] for each in tensors]


def test_every_variable_is_found_once_with_its_kind(model):
    # Keras numbers the generators of a process.
    found = {
        re.sub(r"^net/|_\d+(?=/)", "", each.path): each for each in variables.held_by_layers(model)
    }
    assert len(found) == len(variables.held_by_layers(model))
    by_kind = {
        kind: sorted(name for name, each in found.items() if each.kind == kind)
        for kind in ("trainable", "frozen", "random")
    }
    assert by_kind == {
        "trainable": [
            *("dense/bias", "dense/kernel", "norm/beta", "norm/gamma"),
            *("phase", "temperature", "words"),
        ],
        "frozen": [
            *("bank", "base", "extra/scale/0", "mask"),
            *("norm/moving_mean", "norm/moving_variance"),
        ],
        "random": ["seed_generator/seed_generator_state"],
    }
    raw = {name for name, each in found.items() if each.is_raw}
    assert raw == {"temperature", "extra/scale/0", "words"}


def test_floats_and_complex_numbers_are_averaged_and_all_but_seeds_is_broadcast(model):
    made = variables.variables_of(model, "local", ())

    def ends(tensors) -> set[str]:
        return {name.rpartition("/")[2] for name in _names(model, tensors)}

    assert ends(made.parameters) == {"kernel", "bias", "gamma", "beta", "phase", "temperature"}
    assert ends(made.statistics) == {"moving_mean", "moving_variance", "bank", "0"}
    assert {"mask", "base", "iteration", "learning_rate"} <= ends(made.others)
    sent = ends([*made.parameters, *made.statistics, *made.others])
    assert not {"seed_generator_state", "words"} & sent


def test_local_variables_are_left_alone_by_their_own_name_or_that_of_a_layer(model):
    everything = variables.variables_of(model, "average", ())
    some = variables.variables_of(model, "average", ["bank", "norm", "net/mask"])
    kept = [
        name
        for kind in ("parameters", "statistics", "others")
        for name in {*_names(model, getattr(everything, kind))}
        - {*_names(model, getattr(some, kind))}
    ]
    ends = sorted(name.rpartition("/")[2] for name in kept)
    assert ends == ["bank", "beta", "gamma", "mask", "moving_mean", "moving_variance"]
    assert len(some.slots) == len(everything.slots)


def test_optimizers_are_found_on_attributes_and_built_for_what_their_layer_trains(model):
    found = [optimizer for optimizer, _ in variables.optimizers_of(model)]
    assert found == [model.first, model.others[0]]
    # Two slots of Adam and one of momentum for each of the 5 variables that Keras trains.
    assert len(variables.variables_of(model, "average", ()).slots) == 3 * 5
    model.compile("sgd")
    assert [type(each).__name__ for each, _ in variables.optimizers_of(model)] == [
        "SGD", "Adam", "SGD"
    ]  # fmt: skip


def test_an_optimizer_that_is_built_stays_as_it_is():
    model = _Everything()
    model.first.build(model.dense.trainable_variables)
    model.compile(optimizer=None)
    variables.build(model)
    assert len(model.first.variables) == 2 + 2 * 2


def test_a_rank_keeps_its_own_in_its_file_and_the_raw_ones(model, tmp_path):
    held = variables.held(model)
    own = {held[place].path.rpartition("/")[2] for place in rank_file.places(model, True, ["bank"])}
    expected = {"mask", "base", "seed_generator_state", "bank", "temperature", "0", "iteration"}
    assert own == expected | {"learning_rate"}
    model.mask.assign([True, False, True])
    model.temperature.assign(3.0)
    path = tmp_path / "rank-0.npz"
    rank_file.save(path, model, rank_file.places(model, True, ["bank"]))
    model.mask.assign([False] * 3)
    model.temperature.assign(4.0)
    for variable, value in rank_file.load(path, model):
        variable.assign(value)
    assert np.asarray(model.mask).tolist() == [True, False, True]
    assert model.temperature.numpy() == 3.0


def test_a_file_of_a_rank_with_other_shapes_names_both(model, tmp_path):
    path = tmp_path / "rank-0.npz"
    place = next(i for i, each in enumerate(variables.held(model)) if each.path.endswith("mask"))
    np.savez(path, **{str(place): np.zeros(2, np.int32)})
    with pytest.raises(
        ValueError,
        match=r"mask has shape \[2\] and dtype int32 in the file, but \[3\] and bool in the model",
    ):
        rank_file.load(path, model)


def test_a_model_without_call_trains_once_it_has_variables(model):
    assert preflight.problem_of_model(model) is None

    class Empty(keras.Model):
        def train_step(self, data):
            return {}

    empty = Empty()
    empty.compile("sgd")
    problem = preflight.problem_of_model(empty)
    assert problem is not None and "call each of the layers that its train_step calls" in problem
    empty.compile(optimizer=None)
    empty.dense = keras.layers.Dense(1)
    empty.dense(np.ones([1, 2]))  # as advised
    assert "without an optimizer" in (preflight.problem_of_model(empty) or "")


def test_the_advice_for_an_unbuilt_model_helps():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    late = Late()
    late.compile("sgd")
    assert "call it on a batch" in (preflight.problem_of_model(late) or "")
    late(np.ones([1, 2]))
    assert preflight.problem_of_model(late) is None


def test_an_unbuilt_optimizer_with_moving_averages_is_refused():
    model = _Everything()
    model.first = keras.optimizers.Adam(use_ema=True)
    model.compile(optimizer=None)
    assert "use_ema=True" in (preflight.problem_of_model(model) or "")
    model.first.build(model.dense.trainable_variables)
    assert preflight.problem_of_model(model) is None


def test_variables_that_the_first_batch_makes_are_named(model):
    known = variables.held_by_layers(model)
    preflight.check_no_late_variables(model, known)
    model.late = keras.layers.Dense(2, name="late")
    model.late.build((None, 3))
    with pytest.raises(
        ValueError, match=r"created variables.*late/kernel, .*late/bias\. Build all"
    ):
        preflight.check_no_late_variables(model, known)


def test_what_cannot_be_sent_is_named_unless_it_is_local(model):
    assert preflight.warnings_of_variables(model, ["words"]) == []
    (text,) = preflight.warnings_of_variables(model, [])
    assert "its own net/words (string, shape (1,))" in text


# Keras' own, where it saves weights under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("state", [pytest.param("local", marks=pytest.mark.slow), "average"])
def test_a_run_with_two_optimizers_resumes_with_both(tmp_path, state):
    def run(folder, until: int) -> list[np.ndarray]:
        model, gossip = gans.a_gan(0), pga.GossipPGA(H=2, optimizer_state=state)
        checkpoint = pga.Checkpoint(gossip, folder)
        model.fit(
            gans.data(0),
            batch_size=8,
            epochs=until,
            initial_epoch=checkpoint.restore(model),
            callbacks=[gossip, checkpoint],
            shuffle=False,
            verbose=0,
        )
        assert int(model.d_optimizer.iterations) == int(model.steps) == 3 * until
        return [np.asarray(each.value) for each in variables.held(model)]

    run(tmp_path / "twice", until=1)
    resumed, whole = run(tmp_path / "twice", until=2), run(tmp_path / "once", until=2)
    for value, other in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5)
