"""Kills at random moments, as `python tests/chaos.py --runs=60` has them; here a few seeds."""

import pytest

from tests import chaos
from tests.support import nursery

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed():
    """The loss of a run without events, by number of workers."""
    usual = {"H": chaos.PERIOD, "topology": "ring"}
    with nursery.forks():
        return {size: chaos.run([], usual, size).results[0]["loss"] for size in (2, 3)}


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("seed", range(100, 103))
def test_what_is_left_finishes_with_one_model(seed, returning, undisturbed):
    events = (chaos.plan_of_returns if returning else chaos.plan)(seed)
    with nursery.forks():
        outcome = chaos.run(events, chaos.settings(seed, returning))
    kills = sum(event.kind == "kill" for event in events)
    loss = undisturbed[chaos.WORKERS - min(2, kills)]
    assert chaos.problem(events, outcome, loss) is None, outcome.output
