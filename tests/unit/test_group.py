"""The other ranks of a fit, without processes: the session around them is a stand-in."""

import types

import pytest

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training.group import Group
from tf_gossip_pga.training.phase import StopVote
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.settings import Settings


class TwiceSession(SoloSession):
    """A session whose exchanges all run again, as after a loss."""

    def run(self, exchange):
        exchange()
        return exchange()


def _group(session) -> Group:
    settings = Settings(
        H=6,
        topology="ring",
        gossip_every=1,
        optimizer_state="local",
        outer_optimizer=None,
        overlap=False,
        wire_dtype="float32",
        timeout_s=60.0,
        on_worker_lost="continue",
        min_workers=1,
        local=(),
        size=1,
    )
    model = types.SimpleNamespace(stop_training=False)
    return Group(session, RunState(settings, session), model, StopVote())


def test_a_value_that_a_reconciliation_may_change_is_taken_again():
    values = iter(["before", "after"])
    assert _group(TwiceSession(Cluster())).sync("the end of fit", lambda: next(values)) == ["after"]


@pytest.mark.parametrize(
    ("leaders", "transfers"),
    [([0, 2], [(1, True)]), ([1, 2], [(0, False)]), ([1], [(0, False)]), ([0], [])],
)
def test_the_lowest_leader_that_is_left_is_followed(leaders, transfers):
    """Rank 0 is lost; rank 1 is this one."""
    seen = []

    class Survivor(SoloSession):
        view = View(1, (1, 2))
        place = 0

    group = _group(Survivor(Cluster()))
    group._run.averager = types.SimpleNamespace(
        transfer_state=lambda place, is_new: seen.append((place, is_new))
    )
    group.follow(leaders)
    assert seen == transfers
