"""Decentralised training for Keras 3 on TensorFlow: Gossip-PGA and its family in one callback.

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
  WorkerLost: what it raises when another worker died or does not answer.
  topology, Topology: who averages with whom.
  plan: how long a step will take, and which algorithm to take: `pga.plan.predict(…)`, or
    `python -m tf_gossip_pga.plan`.
  simulate: the same with virtual workers, on one device.
"""

import importlib

__version__ = "0.1.0"

# Loaded when first used, so that the launcher and TF_CONFIG's errors need no TensorFlow.
_ROOM_OF = {
    "AdaptivePeriod": "algorithm.schedule",
    "Checkpoint": "checkpoint.checkpoint",
    "Cluster": "cluster.cluster",
    "GossipPGA": "training.callback",
    "Topology": "algorithm.topology",
    "WorkerLost": "errors",
    "initialize": "exchange.collectives",
    "plan": "plan",
    "simulate": "simulate",
    "topology": "algorithm.topology",
}

__all__ = list(_ROOM_OF)


def __getattr__(name: str):
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = importlib.import_module(f"{__name__}.{_ROOM_OF[name]}")
    return room if _ROOM_OF[name].endswith(name) else getattr(room, name)


def __dir__():
    return __all__
