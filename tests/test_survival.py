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
    "at the very end": ([Event(1, chaos.EPOCHS * chaos.STEPS, "epoch end")], USUAL),
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


def test_too_few_end_with_the_reason():
    events = [Event(3, 20, "computing")]
    outcome = chaos.run(events, {**USUAL, "min_workers": 4})
    assert not outcome.results
    assert all(outcome.exit_codes)
    assert "3 of 4 workers are left, fewer than min_workers=4" in outcome.output
