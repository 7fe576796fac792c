"""Run exchanges of parameters without training.

This is the only benchmark module that imports from `tf_gossip_pga.exchange`.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import timing

if TYPE_CHECKING:
    import tensorflow as tf

    from tf_gossip_pga.exchange.averager import Averager

# 25 million parameters, 100 MB of float32, with the mix of sizes of a typical network.
_SHAPES = [(2048, 4096), *[(1024, 2048)] * 6, *[(512, 512)] * 16, *[(512,)] * 64]


def shapes(megabytes: float) -> list[tuple[int, ...]]:
    """Return shapes of parameters with a given total size in float32.

    Args:
      megabytes: the size in MB, approximately.
    """
    scale = megabytes / 100
    return [(max(1, int(shape[0] * scale)), *shape[1:]) for shape in _SHAPES]


def bytes_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the size in bytes of float32 parameters with the given shapes."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes)


def variables_of(shapes: Sequence[tuple[int, ...]]) -> "list[tf.Variable]":
    """Return random parameters with the given shapes."""
    import tensorflow as tf

    return [tf.Variable(tf.random.normal(shape)) for shape in shapes]


def synchronous_strategy() -> "tf.distribute.Strategy":
    """Return the `MultiWorkerMirroredStrategy` of all workers."""
    from tf_gossip_pga.exchange import process

    return process.active().all_workers


def all_reduce(value: "tf.Tensor") -> Callable[[], object]:
    """Return a function that runs the all-reduce of MultiWorkerMirroredStrategy.

    Args:
      value: the tensor to reduce.
    """
    import tensorflow as tf

    strategy = synchronous_strategy()

    @tf.function(autograph=False)
    def all_reduce():
        def replica():
            replicas = tf.distribute.get_replica_context()
            return replicas.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(value))

        return strategy.run(replica)

    return all_reduce


def averager(
    variables: "Sequence[tf.Variable]", topology: str, wire_dtype: str = "float32"
) -> "Averager":
    """Return an averager that gossips variables and averages them globally.

    Args:
      variables: the parameters.
      topology: name of the topology.
      wire_dtype: wire format of gossips. Default `"float32"`.
    """
    from tf_gossip_pga.algorithm.topology import BY_NAME
    from tf_gossip_pga.exchange import process, wire
    from tf_gossip_pga.exchange.averager import Averager, Patience, Variables

    session = process.active()
    return Averager(
        session,
        BY_NAME[topology](session.cluster.size),
        Variables(list(variables)),
        Patience(timing.PATIENCE_S, timing.PATIENCE_S),
        wire.resolve(wire_dtype),
    )


def default_topology() -> str:
    """Return the name of the topology that `GossipPGA` uses over the transport of this cluster."""
    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import process

    session = process.active()
    return topology.default(session.size, session.transport.pairs).name


def print_messages(variables: "Sequence[tf.Variable]", topology: str) -> None:
    """Print, on rank 0, the transport and the messages of a gossip and of a global average.

    Args:
      variables: the parameters.
      topology: name of the topology.
    """
    import tensorflow as tf

    from tf_gossip_pga.algorithm.topology import BY_NAME
    from tf_gossip_pga.exchange import buckets, message_plan, process, wire

    session = process.active()
    if session.place:
        return
    transport, graph = session.transport, BY_NAME[topology](session.size)
    layout = buckets.Bucket(variables, transport.message_bytes).layout
    full = wire.resolve("float32")
    # A global average also tells which ranks had parameters that were not finite.
    averaged = [*layout, (session.size, tf.float32)]
    print(f"{session.size} workers over {transport.name}; messages of rank 0:")
    for name, messages in (
        ("gossip", message_plan.of_gossip(layout, graph, 0, 0, transport, full)),
        ("global average", message_plan.of_mean(averaged, transport)),
    ):
        print(f"  {name}: {message_plan.described(messages)}")


def gossip(averager: "Averager") -> Callable[[], object]:
    """Return a function that runs the next gossip round on each call."""
    rounds = itertools.count()
    return lambda: averager.gossip(next(rounds), "the benchmark")


def global_average(averager: "Averager") -> Callable[[], object]:
    """Return a function that averages globally."""
    return lambda: averager.global_average("the benchmark")


def gossip_during(averager: "Averager", step: Callable[[], None]) -> Callable[[], object]:
    """Return a function that gossips while a step changes the parameters, as with overlap.

    Args:
      averager: the averager of the parameters.
      step: function that changes the parameters, in TensorFlow operations.
    """
    from tf_gossip_pga.exchange.traced import Traced

    rounds, change = itertools.count(), Traced(step)

    def exchange():
        averager.start_gossip(next(rounds), "the benchmark")
        change()
        averager.finish_gossip()

    return exchange


def traced() -> int:
    """Return how many of the package's functions this process has traced so far."""
    from tf_gossip_pga.exchange.traced import Traced

    return Traced.total
