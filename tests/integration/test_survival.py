"""Workers die, and the others finish the same `fit`: real processes, kills at chosen moments."""

import json

import pytest

from benchmarks import links
from tests import chaos
from tests.chaos import Event
from tests.support import checkpoints, nursery, workers
from tf_gossip_pga.checkpoint import files
from tf_gossip_pga.cluster import tf_config as cluster_lib
from tf_gossip_pga.errors import ExchangeBroken

pytestmark = pytest.mark.multiprocess

USUAL = {"H": chaos.PERIOD, "topology": "ring"}

# Of each kind of moment one; rank 0; two at once; one after the other; down to one.
RUNS = {
    "the chief in mid-epoch": ([Event(0, 20, "computing")], USUAL),
    "in a global average, with overlap in int8": (
        [Event(2, 5 * chaos.PERIOD, "exchange")],
        {**USUAL, "topology": "hypercube", "overlap": True, "wire_dtype": "int8"},
    ),
    "two at once in validation": (
        [Event(1, chaos.STEPS, "validation"), Event(3, chaos.STEPS, "validation")],
        {"H": None, "topology": "one_peer_exponential"},
    ),
    "down to one, with an adaptive period": (
        [Event(0, 7, "exchange"), Event(3, 2 * chaos.STEPS, "epoch end"), Event(1, 41, "exchange")],
        {"H": 0, "topology": "ring"},
    ),
}
SLOW_RUNS = ["in a global average, with overlap in int8", "down to one, with an adaptive period"]


def _with_chief(addresses, rank: int) -> str:
    """As `to_tf_config` makes it, with rank 0 in a job of its own."""
    task = {"type": "worker", "index": rank - 1} if rank else {"type": "chief", "index": 0}
    cluster = {"chief": addresses[:1], "worker": addresses[1:]}
    return json.dumps({"cluster": cluster, "task": task})


def _run(*arguments, **settings) -> chaos.Outcome:
    with nursery.forks():
        return chaos.run(*arguments, **settings)


@pytest.fixture(scope="module")
def undisturbed_loss():
    return _run([], USUAL, workers=2).results[0]["loss"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW_RUNS else ()) for name in RUNS],
)
def test_the_survivors_finish_with_one_model(name, undisturbed_loss, monkeypatch):
    events, arguments = RUNS[name]
    if "chief" in name:
        monkeypatch.setattr(cluster_lib, "to_tf_config", _with_chief)
    outcome = _run(events, arguments)
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output


def test_a_stop_of_a_few_seconds_is_no_loss(undisturbed_loss):
    events = [Event(2, 12, "computing", kind="stop", seconds=5)]
    outcome = _run(events, USUAL)
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output
    assert all(result["lost"] == [] for result in outcome.results.values())


# Rank 0 and another come back; rank 0 dies while another is taken in.
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_who_comes_back_finishes_like_all(seed, undisturbed_loss):
    events = chaos.plan_of_returns(seed)
    outcome = _run(events, chaos.settings(seed, returning=True))
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output


@pytest.mark.slow  # the simulation cuts networks in every run
def test_of_two_sides_of_a_cut_the_larger_continues(undisturbed_loss):
    try:
        with links.hosts(3, 1000) as hosts:
            events = [Event(0, 20, "computing", kind="cut")]
            outcome = _run(events, {**USUAL, "timeout_s": 6}, 3, hosts.flag)
    except links.NoHostsError as reason:
        pytest.skip(f"no hosts of their own here: {reason}")
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output
    assert outcome.exit_codes[0]
    assert (
        "Rank 0 ends: it cannot regroup with rank 1 and rank 2, which may be continuing"
        in outcome.output
    )


# Exchanges that a rank loses though the others have completed them, or continue meanwhile; the last
# of them decides that all stop.
MISSED = {
    2: [1, "the gossip of step 2"],
    4: [0, "the global average of step 4"],
    "an epoch's end": [2, "the end of epoch 1"],
    "validation": [1, "the validation after step 10"],
    "checkpoint": [0, "the checkpoint after step 10"],
    13: [2, "the gossip of step 13"],
    16: [1, "the global average of step 16"],
}


def _lossy_fit(cluster, folder, **arguments):
    """Trains while `MISSED` happens, and nobody dies."""
    import contextlib
    import time

    import keras
    import numpy as np

    import tf_gossip_pga as pga
    from tf_gossip_pga.coordination import watchdog

    missed = [doing for rank, doing in MISSED.values() if rank == cluster.rank]
    deadline = watchdog.Watchdog.deadline

    @contextlib.contextmanager
    def lossy(self, doing, timeout_s):
        with deadline(self, doing, timeout_s) as wait:
            yield wait
        if doing in missed:
            missed.remove(doing)
            time.sleep(0.3)  # so that the others continue as far as they can
            raise ExchangeBroken(doing, "lost in a test")

    watchdog.Watchdog.deadline = lossy
    x, y = chaos.data(cluster.rank)
    keras.utils.set_random_seed(cluster.rank)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    if arguments["H"] == "adaptive":
        arguments["H"] = pga.AdaptivePeriod(initial=4, exponent=0.0)
    if "outer_optimizer" in arguments:
        arguments["outer_optimizer"] = pga.Outer(*arguments["outer_optimizer"])
    gossip = pga.GossipPGA(on_worker_lost="continue", timeout_s=30, **arguments)
    checkpoint = pga.Checkpoint(gossip, folder)

    def stop(batch, logs):
        if cluster.rank == 2 and gossip.step == 15:
            model.stop_training = True

    history = model.fit(
        x,
        y,
        batch_size=8,
        steps_per_epoch=5,
        epochs=6,
        verbose=0,
        validation_data=chaos.data(-1),
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=stop), gossip, checkpoint],
    )
    logs = {name: values for name, values in history.history.items() if "seconds" not in name}
    return {
        "weights": [np.asarray(weight).tolist() for weight in model.get_weights()],
        "step": gossip.step,
        "steps by kind": [gossip.gossip_steps, gossip.global_steps],
        "distances": gossip.distances,
        "state": gossip.state,
        "outer": checkpoints.digests_of_outer(gossip),
        "logs": logs,
        "missed": missed,
    }


@pytest.mark.parametrize(
    ("H", "settings"),
    [
        (4, {"outer_optimizer": [0.7, 0.9, True]}),  # the others have taken a step that one missed
        pytest.param(4, {"optimizer_state": "average"}, marks=pytest.mark.slow),
        pytest.param("adaptive", {"overlap": True}, marks=pytest.mark.slow),
    ],
)
def test_who_misses_an_exchange_learns_what_it_has_decided(tmp_path, H, settings):  # noqa: N803
    results = workers.run(_lossy_fit, 3, folder=str(tmp_path), H=H, **settings)
    for each in results:
        assert each == results[0]
    assert not results[0]["missed"]
    assert results[0]["step"] == 16  # the fourth global average, of which rank 2 wanted to stop
    assert len(results[0]["logs"]["loss"]) == 4
    assert files.CheckpointFiles(tmp_path, keep=3).complete()
