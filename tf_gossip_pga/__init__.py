"""Train Keras 3 models without an all-reduce in every step: Gossip-PGA in one callback.

After each local optimizer step, a worker averages its parameters with those of its neighbors in a
graph (gossip). After every H-th step, all workers average globally instead::

    import tf_gossip_pga as pga

    cluster = pga.initialize()                        # call it before any tensor
    dataset = cluster.shard(dataset).batch(32)        # 32 per worker, 32 * cluster.size globally
    model.fit(dataset, callbacks=[pga.GossipPGA(H=6)])

The arguments of `GossipPGA` select the algorithm: `H=1` is Parallel SGD, `H=None` is Gossip SGD,
`topology="disconnected"` is Local SGD, and `H=AdaptivePeriod()` is Gossip-AGA. To start several
workers on one machine, run::

    python -m tf_gossip_pga.launch --workers=4 SCRIPT

Contents:

- `initialize`, `Cluster`: connect this process to the other workers.
- `GossipPGA`: the callback that averages.
- `Checkpoint`: the callback that saves a run and resumes it.
- `Timeline`: the callback that records what all ranks spend their time on, for a trace viewer.
- `TensorBoard`: the callback that writes what `GossipPGA` measures as curves.
- `Report`: the callback that writes a page about a run: curves, waits, lost workers, settings.
- `PREEMPTED`: the exit code of a job that saved a checkpoint after SIGTERM and can continue.
- `run`: run a function in several worker processes on this machine, for example in a notebook.
- `AdaptivePeriod`: a period H that adapts to the training loss.
- `AutoPeriod`: a period H that adapts to measured times and to how far the replicas drift apart.
- `Outer`: an outer optimizer for global averages (SlowMo, DiLoCo).
- `WorkerLost`: the exception raised when another worker dies or does not answer.
- `topology`, `Topology`: who averages with whom, and with what weights.
- `plan`: predict the step time and recommend an algorithm, with `pga.plan.predict(…)` or
  `python -m tf_gossip_pga.plan`.
- `simulate`: run these algorithms with virtual workers on one device.

Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers resolve the names in `_ROOM_OF` here
    from tf_gossip_pga import plan, simulate
    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.algorithm.auto import AutoPeriod
    from tf_gossip_pga.algorithm.graph import Topology
    from tf_gossip_pga.algorithm.outer import Outer
    from tf_gossip_pga.algorithm.schedule import AdaptivePeriod
    from tf_gossip_pga.checkpoint.callback import Checkpoint
    from tf_gossip_pga.cluster.cluster import Cluster
    from tf_gossip_pga.errors import PREEMPTED, WorkerLost
    from tf_gossip_pga.exchange.process import initialize
    from tf_gossip_pga.launch.function import run
    from tf_gossip_pga.observe.report import Report
    from tf_gossip_pga.observe.tensorboard import TensorBoard
    from tf_gossip_pga.observe.timeline import Timeline
    from tf_gossip_pga.training.callback import GossipPGA

__version__ = "0.2.0"

__all__ = [
    "PREEMPTED",
    "AdaptivePeriod",
    "AutoPeriod",
    "Checkpoint",
    "Cluster",
    "GossipPGA",
    "Outer",
    "Report",
    "TensorBoard",
    "Timeline",
    "Topology",
    "WorkerLost",
    "initialize",
    "plan",
    "run",
    "simulate",
    "topology",
]

# Each public name, and the module that defines it. A module is imported when one of its names is
# first used, so that the launcher and the checks of TF_CONFIG do not wait for TensorFlow to load.
_ROOM_OF = {
    "AdaptivePeriod": "algorithm.schedule",
    "AutoPeriod": "algorithm.auto",
    "Checkpoint": "checkpoint.callback",
    "Cluster": "cluster.cluster",
    "GossipPGA": "training.callback",
    "Outer": "algorithm.outer",
    "PREEMPTED": "errors",
    "Report": "observe.report",
    "TensorBoard": "observe.tensorboard",
    "Timeline": "observe.timeline",
    "Topology": "algorithm.graph",
    "WorkerLost": "errors",
    "initialize": "exchange.process",
    "plan": "plan",
    "run": "launch.function",
    "simulate": "simulate",
    "topology": "algorithm.topology",
}


if not TYPE_CHECKING:  # with __getattr__ visible, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _ROOM_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = importlib.import_module(f"{__name__}.{_ROOM_OF[name]}")
        if name == "GossipPGA":  # which is below `observe`, and so cannot import it
            importlib.import_module(f"{__name__}.observe.launched").connect()
        return room if _ROOM_OF[name].endswith(name) else getattr(room, name)


def __dir__() -> list[str]:
    return __all__
