"""Outer steps: by hand, against an independent recursion, and what they reduce to."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import reference
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.checkpoint import outer_file
from tf_gossip_pga.exchange.outer_state import OuterState


def test_steps_by_hand():
    # d = 4, v = 4, s = 0.5 * (4 + 0.5 * 4) = 3; then d = 7 - 3 = 4, v = 2 + 4, s = 0.5 * (4 + 3)
    outer = Outer(learning_rate=0.5, momentum=0.5, nesterov=True)
    assert outer.step(4.0, 0.0, 0.0) == (3.0, 4.0)
    assert outer.step(7.0, 3.0, 4.0) == (6.5, 6.0)
    # d = 4, v = 4, s = 2; then d = 6 - 2 = 4, v = 2 + 4, s = 3
    outer = Outer(learning_rate=0.5, momentum=0.5, nesterov=False)
    assert outer.step(4.0, 0.0, 0.0) == (2.0, 4.0)
    assert outer.step(6.0, 2.0, 4.0) == (5.0, 6.0)


@pytest.mark.parametrize("settings", [(0.7, 0.9, True), (1.0, 0.5, False), (1.6, 0.0, True)])
def test_a_recursion_equals_the_oracle(settings):
    random = np.random.default_rng(0)
    outer, oracle = Outer(*settings), reference.Outer(*settings, period=1)
    x = expected = random.normal(size=5)
    velocity = np.zeros(5)
    for _ in range(20):
        mean = random.normal(size=5)
        x, velocity = outer.step(mean, x, velocity)
        expected = oracle.step(expected, mean)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 3.0])
def test_slowmo_with_a_constant_step_size_is_the_same(gamma):
    # Wang et al., ICLR 2020, Algorithm 1: u <- beta u + (x_prev - m) / gamma, x <- x_prev - alpha
    # gamma u.
    alpha, beta, random = 0.9, 0.6, np.random.default_rng(0)
    outer, velocity = Outer(alpha, beta, nesterov=False), np.zeros(3)
    x = slowmo = random.normal(size=3)
    u = np.zeros(3)
    for _ in range(10):
        mean = random.normal(size=3)
        u = beta * u + (slowmo - mean) / gamma
        slowmo = slowmo - alpha * gamma * u
        x, velocity = outer.step(mean, x, velocity)
        np.testing.assert_allclose(x, slowmo, rtol=0, atol=1e-12)
        np.testing.assert_allclose(u, -velocity / gamma, rtol=0, atol=1e-11)


@pytest.mark.parametrize("nesterov", [True, False])
def test_learning_rate_one_without_momentum_leads_exactly_to_the_mean(nesterov):
    random = np.random.default_rng(0)
    mean, previous, velocity = random.normal(size=(3, 10_000)).astype(np.float32)
    mean[:2] = 0.0, -0.0
    previous *= 10.0 ** random.integers(-20, 20, 10_000)
    found, _ = Outer(1.0, 0.0, nesterov).step(mean, previous, velocity)
    assert found.dtype == np.float32
    assert found.tobytes() == mean.tobytes()
    assert (previous + (mean - previous) != mean).any()  # which this formula would not do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0}, r"learning_rate of Outer must be a number > 0, received 0\."),
        ({"learning_rate": float("inf")}, "learning_rate of Outer .* received inf"),
        ({"learning_rate": None}, "learning_rate of Outer .* received None"),
        ({"momentum": 1.0}, r"momentum of Outer must be a number >= 0 and < 1, received 1\.0\."),
        ({"momentum": -0.1}, r"momentum of Outer .* received -0\.1"),
        ({"momentum": "0.9"}, "momentum of Outer .* received '0.9'"),
        ({"nesterov": 1}, "nesterov of Outer must be True or False, received 1"),
    ],
)
def test_bad_arguments_are_answered(arguments, message):
    with pytest.raises(ValueError, match=message):
        Outer(**arguments)


def test_the_defaults_are_those_of_diloco():
    assert Outer() == Outer(learning_rate=0.7, momentum=0.9, nesterov=True)
    assert str(Outer(np.float32(1), 0)) == "Outer(learning_rate=1.0, momentum=0.0, nesterov=True)"


# ---- The state ----------------------------------------------------------------------------------


def _stepped(state: OuterState, parameter: tf.Variable, mean) -> None:
    parameter.assign(tf.cast(mean, parameter.dtype))
    state.step()


def test_the_state_of_low_precision_parameters_is_in_float32():
    # Steps of 1/8 of one bfloat16: the parameter moves only because the anchor keeps them.
    parameter = tf.Variable(tf.cast([256.0], tf.bfloat16))
    state = OuterState(Outer(1 / 16, 0.0, nesterov=False))
    state.serve([parameter])
    values = []
    for _ in range(6):
        _stepped(state, parameter, [260.0])
        values.append(float(parameter[0]))
    assert {variable.dtype for variable in state.variables} == {tf.float32}
    expected = 260 - 4 * (15 / 16) ** np.arange(1, 7)
    np.testing.assert_allclose(values, np.round(expected / 2) * 2)
    np.testing.assert_allclose(state.anchor[0], [expected[-1]], rtol=1e-6)


def test_complex_parameters_take_steps_too():
    parameter = tf.Variable(tf.constant([1 + 1j], tf.complex64))
    state = OuterState(Outer(0.5, 0.0))
    state.serve([parameter])
    _stepped(state, parameter, [3 + 5j])
    assert parameter.numpy().tolist() == [2 + 3j]


def test_a_fit_begins_at_its_weights_and_keeps_the_velocity():
    parameter = tf.Variable([0.0])
    state = OuterState(Outer(1.0, 0.5, nesterov=False))
    state.serve([parameter])
    _stepped(state, parameter, [2.0])
    parameter.assign([10.0])
    state.serve([parameter])  # the next fit of the same model
    state.begin()
    assert [float(v[0]) for v in state.variables] == [10.0, 2.0]
    state.is_restored = True
    parameter.assign([11.0])
    state.begin()
    assert [float(v[0]) for v in state.variables] == [10.0, 2.0]
    state.serve([tf.Variable([5.0])])  # another model
    assert [float(v[0]) for v in state.variables] == [5.0, 0.0]
    state.velocity[0].assign([3.0])
    state.forget()
    assert [float(v[0]) for v in state.variables] == [5.0, 0.0]
    assert not state.is_restored


def test_a_file_holds_the_state_of_the_same_parameters_only(tmp_path):
    def state(*parameters):
        found = OuterState(Outer(0.7, 0.9))
        found.serve([*map(tf.Variable, parameters)])
        return found

    first, second = state([1.0, 2.0], [[3.0]]), state([0.0, 0.0], [[0.0]])
    first.velocity[1].assign([[5.0]])
    outer_file.save(tmp_path / outer_file.NAME, first)
    outer_file.load(tmp_path / outer_file.NAME, second)
    for left, right in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(left, right)
    for other in (state([0.0, 0.0]), state([0.0, 0.0], [0.0])):
        with pytest.raises(ValueError, match=r"other parameters\. Check the argument local"):
            outer_file.load(tmp_path / outer_file.NAME, other)
