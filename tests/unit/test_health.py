"""A rank's look at its own parameters; no process is started."""

import numpy as np
import pytest
import tensorflow as tf

from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.exchange.averager import Averager, Patience, Variables
from tf_gossip_pga.exchange.session import SoloSession


def _averager(variables) -> Averager:
    session = SoloSession(Cluster())
    return Averager(session, topology.disconnected(1), Variables(variables), Patience(1, 1))


def _found(averager: Averager, step: int) -> dict[int, int]:
    """Return what a global average after so many steps tells of its only rank."""
    return averager.global_average("the test", step).non_finite


def _variables() -> list[tf.Variable]:
    return [
        tf.Variable(tf.range(10.0)),
        tf.Variable(tf.zeros([3], tf.bfloat16)),
        tf.Variable(tf.constant([1 + 2j], tf.complex128)),
    ]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_step_with_a_number_that_is_not_finite_is_kept(index, bad):
    variables = _variables()
    averager = _averager(variables)
    assert _found(averager, 4) == {}
    variables[index].assign(tf.cast(tf.fill(variables[index].shape, bad), variables[index].dtype))
    assert _found(averager, 5) == {0: 5}
    assert _found(averager, 6) == {0: 6}  # it is of the steps since the last global average
    variables[index].assign(tf.zeros_like(variables[index]))
    assert _found(averager, 7) == {}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, np.nan, np.nan], {0: 2}),
        ([np.nan, np.nan, np.nan], {0: 1}),
        ([1, 2, np.nan], {0: 3}),
        ([1, 2, 3], {}),
    ],
)
def test_the_step_is_that_of_the_first_exchange_at_which_a_rank_had_it(values, found):
    variables = _variables()
    averager = _averager(variables)
    for _ in range(2):  # the second time as the first
        for step, value in enumerate(values, start=1):
            variables[0].assign(tf.fill([10], float(value)))
            if step < len(values):
                averager.health.note([variables[0]])  # as a gossip does
                averager.health.steps.append(step)
        assert _found(averager, len(values)) == found


def test_a_step_that_is_forgotten_is_reported_as_the_first_that_is_not():
    health = _averager(_variables()).health
    health.steps.extend(range(1, 5000))
    assert health.first_steps(np.array([0, 2, 4999, 7000])) == {1: 4998, 2: 4000, 3: 4000}
    assert not health.steps


def test_a_rebuilt_averager_remembers():
    variables = _variables()
    averager = _averager(variables)
    variables[0].assign(tf.fill([10], np.nan))
    averager.health.note([variables[0]])
    averager.health.steps.append(5)
    rebuilt = averager.rebuilt(topology.disconnected(1))
    assert rebuilt is not averager
    assert _found(rebuilt, 6) == {0: 5}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_fingerprint_changes_with_any_variable_and_with_nothing_else(index):
    variables = _variables()
    health = _averager(variables).health
    before = health.fingerprint()
    assert 0 <= before < 2**32
    assert _averager(_variables()).health.fingerprint() == before
    variables[index].assign_add(tf.ones_like(variables[index]))
    assert health.fingerprint() != before


def test_no_parameters_are_no_problem():
    averager = _averager([])
    assert (_found(averager, 3), averager.health.fingerprint()) == ({}, 0)
