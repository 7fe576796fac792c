"""Real processes against the NumPy oracle, step by step and rank by rank."""

import numpy as np
import pytest

from tests.support import deadlines, graphs, product, reference
from tf_gossip_pga.algorithm import topology

pytestmark = pytest.mark.multiprocess


STEPS, BATCH, RATE, MOMENTUM = 12, 4, 0.1, 0.9


TOLERANCE = 1e-5


def _cases(n: int) -> list[tuple[str, int | None]]:
    """Return topologies with H=3, where both kinds of step occur, and other periods once each.

    Up to 4 ranks all topologies; beyond that, where many processes share the cores, those whose
    graphs differ in kind from the ones of fewer ranks. `_other_cases` has the rest.
    """
    if n == 1:
        return [("ring", 3), ("from_matrix", 1), ("one_peer_exponential", None)]
    names = _names(n)
    if n > 4:
        names = [name for name in names if name not in ("complete", "disconnected", "ring")]
    return [*((name, 3) for name in names), ("ring", 1), ("one_peer_exponential", None)]


def _other_cases(n: int) -> list[tuple[str, int | None]]:
    """Return the rest of topologies x H."""
    every = [(name, H) for name in _names(n) for H in (1, 3, None)]
    return [case for case in every if case not in _cases(n)]


def _names(n: int) -> list[str]:
    names = [*topology.BY_NAME, "from_matrix"]
    if n & (n - 1):
        names.remove("hypercube")
    return names


def train_cases(cluster, cases, copies=1, momentum=MOMENTUM, adam=False, outer=None, **arguments):
    """For each case: weights before and after the averaging of every step, and at the end.

    `outer` are the arguments of `pga.Outer`, or None.
    """
    import keras

    import tf_gossip_pga as pga

    class Record(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.weights = []

        def on_train_batch_end(self, batch, logs=None):
            self.weights.append(_flat(self.model).tolist())
            _check_devices(self.model, copies)

    if outer:
        arguments["outer_optimizer"] = pga.Outer(*outer)
    x, y = reference.batches(cluster.rank, STEPS, BATCH)
    with cluster.strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((reference.INPUTS,)),
                keras.layers.Dense(reference.HIDDEN, activation="tanh"),
                keras.layers.Dense(reference.OUTPUTS),
            ]
        )
        sgd = keras.optimizers.SGD(RATE, momentum=momentum)
        model.compile(keras.optimizers.Adam(RATE) if adam else sgd, "mse")
    results = []
    for name, H in cases:  # noqa: N806
        # Ranks begin apart, so that a broadcast that does nothing fails the test.
        model.set_weights(reference.unflatten(reference.initial_weights(seed=cluster.rank)))
        for variable in model.optimizer.variables:
            if not variable.path.endswith("learning_rate"):
                variable.assign(keras.ops.zeros_like(variable))
        before, after = Record(), Record()
        gossip = pga.GossipPGA(H=H, topology=graphs.topology_of(name, cluster.size), **arguments)
        model.fit(
            x.reshape(-1, reference.INPUTS),
            y.reshape(-1, reference.OUTPUTS),
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[before, gossip, after],
        )
        results.append([before.weights, after.weights, _flat(model).tolist()])
    return results


def _flat(model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def _check_devices(model, copies: int):
    """This worker's devices, so many, hold the same bits of every variable."""
    for variable in [*model.variables, *model.optimizer.variables]:
        found = model.distribute_strategy.experimental_local_results(variable.value)
        assert len(found) == copies
        assert len({copy.numpy().tobytes() for copy in found}) == 1, variable.path


@pytest.mark.parametrize(
    "n", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5, 8))]
)
def test_every_step_equals_the_oracle(pools, n):
    _check_cases(pools, n, _cases(n))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 8])  # one pair, an odd number, a power of two
def test_every_step_equals_the_oracle_with_every_topology_and_period(pools, n):
    _check_cases(pools, n, _other_cases(n))


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_devices_of_a_worker_are_one_with_the_whole_batch(pools, n):
    _check_cases(pools, n, [("from_matrix", 3), ("from_matrix", None)], devices=2)


def _check_cases(pools, n: int, cases, devices: int = 1):
    ranks = pools.run(train_cases, n, cases=cases, devices=devices, copies=devices)
    _check_plain(ranks, n, cases)


def _check_plain(ranks: list, n: int, cases):
    """Check training in which each exchange ends with its step and moves no mean."""
    check_training(ranks, n, cases)
    for index, (name, H) in enumerate(cases):  # noqa: N806
        before, after = (np.array([rank[index][part] for rank in ranks]) for part in range(2))
        _check_each_step(before, after, H, f"{name}, n={n}, H={H}")


def check_training(ranks: list, n: int, cases, gossip_every: int = 1, overlap=False, outer=None):
    """Compare what `train_cases` has returned on all ranks with the oracle.

    Args:
      ranks: the results of the ranks.
      n: number of ranks.
      cases: the argument of `train_cases`.
      gossip_every: number of steps from one gossip to the next. Default 1.
      overlap: whether gossips end when the next one is due. Default False.
      outer: arguments of `reference.Outer` but the period. Default None: no outer optimizer.
    """
    data = [reference.batches(rank, STEPS, BATCH) for rank in range(n)]
    for index, (name, H) in enumerate(cases):  # noqa: N806
        label = f"{name}, n={n}, H={H}"
        # [ranks, steps, parameters], [ranks, parameters]
        after, final = (np.array([rank[index][part] for rank in ranks]) for part in (1, 2))
        expected = reference.train(
            reference.initial_weights(seed=0),
            data,
            reference.matrix_of_step(graphs.topology_of(name, n), H, gossip_every),
            RATE,
            MOMENTUM,
            ends=lambda step, H=H: _end(step, H, gossip_every) if overlap else step,  # noqa: N803
            outer=reference.Outer(*outer, H) if outer else None,
        )
        np.testing.assert_allclose(
            after.transpose(1, 0, 2), expected, rtol=0, atol=TOLERANCE, err_msg=label
        )
        np.testing.assert_allclose(
            final[0], expected[-1].mean(0), rtol=0, atol=TOLERANCE, err_msg=label
        )
        assert (final == final[0]).all(), f"{label}: the ranks end with different models"
        for step in range(H, STEPS + 1, H) if H else ():
            x = after[:, step - 1]
            assert (x == x[0]).all(), f"{label}: not bit-identical after step {step}"


def _end(step: int, H: int | None, gossip_every: int) -> int | None:  # noqa: N803
    """Return the step with which an exchange with overlap ends, or None if there is none."""
    if H is not None and step % H == 0:
        return step
    end = step + gossip_every
    is_cut_off = H is not None and end // H > step // H
    return None if step % gossip_every or is_cut_off else end


WIRES = {"float32": TOLERANCE, "bfloat16": 2**-7, "int8": 1 / 127}  # the error of one gossip
BASE_2 = [("base_2", None), ("base_2", 4)]


def gossip_a_cycle_and_train(cluster, wires) -> list:
    """Return own values, the values after one cycle of base_2 for each wire, and training."""
    import tensorflow as tf

    from tf_gossip_pga.exchange import averager as averager_lib
    from tf_gossip_pga.exchange import wire

    graph = topology.base_2(cluster.size)
    own = np.random.default_rng(cluster.rank).uniform(-1, 1, size=700).astype(np.float32)
    variable, found = tf.Variable(np.zeros_like(own)), []
    for wire_dtype, overlap in wires:
        variable.assign(np.zeros_like(own))  # equal on all ranks: what lossy differences start from
        averager = averager_lib.Averager(
            product.active(),
            graph,
            averager_lib.Variables([variable]),
            averager_lib.Patience(deadlines.scaled(60), deadlines.scaled(60)),
            wire.resolve(wire_dtype),
        )
        variable.assign(own)
        for round in range(graph.rounds):
            if overlap:
                averager.start_gossip(round, "the test")
                averager.finish_gossip()
            else:
                averager.gossip(round, "the test")
        found.append(variable.numpy().tolist())
    return [own.tolist(), found, train_cases(cluster, BASE_2)]


@pytest.mark.parametrize(
    "n", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 6, 7, 12))]
)
def test_a_cycle_of_base_2_gives_every_rank_the_mean(pools, n):
    wires = [("float32", False), ("float32", True), ("bfloat16", False), ("int8", True)]
    ranks = pools.run(gossip_a_cycle_and_train, n, wires=wires)
    own = np.array([rank[0] for rank in ranks], np.float64)  # [ranks, numbers]
    mean, rounds = own.mean(axis=0), topology.base_2(n).rounds
    assert np.abs(own - mean).max() > 0.5
    for index, (wire_dtype, overlap) in enumerate(wires):
        label = f"{wire_dtype}, overlap={overlap}, n={n}"
        found = np.array([rank[1][index] for rank in ranks], np.float64)
        np.testing.assert_allclose(found.mean(0), mean, rtol=0, atol=1e-6, err_msg=label)
        tolerance = WIRES[wire_dtype] * (1 if wire_dtype == "float32" else rounds)
        np.testing.assert_allclose(found - mean, 0, rtol=0, atol=tolerance, err_msg=label)
    _check_plain([rank[2] for rank in ranks], n, BASE_2)


@pytest.mark.parametrize("n", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_overlap_equals_its_oracle(pools, n):
    cases = [(name, H) for name in ("ring", "one_peer_exponential") for H in (1, 3, None)]
    cases += [("from_matrix", 4), ("disconnected", 2)]
    ranks = pools.run(train_cases, n, cases=cases, overlap=True)
    check_training(ranks, n, cases, overlap=True)


@pytest.mark.parametrize("overlap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_gossip_every_few_steps_equals_its_oracle(pools, overlap):
    n, every = 3, 2
    # H=5 is no multiple of 2: the last gossip before an average is one step before it, or two.
    cases = [("one_peer_exponential", 6), ("ring", 5), ("from_matrix", None)]
    ranks = pools.run(train_cases, n, cases=cases, overlap=overlap, gossip_every=every)
    check_training(ranks, n, cases, every, overlap)


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "int8"])
def test_low_precision_is_as_near_as_it_says_and_moves_no_mean(pools, wire_dtype):
    n = 3
    cases = [("ring", 3), ("from_matrix", None)]
    ranks = pools.run(train_cases, n, cases=cases, wire_dtype=wire_dtype)
    for index, (name, H) in enumerate(cases):  # noqa: N806
        before, after, _ = (np.array([rank[index][part] for rank in ranks]) for part in range(3))
        _check_each_step(before, after, H, f"{wire_dtype}, {name}")
        common = reference.initial_weights(seed=0)  # what all had after the last global average
        lost = 0.0
        for step in range(1, STEPS + 1):
            x, y = after[:, step - 1], before[:, step - 1]
            if H is not None and step % H == 0:
                common = x[0]
                continue
            difference = np.abs(x - graphs.topology_of(name, n).weights(step - 1) @ y).max()
            # A difference is sent to within 1/2 of 1/127 of the largest, or of the eighth bit; a
            # rank adds at most its own error and a mean of the others'.
            largest = np.abs(y - common).max()
            step_size = {"int8": 1 / 127, "bfloat16": 2**-7}[wire_dtype]
            assert difference < 1.01 * largest * step_size + 1e-6
            lost = max(lost, difference)
        assert lost > 1e-5  # it did round


def _check_each_step(before, after, H, label):  # noqa: N803
    for step in range(1, STEPS + 1):
        x, y = after[:, step - 1], before[:, step - 1]
        if H is not None and step % H == 0:
            assert (x == x[0]).all(), f"{label}: not bit-identical after step {step}"
        scale = np.abs(y).mean()
        drift = np.abs(x.mean(0) - y.mean(0)).max() / scale
        assert drift < 1e-6, f"{label}: step {step} moved the mean by {drift:.2e} of its scale"
