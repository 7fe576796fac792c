"""Measure the network, and a computation, on the running cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import topology as topology_lib

Gather: TypeAlias = Callable[[object, str, float], list]

_SMALL = 256  # elements of the exchange that measures the cost that does not depend on the size
_LEAST_LARGE, _MOST_LARGE = 1 << 20, 1 << 24  # elements of the one that measures the bandwidth
_REPETITIONS = 9
_WARM_UP, _STEPS = 3, 20
_PATIENCE_S = 600


def count(parameters: Any) -> int:
    """Return a number of parameters as it is, or how many a built Keras model trains.

    Raises:
      ValueError: neither.
    """
    number = _validate.whole(parameters, 1) or sum(map(math.prod, _shapes(parameters)))
    if number < 1:
        raise ValueError(
            "parameters must be a whole number, at least 1, or a Keras model that is built and has "
            f"trainable variables; received {parameters!r}."
        )
    return number


def _shapes(parameters: Any) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in getattr(parameters, "trainable_variables", ())]


def measure(parameters: Any, step: Callable[[], object] | None = None) -> dict[str, float]:
    """Time exchanges on the running cluster, and a computation; all ranks must call it.

    Time a gossip and a global average of 1 kB, and a one-peer gossip of the parameters (at least
    4 MiB, so that it takes clearly longer; at most 64 where only their number is given). Repeat
    each nine times, from a common start until the last rank has finished, and take medians. A small
    average has 2 (n-1) latencies and a small gossip one. That separates the latency from what any
    exchange costs; the rest of the large gossip is bandwidth. All ranks compute steps at once.

    Args:
      parameters: their number, or a built Keras model.
      step: a function that computes one training step without exchange; None: not timed.

    Returns:
      Arguments of `predict`, the same on every rank: `mbit`, `latency_ms`, `overhead_ms`; with
      `step` also `compute_ms` and `straggler_ms`, over ranks and 20 steps.

    Raises:
      RuntimeError: there is no cluster, or its exchanges are too irregular to find the bandwidth.

    Example:

        pga.initialize()
        found = plan.measure(model, lambda: model.train_on_batch(x, y))
        plan.predict(nodes=64, parameters=model, **found)
    """
    from tf_gossip_pga.exchange import process

    session = process.active()
    if session.size < 2:
        raise RuntimeError(
            "Measuring needs a running cluster, and this is one worker. Start several, for example "
            "python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure …, or set "
            "TF_CONFIG on each machine."
        )
    found = _exchanges(session, _large_shapes(parameters))
    return found if step is None else found | _computation(session.gather, step)


def _large_shapes(parameters: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the large gossip: the model's own, where they are large enough."""
    elements = count(parameters)
    own = _shapes(parameters) if elements >= _LEAST_LARGE else []
    return own or [(min(max(elements, _LEAST_LARGE), _MOST_LARGE),)]


def _exchanges(session: Any, large_shapes: list[tuple[int, ...]]) -> dict[str, float]:
    """Time three exchanges, and return what they say of the network."""
    import tensorflow as tf

    from tf_gossip_pga.exchange.averager import Averager, Patience, Variables

    graph = topology_lib.one_peer_exponential(session.size)

    def averager(shapes: list[tuple[int, ...]]) -> Any:
        variables = [tf.Variable(tf.ones(shape)) for shape in shapes]
        patience = Patience(_PATIENCE_S, _PATIENCE_S)
        return Averager(session, graph, Variables(variables), patience)

    def timed(action: Callable[[int], object]) -> float:
        # Each round is traced once, which is not to be timed.
        return _median_ms(session.gather, action, untimed=graph.rounds)

    small, large = averager([(_SMALL,)]), averager(large_shapes)
    gossip = timed(lambda round: small.gossip(round, "the measurement"))
    average = timed(lambda _: small.global_average("the measurement"))
    slow = timed(lambda round: large.gossip(round, "the measurement"))
    elements = sum(map(math.prod, large_shapes))
    return _network(session.size, elements, gossip, average, slow)


def _median_ms(gather: Gather, action: Callable[[int], object], untimed: int) -> float:
    """Return the median time until the last rank has done the action."""
    seconds = []
    for repetition in range(untimed + _REPETITIONS):
        gather(None, "the common start", _PATIENCE_S)
        started = time.perf_counter()
        action(repetition)
        seconds.append(time.perf_counter() - started)
    everyone = gather(seconds[untimed:], "the measurement", _PATIENCE_S)
    return float(1000 * np.median(np.max(everyone, axis=0)))


def _computation(gather: Gather, step: Callable[[], object]) -> dict[str, float]:
    """Time steps, one after the other on all ranks at once."""
    ends = []
    for _ in range(_WARM_UP + _STEPS + 1):
        step()
        ends.append(time.perf_counter())
    everyone = np.diff(gather(ends[_WARM_UP:], "the computation", _PATIENCE_S))
    return {
        "compute_ms": 1000 * float(everyone.mean()),
        "straggler_ms": 1000 * float(everyone.std()),
    }


def _network(
    size: int, elements: int, gossip_ms: float, average_ms: float, large_ms: float
) -> dict[str, float]:
    """Derive the network of `size` ranks from small exchanges and a gossip of `elements`."""
    if large_ms <= gossip_ms:
        raise RuntimeError(
            f"A gossip of {elements} parameters took no longer than one of "
            f"{_SMALL}: measure again with more --parameters, or on a quieter machine."
        )
    mbit = 32 * (elements - _SMALL) / (large_ms - gossip_ms) / 1000
    latency = min(max(0.0, (average_ms - gossip_ms) / (2 * size - 3)), gossip_ms)
    return {"mbit": mbit, "latency_ms": latency, "overhead_ms": gossip_ms - latency}


def step_of(model: Any, batch_size: int) -> Callable[[], np.ndarray]:
    """Return a function that computes a model's gradients for a batch of zeros.

    It updates nothing. The Keras model is functional or sequential.

    Raises:
      ValueError: another dimension than that of the batch is unknown.
    """
    import tensorflow as tf

    batch = _zeros_for(model, batch_size)

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(batch, training=True))
            loss = tf.add_n([tf.reduce_mean(tf.cast(each, tf.float32)) for each in outputs])
        found = tape.gradient(loss, model.trainable_weights)
        return [tf.convert_to_tensor(each) for each in found if each is not None]

    return lambda: gradients()[0].numpy()  # of the first layer, which is computed last


def _zeros_for(model: Any, batch_size: int) -> Any:
    import keras
    import tensorflow as tf

    # A loaded Sequential has no `input`; another model's may be a dict, which `inputs` is not.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    for one in tf.nest.flatten(inputs):
        if None in one.shape[1:]:
            raise ValueError(
                f"the model's input {one.name!r} has the shape {tuple(one.shape)}, and a batch can "
                "be timed only where all but the number of samples is known. Give a model with "
                "fixed sizes, or --parameters and --compute_ms instead of --model."
            )
    return tf.nest.map_structure(
        lambda one: tf.zeros([batch_size, *one.shape[1:]], one.dtype), inputs
    )
