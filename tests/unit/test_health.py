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


def _first_non_finite(averager: Averager, step: int) -> int:
    """Return what a global average after so many steps tells of its only rank."""
    (found,) = averager.global_average("the test", step).non_finite
    return int(found)


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
    assert _first_non_finite(averager, 4) == 0
    variables[index].assign(tf.cast(tf.fill(variables[index].shape, bad), variables[index].dtype))
    assert _first_non_finite(averager, 5) == 5
    variables[index].assign(tf.zeros_like(variables[index]))
    assert _first_non_finite(averager, 6) == 5


def test_a_gossip_notes_what_it_is_about_to_mix():
    averager = _averager(_variables())
    before = [tf.fill([10], np.nan)]
    tf.function(averager.health.note)(before, tf.constant(3, tf.int64))
    assert _first_non_finite(averager, 4) == 3


def test_a_rebuilt_averager_remembers():
    variables = _variables()
    averager = _averager(variables)
    variables[0].assign(tf.fill([10], np.nan))
    assert _first_non_finite(averager, 5) == 5
    variables[0].assign(tf.zeros([10]))
    rebuilt = averager.rebuilt(topology.disconnected(1))
    assert rebuilt is not averager
    assert _first_non_finite(rebuilt, 6) == 5


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
    assert (_first_non_finite(averager, 3), averager.health.fingerprint()) == (0, 0)
