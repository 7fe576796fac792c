"""Run scripts that were written for Horovod's Keras API, with only the import changed.

Replace `import horovod.keras as hvd` or `import horovod.tensorflow.keras as hvd` by::

    import tf_gossip_pga.horovod as hvd

Horovod averages gradients. This module averages parameters after every step instead: its
`BroadcastGlobalVariablesCallback` is a `GossipPGA` with `H=1` (Parallel SGD). For SGD, with or
without momentum, both give the same parameters, because an SGD step is linear in the gradient. For
other optimizers, such as Adam, they do not: see docs/guides/from-horovod.md.

Contents:

- `init`, `shutdown`, `is_initialized`, `rank`, `size`, `local_rank`, `local_size`, `cross_rank`,
  `cross_size`: connect this process to the other workers, and find its place among them.
- `DistributedOptimizer`, `load_model`, `Compression`: mark an optimizer, so that training it raises
  an error if no callback averages.
- `callbacks`: the callbacks that average, and those that set learning rates.
- `allreduce`, `allgather`, `broadcast`, `allgather_object`, `broadcast_object`,
  `broadcast_variables`, `barrier`, and `Average`, `Sum`, `Min`, `Max`: exchange values.

A name of Horovod that is missing here raises an `AttributeError` that says what to use instead.

Source of the interface: Sergeev and Del Balso, "Horovod: fast and easy distributed deep learning in
TensorFlow", 2018, https://arxiv.org/abs/1802.05799.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers resolve the names in `_ROOM_OF` here
    from tf_gossip_pga.horovod import callbacks
    from tf_gossip_pga.horovod.collectives import (
        Average,
        Max,
        Min,
        Sum,
        allgather,
        allgather_object,
        allreduce,
        barrier,
        broadcast,
        broadcast_object,
        broadcast_variables,
    )
    from tf_gossip_pga.horovod.optimizer import Compression, DistributedOptimizer, load_model
    from tf_gossip_pga.horovod.processes import (
        cross_rank,
        cross_size,
        init,
        is_initialized,
        local_rank,
        local_size,
        rank,
        shutdown,
        size,
    )

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Max",
    "Min",
    "Sum",
    "allgather",
    "allgather_object",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "callbacks",
    "cross_rank",
    "cross_size",
    "init",
    "is_initialized",
    "load_model",
    "local_rank",
    "local_size",
    "rank",
    "shutdown",
    "size",
]

# The module of each name, imported when the name is first used.
_ROOM_OF = {
    **dict.fromkeys(("Compression", "DistributedOptimizer", "load_model"), "optimizer"),
    **dict.fromkeys(("Average", "Max", "Min", "Sum"), "collectives"),
    **dict.fromkeys(("allgather", "allreduce", "barrier", "broadcast"), "collectives"),
    **dict.fromkeys(("allgather_object", "broadcast_object", "broadcast_variables"), "collectives"),
    **dict.fromkeys(("cross_rank", "cross_size", "local_rank", "local_size"), "processes"),
    **dict.fromkeys(("init", "is_initialized", "rank", "shutdown", "size"), "processes"),
}

_SUBSETS = "All workers train together. There are no subsets of workers."
_TAPE = (
    "This package averages parameters, not gradients. Train with model.fit, or call the hooks of a "
    "keras.callbacks.CallbackList that contains a pga.GossipPGA in your own loop."
)
_VALUES = "Use hvd.allreduce, hvd.allgather or hvd.broadcast."
_BUILT = "Exchanges travel over TensorFlow's collectives, so nothing has to be built."
_TRACE = "Pass pga.Timeline to fit, or start the script with `gossip-pga run --timeline`."

# Names of Horovod without an equivalent, and what to use instead.
_INSTEAD = {
    "Adasum": "Pass op=hvd.Average.",
    "Product": _VALUES,
    "DistributedGradientTape": _TAPE,
    "PartialDistributedGradientTape": _TAPE,
    "PartialDistributedOptimizer": (
        "To keep layers local, pass pga.GossipPGA(H=1, local=[…]) to fit instead of "
        "BroadcastGlobalVariablesCallback."
    ),
    "ProcessSet": _SUBSETS,
    "add_process_set": _SUBSETS,
    "global_process_set": _SUBSETS,
    "remove_process_set": _SUBSETS,
    "SyncBatchNormalization": (
        "Use keras.layers.BatchNormalization. Every global average includes its moving statistics."
    ),
    "alltoall": _VALUES,
    "reducescatter": _VALUES,
    "grouped_allreduce": _VALUES,
    "grouped_allgather": _VALUES,
    "broadcast_global_variables": (
        "TensorFlow 2 has no global variables. Pass hvd.callbacks."
        "BroadcastGlobalVariablesCallback(0) to fit, which also broadcasts, or call "
        "hvd.broadcast_variables(model.variables, root_rank=0)."
    ),
    "elastic": (
        "Use pga.GossipPGA(H=1, on_worker_lost='continue') instead of "
        "BroadcastGlobalVariablesCallback, and pga.Checkpoint."
    ),
    "join": (
        "All ranks must run the same number of steps. Use cluster.shard(dataset), where cluster is "
        "pga.initialize(), or pass steps_per_epoch to fit."
    ),
    "run": "Start the script with `gossip-pga run`, or call a function with pga.run.",
    "start_timeline": _TRACE,
    "stop_timeline": _TRACE,
    **dict.fromkeys(
        (
            *("ccl_built", "cuda_built", "ddl_built", "gloo_built", "gloo_enabled", "mpi_built"),
            *("mpi_enabled", "mpi_threads_supported", "nccl_built", "rocm_built"),
        ),
        _BUILT,
    ),
}


if not TYPE_CHECKING:  # with __getattr__ visible, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name == "callbacks":
            return importlib.import_module(f"{__name__}.callbacks")
        if name in _ROOM_OF:
            return getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
        if name in _INSTEAD:
            raise AttributeError(
                f"{__name__} has no {name!r}. {_INSTEAD[name]} See docs/guides/from-horovod.md."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
