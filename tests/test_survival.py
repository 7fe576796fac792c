"""Workers die, and the others finish the same `fit`: real processes, kills at chosen moments."""

import pytest

from tests import chaos
from tests.chaos import Event, links

pytestmark = pytest.mark.multiprocess

USUAL = {"H": chaos.PERIOD, "topology": "ring"}

# Of each kind of moment one; rank 0; two at once; one after the other; down to one.
RUNS = {
    "rank 0 in mid-epoch": ([Event(0, 20, "computing")], USUAL),
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


@pytest.fixture(scope="module")
def undisturbed_loss():
    return chaos.run([], USUAL, workers=2).results[0]["loss"]


@pytest.mark.parametrize("name", RUNS)
def test_the_survivors_finish_with_one_model(name, undisturbed_loss):
    events, arguments = RUNS[name]
    outcome = chaos.run(events, arguments)
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output


def test_a_stop_of_a_few_seconds_is_no_loss(undisturbed_loss):
    events = [Event(2, 12, "computing", kind="stop", seconds=5)]
    outcome = chaos.run(events, USUAL)
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output
    assert all(result["lost"] == [] for result in outcome.results.values())


def test_of_two_sides_of_a_cut_the_larger_goes_on(undisturbed_loss):
    try:
        with links.hosts(3, 1000) as hosts:
            events = [Event(0, 20, "computing", kind="cut")]
            outcome = chaos.run(events, {**USUAL, "timeout_s": 6}, 3, hosts.flag)
    except links.NoHostsError as reason:
        pytest.skip(f"no hosts of their own here: {reason}")
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output
    assert outcome.exit_codes[0]
    assert "Rank 0: rank 1 and rank 2 cannot be reached, and may be going on" in outcome.output


def test_who_is_behind_leaves_out_what_others_have_done_and_takes_their_decisions(monkeypatch):
    import types

    import tf_gossip_pga as pga

    gossip = pga.GossipPGA(H=pga.AdaptivePeriod(initial=4))
    model = types.SimpleNamespace(stop_training=False)
    monkeypatch.setattr(pga.GossipPGA, "model", model)
    period = {"H": 7, "last": 12, "initial_loss": 0.5}
    decided = {"stop": True, "stopped": True, "in consensus": True, "period": period}
    gossip._collectives = types.SimpleNamespace(
        completed=10, missed=2, decided=decided, decisions=None, check=lambda: None
    )
    gossip._divided = True
    done = []
    monkeypatch.setattr(gossip, "_unite", lambda: done.append("united"))
    exchange = lambda: done.append("exchanged") or 1.0  # noqa: E731
    assert gossip._together(exchange) is None
    assert not model.stop_training  # that was decided in the next one
    assert gossip._together(exchange) is None
    assert model.stop_training and gossip.stopped
    assert gossip.state["period"] == period
    assert gossip._together(exchange) == 1.0
    assert done == ["united", "exchanged"]
    assert gossip._collectives.completed == 13
    assert gossip._collectives.decisions == decided
