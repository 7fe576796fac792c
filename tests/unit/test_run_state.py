"""The topology of a run whose user has chosen none, as workers are lost and join again."""

import types

import pytest

from tf_gossip_pga.exchange.transport import NCCL, RING
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.settings import Settings


def _run(session, topology=None) -> RunState:
    settings = Settings(
        H=6,
        topology=topology,
        gossip_every=1,
        optimizer_state="local",
        outer_optimizer=None,
        overlap=False,
        wire_dtype="float32",
        timeout_s=60.0,
        on_worker_lost="continue",
        min_workers=1,
        local=(),
        size=4,
    )
    return RunState(settings, session)


@pytest.mark.parametrize(
    ("transport", "topology", "of_four"),
    [
        (NCCL, None, "hypercube"),
        (RING, None, "one_peer_exponential"),
        (NCCL, "one_peer_exponential", "one_peer_exponential"),
    ],
)
def test_the_topology_follows_the_number_of_members(transport, topology, of_four):
    run = _run(types.SimpleNamespace(size=4, transport=transport), topology)
    assert run.topology.name == of_four
    for size, name in [(3, "one_peer_exponential"), (4, of_four)]:
        run.use_topology_for(size)
        assert (run.topology.name, run.topology.size) == (name, size)


def test_a_joining_worker_uses_the_default_over_the_transport_of_the_members():
    session = types.SimpleNamespace(size=4, transport=RING)
    run = _run(session)
    assert run.topology.name == "one_peer_exponential"
    session.transport = NCCL  # the same number of members as before
    run.use_topology_for(4)
    assert run.topology.name == "hypercube"
