"""The simulation against the NumPy oracle, closed forms and bad arguments."""

import gc
import json
import math
import subprocess
import sys

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

import tf_gossip_pga as pga
from tests.support import deadlines, graphs, nursery, reference, simulated
from tf_gossip_pga import simulate
from tf_gossip_pga.algorithm import schedule, topology
from tf_gossip_pga.algorithm.auto import AutoPeriod
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.simulate import curves, mixing, report, tensors
from tf_gossip_pga.tools import memory


def oracles_problem(n, dtype=np.float64):
    """The oracle's network and data, written once more in TensorFlow."""

    def loss(x, inputs, targets):
        kernel1, bias1, kernel2, bias2 = (
            tf.reshape(part, shape)
            for part, shape in zip(
                tf.split(x, [math.prod(shape) for shape in shapes]), shapes, strict=True
            )
        )
        predicted = tf.tanh(inputs @ kernel1 + bias1) @ kernel2 + bias2
        return tf.reduce_mean((predicted - targets) ** 2)

    shapes = [part.shape for part in reference.unflatten(np.zeros(reference.PARAMETERS))]
    return simulate.Problem(
        loss, simulated.oracles_data(n), reference.initial_weights().astype(dtype)
    )


def oracle(n, matrix_of_step):
    """`[STEPS, n, PARAMETERS]`."""
    data = [reference.batches(rank, simulated.STEPS, simulated.BATCH) for rank in range(n)]
    return reference.train(
        reference.initial_weights(), data, matrix_of_step, simulated.RATE, momentum=0
    )


CASES = [(8, name, 3) for name in [*topology.BY_NAME, "from_matrix"]]
CASES += [(1, "ring", 3), (2, "one_peer_exponential", 3), (9, "grid", 4), (5, "ring", None)]


@pytest.mark.parametrize(("n", "name", "H"), CASES)
def test_every_node_and_step_equals_the_oracle(n, name, H):  # noqa: N803
    topo = graphs.topology_of(name, n)
    expected = oracle(n, reference.matrix_of_step(topo, H))
    found = simulated.steps_of(oracles_problem(n), topology=topo, H=H)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "H"), [("one_peer_exponential", 5), ("ring", None)])
def test_local_steps_between_gossips_equal_the_oracle(name, H):  # noqa: N803
    n, every = 8, 2
    topo = graphs.topology_of(name, n)
    expected = oracle(n, reference.matrix_of_step(topo, H, every))
    found = simulated.steps_of(oracles_problem(n), topology=topo, H=H, gossip_every=every)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["parallel", "gossip", "local", "pga", "gossip_final"])
def test_an_algorithms_name_is_the_oracles_matrices(algorithm):
    n, H = 6, 4  # noqa: N806
    everybody, ring = np.full((n, n), 1 / n), topology.ring(n).weights(0)
    matrix = {
        "parallel": lambda step: everybody,
        "gossip": lambda step: ring,
        "local": lambda step: everybody if step in (4, 8, 12) else np.eye(n),
        "pga": lambda step: everybody if step in (4, 8, 12) else ring,
        "gossip_final": lambda step: everybody if step == simulated.STEPS else ring,
    }[algorithm]
    settings = simulate.settings_of(algorithm, "ring", H, simulated.STEPS)
    found = simulated.steps_of(oracles_problem(n), **settings)
    np.testing.assert_allclose(found, oracle(n, matrix), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "outer"), [("slowmo", (1.0, 0.5, False)), ("diloco", (0.7, 0.9, True))]
)
def test_an_outer_optimizer_equals_its_oracle(algorithm, outer):
    n, oracle_ = 6, reference.Outer(*outer, period=4)
    ring = topology.ring(n).weights(0)
    x = np.tile(reference.initial_weights(), (n, 1))
    data = [reference.batches(rank, simulated.STEPS, simulated.BATCH) for rank in range(n)]
    anchor, expected = x[0], []
    for step in range(1, simulated.STEPS + 1):
        slopes = [
            reference.gradient(x[i], data[i][0][step - 1], data[i][1][step - 1]) for i in range(n)
        ]
        x = x - simulated.RATE * np.array(slopes)
        if step % 4 == 0:
            anchor = oracle_.step(anchor, x.mean(0))
            x = np.tile(anchor, (n, 1))
        elif algorithm == "slowmo":
            x = ring @ x
        expected.append(x)
    settings = simulate.settings_of(algorithm, "ring", 4, simulated.STEPS)
    found = simulated.steps_of(oracles_problem(n), **settings)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    plain = settings | {"outer_optimizer": None}
    without = settings | {"outer_optimizer": Outer(1.0, 0.0)}
    plain, without = (simulated.steps_of(oracles_problem(n), **each) for each in (plain, without))
    np.testing.assert_array_equal(without, plain)
    assert np.abs(found[-1] - plain[-1]).max() > 1e-3


def test_an_adaptive_period_equals_the_oracle():
    n, period = 6, schedule.AdaptivePeriod(initial=2, warmup_steps=2, exponent=4, maximum=9)
    ring, everybody = topology.ring(n).weights(0), np.full((n, n), 1 / n)
    x, y = simulated.oracles_data(n)
    run, globals_, first = period.start(), [], 1

    def matrix(step):
        return everybody if step in globals_ else ring

    for step in range(1, simulated.STEPS + 1):
        if not run.is_global(step):
            continue
        # The mean loss of the first batch after the global average before, at its common model.
        history = oracle(n, matrix)
        common = reference.initial_weights() if first == 1 else history[first - 2][0]
        batch = slice((first - 1) * simulated.BATCH, first * simulated.BATCH)
        kernel1, bias1, kernel2, bias2 = reference.unflatten(common)
        predicted = np.tanh(x[:, batch] @ kernel1 + bias1) @ kernel2 + bias2
        globals_.append(step)
        run.observe(step, schedule.Observed(float(np.mean((predicted - y[:, batch]) ** 2))))
        first = step + 1
    assert len(set(np.diff([0, *globals_]))) > 1  # the period did change
    found = simulated.steps_of(oracles_problem(n), topology="ring", H=period)
    np.testing.assert_allclose(found, oracle(n, matrix), rtol=0, atol=1e-12)


def test_an_automatic_period_grows_only_where_nodes_stay_close():
    # With different data, nodes that do not gossip drift apart for as long as the period lasts. On
    # a complete graph, they are equal after each step.
    problem = simulate.quadratic(nodes=8, heterogeneity=1)
    found = {}
    for name in ("disconnected", "complete"):
        run = simulate.Simulation(problem, name, H=AutoPeriod(), step_size=0.02)
        run.advance(600)
        found[name] = int(run.global_averages[0])
    # All periods of 6 steps would be 100 averages, all of 12 steps 50.
    assert found["complete"] < 70 < 85 < found["disconnected"]


def test_each_trial_has_an_adaptive_period_of_its_own():
    problem = simulate.logistic(4, samples=16)
    period = schedule.AdaptivePeriod(initial=2, warmup_steps=4, exponent=2)
    simulation = simulate.Simulation(problem, "ring", H=period, trials=8, step_size=0.3)
    simulation.advance(60)
    assert len(set(simulation.global_averages)) > 1


def test_a_keras_models_regularizers_count():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    x, y = np.zeros((2, 5, 3), np.float32), np.zeros((2, 5, 1), np.float32)
    problem = simulate.from_keras(model, "mse", x, y)
    simulation = simulate.Simulation(problem)
    kernel = model.get_weights()[0]
    assert simulation.excess()[0] == pytest.approx(0.01 * np.sum(kernel**2), rel=1e-5)


def test_compiled_by_xla_it_does_the_same():
    problem = oracles_problem(9)
    plain = simulated.steps_of(problem, topology="grid", H=4)
    compiled = simulated.steps_of(problem, topology="grid", H=4, jit_compile=True)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-12)


def test_trials_and_seeds():
    problem = simulate.quadratic(4, heterogeneity=1, samples=7)

    def after(**arguments):
        simulation = simulate.Simulation(problem, "ring", batch_size=3, **arguments)
        simulation.advance(3)
        assert simulation.x.shape == (arguments.get("trials", 1), 4, 10)
        return simulation.x.numpy()

    three = after(trials=3)
    assert not np.allclose(three[0], three[1])
    np.testing.assert_array_equal(three, after(trials=3))
    assert not np.allclose(three, after(trials=3, seed=1))


@pytest.mark.parametrize(("samples", "batch"), [(8, 4), (7, 3), (3, 7), (5, 5), (6, 4)])
def test_batches_hold_every_sample_equally_often(samples, batch):
    in_order = tensors.batch_places(samples, batch, None)
    np.testing.assert_array_equal(in_order.ravel() % samples, np.arange(in_order.size) % samples)
    for places in (in_order, tensors.batch_places(samples, batch, 1)):
        assert places.shape[1] == batch
        assert len(set(np.bincount(places.ravel(), minlength=samples))) == 1


def test_step_size_is_halved():
    # f(x) = x: each step takes off the step size. 3 times 0.4, 3 times 0.2, 1 time 0.1.
    data = (np.zeros((2, 1), np.float32),)
    problem = simulate.Problem(lambda x, _: x[0], data, np.zeros(1))
    simulation = simulate.Simulation(problem, step_size=0.4, halve_every=3)
    simulation.advance(7)
    np.testing.assert_allclose(simulation.x, np.full((1, 2, 1), -1.9))


@strategies.composite
def drawn_graphs(draw):
    """Any name at any size up to 64 that it admits, or a mean of permutations, and a round."""
    name = draw(strategies.sampled_from([*topology.BY_NAME, "from_matrix"]))
    if name == "hypercube":
        return topology.hypercube(2 ** draw(strategies.integers(0, 6)))
    n = draw(strategies.integers(1, 64))
    if name != "from_matrix":
        return topology.BY_NAME[name](n)
    orders = draw(strategies.lists(strategies.permutations(range(n)), min_size=1, max_size=3))
    return topology.from_matrix(np.mean([np.eye(n)[order] for order in orders], axis=0))


@hypothesis.given(drawn_graphs(), strategies.integers(0, 99))
@hypothesis.settings(max_examples=150)
def test_mixing_is_the_product_with_a_doubly_stochastic_matrix(topo, seed):
    y = np.random.default_rng(seed).normal(size=(topo.size, 2, 3))
    for round, each in enumerate(topo.cycle):
        matrix = topo.weights(round)
        assert matrix.min() >= 0
        np.testing.assert_allclose([matrix.sum(0), matrix.sum(1)], 1, rtol=1e-12)
        mixed = mixing.mixer(each, tf.float64)(tf.constant(y)).numpy()
        np.testing.assert_allclose(mixed, np.einsum("ij,jab->iab", matrix, y), atol=1e-12)
        np.testing.assert_allclose(mixed.mean(0), y.mean(0), atol=1e-12)
        assert np.all(mixed.std(0) <= y.std(0) + 1e-12)  # no farther from consensus


@pytest.mark.parametrize("name", ["one_peer_exponential", "hypercube"])
@pytest.mark.parametrize("power", [1, 3, 6])
def test_log2_n_rounds_average_exactly_and_fewer_do_not(name, power):
    topo = topology.BY_NAME[name](2**power)
    y = tf.constant(np.random.default_rng(0).normal(size=(topo.size, 1)))
    mean = y.numpy().mean()
    for each in topo.cycle:
        assert np.abs(y - mean).max() > 1e-6
        y = mixing.mixer(each, tf.float64)(y)
    np.testing.assert_allclose(y, mean, atol=1e-14)


def test_a_global_average_is_consensus_and_moves_no_mean():
    problem = simulate.quadratic(8, heterogeneity=1, samples=20)
    simulation = simulate.Simulation(problem, "ring", H=5, trials=2)
    simulation.advance(4)
    assert np.all(simulation.consensus_distance > 1e-3)
    x = simulation.x.numpy()
    spread = np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    expected = spread / np.linalg.norm(x.mean(1), axis=1)
    np.testing.assert_allclose(simulation.consensus_distance, expected, rtol=1e-5)
    simulation.advance(1)
    assert np.all(simulation.x.numpy() == simulation.x.numpy()[:, :1])
    assert np.all(simulation.consensus_distance < 1e-6)
    assert simulation.global_averages.tolist() == [1, 1]


@pytest.mark.parametrize("heterogeneity", [0, 0.5, 1])
def test_the_minimum_of_the_logistic_problem(heterogeneity):
    problem = simulate.logistic(5, heterogeneity, samples=400)
    signed = problem.data[0].reshape(-1, 10).astype(np.float64)

    def f(x):
        return np.mean(np.logaddexp(0, -(signed @ x)))

    # Gradient descent in NumPy, f being convex and its curvature at most 10 / 4 and a little.
    x = np.zeros(10)
    for _ in range(3000):
        x += 0.3 * (1 / (1 + np.exp(signed @ x))) @ signed / len(signed)
    assert problem.minimum == pytest.approx(f(x), abs=1e-12)
    assert problem.minimum < f(np.zeros(10)) - 0.01
    simulation = simulate.Simulation(problem, "ring", trials=3, step_size=0.3)
    simulation.advance(9)
    expected = [f(mean) - problem.minimum for mean in simulation.x.numpy().mean(1)]
    np.testing.assert_allclose(simulation.excess(), expected, atol=1e-6)


def test_the_minimum_of_the_quadratic_problem():
    problem = simulate.quadratic(5, 1, samples=40)
    a, b = (array.reshape(-1, *array.shape[2:]).astype(np.float64) for array in problem.data)
    best = np.linalg.solve(a.T @ a, a.T @ b)
    assert problem.minimum == pytest.approx(np.mean((a @ best - b) ** 2) / 2, rel=1e-9)
    np.testing.assert_allclose(np.sum(a**2, axis=1), 10, rtol=1e-5)


def test_heterogeneity_of_the_digits():
    def labels_of_a_node(share):
        problem = simulate.digits(10, share)
        assert problem.data[0].shape == (10, 179, 64)
        return np.mean([len(set(labels.tolist())) for labels in problem.data[1]])

    assert labels_of_a_node(0) == 10
    assert labels_of_a_node(1) < 3
    assert len({tuple(x) for x in simulate.digits(10, 0.5).data[0].reshape(-1, 64)}) > 1780


def test_run_looks_at_the_mean_as_often_as_asked():
    problem = simulate.quadratic(4, samples=20)
    simulation = simulate.Simulation(problem, "ring", H=3, trials=5)
    curve = simulate.run(simulation, 10, every=4)
    assert curve.steps.tolist() == [4, 8, 10]
    assert curve.excess.shape == curve.consensus_distance.shape == (3, 5)
    np.testing.assert_array_equal(curve.excess[-1], simulation.excess())
    np.testing.assert_allclose(
        curve.standard_error, curve.excess.std(1, ddof=1) / math.sqrt(5), rtol=1e-12
    )
    assert curve.global_averages.tolist() == [3] * 5
    again = simulate.run(simulation, 2)
    assert again.steps.tolist() == [11, 12]


def test_all_algorithms_draw_the_same_batches():
    problem = simulate.quadratic(4, samples=20)
    found = simulate.compare(problem, ["pga", "parallel"], "complete", 3, 8, trials=2)
    assert list(found) == ["parallel", "pga"]
    # On the complete graph every gossip is a global average.
    np.testing.assert_allclose(found["pga"].excess, found["parallel"].excess, atol=1e-6)
    assert simulate.transient(found["pga"], found["parallel"]) == 1


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ([9, 1, 9, 1.1, 1], 40),
        ([1, 1, 1, 1, 1], 10),
        ([9, 1, 1, 1, 1.2], None),
        ([1, math.nan, 1, 1, 1], 30),
    ],
)
def test_transient_is_from_when_on_it_stays_near(mean, expected):
    parallel, steps = np.ones(5), [10, 20, 30, 40, 50]
    assert curves.joins(steps, np.array(mean), parallel, 1.1) == expected


@pytest.mark.parametrize(
    ("iterations", "H", "every"),
    [(2000, 16, 11), (2000, None, 10), (5000, 16, 25), (5000, 30, 29), (200, 6, 1), (201, 6, 5)],
)
def test_looks_are_few_and_at_all_phases_of_the_period(iterations, H, every):  # noqa: N803
    assert curves._interval(iterations, H or 1) == every
    assert math.gcd(every, H or 1) == 1
    problem = simulate.Problem(lambda x, _: x[0], (np.zeros((2, 1)),), np.zeros(1))
    found = simulate.compare(problem, ["gossip"], "ring", H, iterations)["gossip"]
    assert len(found.steps) <= 200
    assert found.steps[0] == every


def test_the_transient_is_of_the_first_curve_beside_the_second():
    steps, nothing = np.array([10, 20, 30]), np.zeros(1)

    def curve(mean):
        return curves.Curve(steps, np.array(mean)[:, np.newaxis], nothing, nothing)

    late, parallel = curve([9.0, 9.0, 1.0]), curve([1.0, 1.0, 1.0])
    assert simulate.transient(late, parallel) == 30
    assert simulate.transient(parallel, late) == 10
    assert simulate.transient(curve([1.0, 1.0, 1.2]), parallel) is None
    assert simulate.transient(curve([1.0, 1.0, 1.2]), parallel, factor=1.3) == 10


def simulation(**arguments):
    return simulate.Simulation(simulate.quadratic(6, samples=2), **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulation(topology="hypercube"), r"n=6\. The nearest sizes are 4 and 8"),
        (lambda: simulation(topology="star"), r"Unknown topology 'star'\. Known names: base_2"),
        (lambda: simulation(topology=topology.ring(5)), r"'ring' is for 5 ranks"),
        (lambda: simulation(H=0), r"H must be a whole number of steps >= 1.*received H=0"),
        (lambda: simulation(trials=0), r"trials must be a whole number >= 1, received 0\."),
        (lambda: simulation(batch_size=2.5), r"batch_size must be a whole number >= 1, rec"),
        (lambda: simulation(halve_every=-1), r"halve_every must be a whole number >= 1, rec"),
        (lambda: simulation(step_size=0), r"step_size must be a number > 0, received 0\."),
        (lambda: simulation(step_size=math.nan), r"step_size must be a number > 0, received nan"),
        (lambda: simulation(H=AutoPeriod(), trials=2), r"received trials=2\. Use one trial"),
        (lambda: simulation(H=None, outer_optimizer=Outer()), r"H=None has none"),
        (lambda: simulation(gossip_every=0), r"gossip_every must be .*received 0"),
        (lambda: simulation(H=4, gossip_every=4), r"less than H=4, received 4"),
        (lambda: simulation(outer_optimizer=1), r"a pga\.Outer or None, received 1\."),
        (lambda: simulation(seed=-1), r"seed must be a whole number >= 0, received -1\."),
        (lambda: simulate.quadratic(2, seed=-1), r"seed must be a whole number >= 0, received -1"),
        (lambda: simulate.logistic(2, np.float32(1.5)), r"to 1, received .*1\.5"),
        (lambda: simulation().advance(0), r"steps must be a whole number >= 1, received 0\."),
        (lambda: simulate.run(simulation(), 0), r"iterations must be a whole number >= 1, rec"),
        (lambda: simulate.run(simulation(), 5, every=0), r"every must be a whole number >= 1"),
        (lambda: simulate.Simulation("logistic"), r"problem must be a simulate\.Problem.*'logis"),
        (lambda: simulate.logistic(0), r"nodes must be a whole number >= 1, received 0\."),
        (lambda: simulate.logistic(True), r"nodes must be a whole number >= 1, received True"),
        (lambda: simulate.quadratic(2, samples=0), r"samples must be a whole number >= 1"),
        (lambda: simulate.logistic(2, 1.5), r"from 0 \(iid\) to 1, received 1\.5"),
        (lambda: simulate.digits(1798), r"at most 1797 nodes, received 1798"),
        (
            lambda: simulate.settings_of("sgd", "ring", 6, 10),
            r"Unknown algorithm 'sgd'\. Known algorithms: aga, auto, diloco, gossip, gossip_final",
        ),
        (
            lambda: simulate.settings_of("aga", "ring", None, 10),
            r"H, the first period of aga, must be a whole number >= 1, received None",
        ),
        (
            lambda: simulate.settings_of("gossip_final", "ring", 0, 10),
            r"H must be a whole number of steps >= 1.*received H=0",
        ),
        (
            lambda: simulate.from_keras(
                simulated.keras_network(), keras.losses.MeanSquaredError("sum"), 0, 0
            ),
            r"mean_squared_error has reduction='sum': its scale would depend on how many samples",
        ),
        (
            lambda: simulate.Problem(None, (np.zeros((2, 3)), np.zeros((2, 4))), np.zeros(1)),
            r"agree in the first two sizes, received shapes \[\(2, 3\), \(2, 4\)\]",
        ),
        (
            lambda: simulate.Problem(None, (np.zeros((2, 0)),), np.zeros(1)),
            "at least one node and one sample, received",
        ),
        (
            lambda: simulate.Problem(None, (np.zeros((2, 3)),), np.zeros(1, int)),
            r"vector \[d\] of float32 or float64, received shape \(1,\) of int64",
        ),
        (
            lambda: simulate.from_keras(keras.Sequential([keras.layers.Dense(1)]), "mse", 0, 0),
            r"no trainable variables. Build it",
        ),
        (
            lambda: simulate.from_keras(
                keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()]),
                "mse",
                0,
                0,
            ),
            r"this model also has .*moving_mean.*GroupNormalization",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [simulate.logistic, simulate.quadratic])
def test_data_that_do_not_fit_are_not_begun(make):
    with pytest.raises(MemoryError, match=r"1000000000 nodes needs about [\d,.]+ GiB .*has \d"):
        make(10**9)


def test_nodes_that_do_not_fit_are_not_begun():
    data = (np.broadcast_to(np.float32(0), (10**8, 1)),)  # takes no memory
    problem = simulate.Problem(lambda x, _: x[0], data, np.zeros(1000, np.float32))
    with pytest.raises(MemoryError, match=r"100000000 nodes x 2 trials x 1000 parameters needs"):
        simulate.Simulation(problem, "ring", trials=2)
    small = simulate.Problem(problem.loss, (data[0][: 10**6],), np.zeros(1, np.float32))
    with pytest.raises(MemoryError, match=r"The complete graph of 1000000 ranks needs about"):
        simulate.Simulation(small, "complete")


def test_batches_and_blocks_count_before_they_are_made(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    # 4 nodes x 1000 samples x 50 floats are 0.8 MB, and as much again in blocks.
    data = (np.zeros((4, 1000, 50), np.float32),)
    problem = simulate.Problem(lambda x, _: x[0], data, np.zeros(1, np.float32))
    with pytest.raises(MemoryError, match=r"A simulation of 4 nodes x 1 trials x 1 parameters"):
        simulate.Simulation(problem)
    few = simulate.Problem(problem.loss, (data[0][:, :500],), np.zeros(1, np.float32))
    first = simulate.Simulation(few)
    monkeypatch.setattr(memory, "available", lambda: 5 * 10**5)
    simulate.Simulation(few, trials=2)  # its batches are there
    with pytest.raises(MemoryError):
        simulate.Simulation(few, seed=1)
    assert first.step == 0


def held(problem) -> int:
    """How many lists of tensors of a problem are in memory."""
    return len([key for key in list(tensors._in_use) if problem in key])


def test_simulations_of_one_problem_share_its_data():
    problem = simulate.quadratic(5, samples=6)
    one, other = (simulate.Simulation(problem, name, batch_size=4) for name in ("ring", "grid"))
    assert held(problem) == 1  # the batches of both
    one.excess(), other.excess()
    assert held(problem) == 2  # and the blocks
    another = simulate.Simulation(problem, batch_size=4, seed=1)
    assert held(problem) == 3  # other batches
    del one, other, another
    gc.collect()
    assert held(problem) == 0


@pytest.mark.parametrize("nodes", [1, 6, 7, 11])
def test_the_mean_loss_is_that_of_all_samples_however_they_are_cut(nodes, monkeypatch):
    monkeypatch.setattr(tensors, "_BLOCK", 33)  # three nodes of 11 samples
    problem = simulate.quadratic(nodes, heterogeneity=1, samples=11)
    simulation = simulate.Simulation(problem, trials=2, step_size=0.05)
    simulation.advance(3)
    blocks, rest = tensors.shared(tensors.blocks, problem)
    together = min(nodes, 3)
    assert blocks[0].shape == (nodes // together, 11 * together, 10)
    assert len(rest[0]) == 11 * (nodes % together)
    a, b = (array.reshape(-1, *array.shape[2:]).astype(np.float64) for array in problem.data)
    expected = [
        np.mean((a @ mean - b) ** 2) / 2 - problem.minimum for mean in simulation.mean.numpy()
    ]
    np.testing.assert_allclose(simulation.excess(), expected, rtol=1e-5)


def compared(trials: int, **transients) -> dict:
    """The content of a JSON file after 200 steps, measured every 2."""
    methods = {
        name: {
            "mean": [0.5, 0.25],
            "standard_error": [0.1, 0.02],
            "transient": transient,
            "global_averages": 10.0,
        }
        for name, transient in {"parallel": 2, **transients}.items()
    }
    steps = list(range(2, 201, 2))
    common = {"evaluated_at": steps, "trials": trials, "step_size": 0.2, "transient_factor": 1.1}
    return common | {"methods": methods}


def test_a_stage_is_reached_only_if_it_holds_for_the_last_tenth():
    text = report.table(compared(3, gossip=None, local=200, slowmo=182, pga=180, aga=2))
    stages = {line.split()[0]: line[38:58].strip() for line in text.splitlines()[1:7]}
    assert stages == {
        "parallel": "-",
        "gossip": "not reached",
        "local": "not reached",  # within the bound in its last measurement alone
        "slowmo": "not reached",
        "pga": "180",
        "aga": "at most 2",  # it may have been there before the first measurement
    }
    assert "2.500e-01 ± 2e-02" in text and "mean over 3 trials" in text


def test_one_trial_is_not_a_ranking():
    text = report.table(compared(1, pga=180))
    assert "±" not in text
    assert "One trial has no standard error: the differences may be chance." in text


def command(*flags):
    return nursery.run(["-m", "tf_gossip_pga.simulate", *flags])


@pytest.mark.slow
def test_the_command_writes_curves_and_a_figure(tmp_path):
    output = tmp_path / "new" / "simulation.json"
    settings = {"problem": "logistic", "nodes": 6, "topology": "grid", "H": 5, "iterations": 30}
    settings |= {"trials": 3, "batch_size": 8, "heterogeneity": 1.0, "step_size": 0.5, "seed": 3}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--algorithm=local", "--algorithm=gossip", f"--output={output}"]
    ended = subprocess.run(
        [sys.executable, "-m", "tf_gossip_pga.simulate", *flags],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads(output.read_text())
    assert {name: content[name] for name in settings} == settings
    assert list(content["methods"]) == ["parallel", "local", "gossip"]
    problem = simulate.logistic(6, 1.0, seed=3)
    every = simulate.compare(
        problem, ["local", "gossip"], "grid", 5, 30, trials=3, batch_size=8, step_size=0.5, seed=3
    )
    expected = every["gossip"]
    found = content["methods"]["gossip"]
    assert content["evaluated_at"] == expected.steps.tolist() == list(range(1, 31))
    np.testing.assert_allclose(found["mean"], expected.mean, atol=1e-6)
    np.testing.assert_allclose(found["standard_error"], expected.standard_error, atol=1e-6)
    for name, curve in every.items():
        transient = content["methods"][name]["transient"]
        assert transient == simulate.transient(curve, every["parallel"])
    assert content["methods"]["parallel"]["transient"] == 1
    assert content["methods"]["local"]["transient"] is None
    assert content["minimum"] == problem.minimum
    assert content["command"].startswith("python -m tf_gossip_pga.simulate --problem=logistic")
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_run_that_diverges_says_so_and_writes_what_json_has(tmp_path):
    output = tmp_path / "simulation.json"
    flags = ["--problem=quadratic", "--nodes=2", "--iterations=200", "--trials=2", "--batch_size=1"]
    ended = command(*flags, "--step_size=9", "--algorithm=gossip", f"--output={output}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert content["methods"]["parallel"]["mean"][-1] is None
    assert content["methods"]["gossip"]["transient"] is None
    line = next(line for line in ended.stdout.splitlines() if line.startswith("gossip  "))
    assert line.split()[1:4] == ["diverged", "not", "reached"]
    assert "Try a smaller --step_size than 9." in ended.stdout
    assert "\x1b" not in ended.stdout and "\r" not in ended.stdout  # nor a progress bar: a file
    assert "Warning" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--nodes=6", "--topology=hypercube"],
            "simulate: hypercube needs a number of ranks that is a power of two, received n=6",
        ),
        (["--algorithm=sgd"], "simulate: Unknown algorithm 'sgd'"),
        (["--H=0"], "flag --H=0: 0 is not a positive integer"),
        (["--iterations=0"], "flag --iterations=0: 0 is not a positive integer"),
        (["--nodes=0"], "flag --nodes=0: 0 is not a positive integer"),
        (["--seed=-1"], "flag --seed=-1: -1 is not a non-negative integer"),
        (["--output=curves.png"], "simulate: --output=curves.png: the name must end in .json"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, flags, message):
    ended = command(f"--output={tmp_path / 'no.json'}", *flags)
    assert ended.returncode == 1
    assert message in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_part_of_the_package():
    assert pga.simulate is simulate
    assert set(simulate.__all__) == {name for name in simulate.__all__ if hasattr(simulate, name)}
