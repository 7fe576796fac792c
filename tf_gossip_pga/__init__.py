"""Decentralized training for Keras 3 on TensorFlow: Gossip-PGA and its family in one callback.

    import tf_gossip_pga as pga

    cluster = pga.initialize()                        # reads TF_CONFIG, before the first tensor
    dataset = cluster.shard(dataset).batch(32)        # this worker's part
    model.fit(dataset, callbacks=[pga.GossipPGA(H=6)])

Settings make the family: `H=1` is Parallel SGD, `H=None` Gossip SGD, `topology="disconnected"`
Local SGD, `H=AdaptivePeriod()` Gossip-AGA. Start several workers on one machine with

    python -m tf_gossip_pga.launch --workers=4 SCRIPT

Contents:
  initialize, Cluster: this process's place among the workers.
  GossipPGA: the callback.
  Checkpoint: saves the run, and resumes it.
  AdaptivePeriod: a period H that follows the training loss.
  WorkerLost: the exception raised when another worker died or does not answer.
  topology, Topology: who averages with whom.
  plan: predicts the time of a step, and recommends an algorithm: `pga.plan.predict(…)`, or
    `python -m tf_gossip_pga.plan`.
  simulate: the same algorithms with virtual workers, on one device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see of the names in `_ROOM_OF`
    from tf_gossip_pga import plan, simulate
    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.algorithm.graph import Topology
    from tf_gossip_pga.algorithm.schedule import AdaptivePeriod
    from tf_gossip_pga.checkpoint.callback import Checkpoint
    from tf_gossip_pga.cluster.cluster import Cluster
    from tf_gossip_pga.errors import WorkerLost
    from tf_gossip_pga.exchange.process import initialize
    from tf_gossip_pga.training.callback import GossipPGA

__version__ = "0.1.0"

__all__ = [
    "AdaptivePeriod",
    "Checkpoint",
    "Cluster",
    "GossipPGA",
    "Topology",
    "WorkerLost",
    "initialize",
    "plan",
    "simulate",
    "topology",
]

# Loaded when first used, so that the launcher and TF_CONFIG's errors need no TensorFlow.
_ROOM_OF = {
    "AdaptivePeriod": "algorithm.schedule",
    "Checkpoint": "checkpoint.callback",
    "Cluster": "cluster.cluster",
    "GossipPGA": "training.callback",
    "Topology": "algorithm.graph",
    "WorkerLost": "errors",
    "initialize": "exchange.process",
    "plan": "plan",
    "simulate": "simulate",
    "topology": "algorithm.topology",
}


if not TYPE_CHECKING:  # a type checker would accept any name of a module that has __getattr__

    def __getattr__(name: str) -> Any:
        if name not in _ROOM_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = importlib.import_module(f"{__name__}.{_ROOM_OF[name]}")
        return room if _ROOM_OF[name].endswith(name) else getattr(room, name)


def __dir__() -> list[str]:
    return __all__
