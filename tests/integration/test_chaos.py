"""Kills at random moments, as `python tests/chaos.py --runs=60` has them; here a few seeds."""

import pytest

from tests import chaos
from tests.support import nursery

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed_loss():
    with nursery.forks():
        return chaos.run([], {"H": chaos.PERIOD, "topology": "ring"}, workers=2).results[0]["loss"]


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("seed", range(100, 106))
def test_what_is_left_finishes_with_one_model(seed, returning, undisturbed_loss):
    events = (chaos.plan_of_returns if returning else chaos.plan)(seed)
    with nursery.forks():
        outcome = chaos.run(events, chaos.settings(seed, returning))
    assert chaos.problem(events, outcome, undisturbed_loss) is None, outcome.output
