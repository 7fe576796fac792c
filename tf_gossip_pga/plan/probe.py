"""Measure the network of the running cluster, and the time of a training step's computation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import topology as topology_lib

Gather: TypeAlias = Callable[[object, str, float], list]

_SMALL = 256  # elements of the small exchanges, whose time is only latency and overhead
_LEAST_LARGE, _MOST_LARGE = 1 << 20, 1 << 24  # bounds on the elements of the large gossip
_REPETITIONS = 9
_WARM_UP, _STEPS = 3, 20
_PATIENCE_S = 600


def count(parameters: Any) -> int:
    """Return the number of parameters.

    Args:
      parameters: the number itself, >= 1, or a built Keras model, whose trainable parameters are
        counted.

    Raises:
      ValueError: `parameters` is neither a number >= 1 nor a built model.
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
    """Measure the cluster's network and, if `step` is given, the time of a step's computation.

    Every rank must call this function. It times three exchanges:

    - a small gossip of 256 float32 numbers (1 KiB),
    - a small global average of 256 float32 numbers,
    - a large gossip of the parameters. It sends at least 4 MiB, so that it is clearly slower than
      the small gossip, and at most 64 MiB if `parameters` is a number.

    In both gossips, each rank receives from one other rank per round. Each exchange is timed nine
    times, from a common start until the last rank has finished, and the median is used.

    The two small exchanges have the same overhead. In addition, on n ranks, the small gossip takes
    one latency and the small global average takes 2 (n-1) latencies, so the difference of their
    times gives the latency. The difference between the times of the two gossips gives the
    bandwidth. All ranks run `step` at the same time, as in training.

    Args:
      parameters: number of parameters, >= 1, or a built Keras model.
      step: a function that computes one training step without any exchange. Default None: no
        computation is timed.

    Returns:
      Arguments of `predict`, the same on every rank: `mbit` in Mbit/s, `latency_ms` and
      `overhead_ms`. With `step`, also `compute_ms` and `straggler_ms`, the mean and the standard
      deviation of the step time over all ranks and 20 steps.

    Raises:
      ValueError: `parameters` is neither a number >= 1 nor a built model.
      RuntimeError: no cluster of at least two workers is running, or its exchanges are too
        irregular to derive the bandwidth.
      WorkerLost: another worker died or did not answer.

    Example:
      On every rank of a running cluster:

          pga.initialize()
          found = pga.plan.measure(model, lambda: model.train_on_batch(x, y))
          prediction = pga.plan.predict(nodes=64, parameters=model, **found)
    """
    from tf_gossip_pga.exchange import process

    session = process.active()
    if session.size < 2:
        raise RuntimeError(
            "Measuring needs a running cluster, but this process is the only worker. Start several "
            "workers, for example with python -m tf_gossip_pga.launch --workers=4 -m "
            "tf_gossip_pga.plan --measure …, or set TF_CONFIG on each machine."
        )
    found = _exchanges(session, _large_shapes(parameters))
    return found if step is None else found | _computation(session.gather, step)


def _large_shapes(parameters: Any) -> list[tuple[int, ...]]:
    """Return the shapes that the large gossip sends: the model's own if it is large enough."""
    elements = count(parameters)
    own = _shapes(parameters) if elements >= _LEAST_LARGE else []
    return own or [(min(max(elements, _LEAST_LARGE), _MOST_LARGE),)]


def _exchanges(session: Any, large_shapes: list[tuple[int, ...]]) -> dict[str, float]:
    """Time the three exchanges, and derive bandwidth, latency and overhead."""
    import tensorflow as tf

    from tf_gossip_pga.exchange.averager import Averager, Patience, Variables

    graph = topology_lib.one_peer_exponential(session.size)

    def averager(shapes: list[tuple[int, ...]]) -> Any:
        variables = [tf.Variable(tf.ones(shape)) for shape in shapes]
        patience = Patience(_PATIENCE_S, _PATIENCE_S)
        return Averager(session, graph, Variables(variables), patience)

    small, large = averager([(_SMALL,)]), averager(large_shapes)
    actions = (
        lambda round: small.gossip(round, "the measurement"),
        lambda _: small.global_average("the measurement"),
        lambda round: large.gossip(round, "the measurement"),
    )
    # The first exchange of each round is not timed: it traces a TensorFlow function.
    gossip, average, slow = _medians_ms(session.gather, actions, untimed=graph.rounds)
    elements = sum(map(math.prod, large_shapes))
    return _network(session.size, elements, gossip, average, slow)


def _medians_ms(
    gather: Gather, actions: Sequence[Callable[[int], object]], untimed: int
) -> list[float]:
    """Return the median times in ms from a common start until the last rank has finished.

    The actions take turns, so that other load on the machine slows all of them.

    Args:
      gather: exchanges a value of each rank.
      actions: functions of the repetition, which all ranks call together.
      untimed: number of repetitions before the timed ones.
    """
    seconds: list[list[float]] = []
    for repetition in range(untimed + _REPETITIONS):
        seconds.append([])
        for action in actions:
            gather(None, "the common start", _PATIENCE_S)
            started = time.perf_counter()
            action(repetition)
            seconds[-1].append(time.perf_counter() - started)
    everyone = gather(seconds[untimed:], "the measurement", _PATIENCE_S)
    return (1000 * np.median(np.max(everyone, axis=0), axis=0)).tolist()


def _computation(gather: Gather, step: Callable[[], object]) -> dict[str, float]:
    """Time `_STEPS` steps in a row on all ranks, and return their mean and standard deviation."""
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
    """Derive bandwidth, latency and overhead from the times of the three exchanges of `measure`.

    Args:
      size: number of ranks.
      elements: number of float32 values that each rank sends in the large gossip.
      gossip_ms: time of a gossip of `_SMALL` numbers.
      average_ms: time of a global average of `_SMALL` numbers.
      large_ms: time of the large gossip.

    Raises:
      RuntimeError: the large gossip took no longer than the small one.
    """
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

    The function does not update the model.

    Args:
      model: a built functional or sequential Keras model.
      batch_size: number of samples in the batch.

    Raises:
      ValueError: an input has an unknown dimension other than the batch size.
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

    # Wait for the gradient of the first layer, which backpropagation computes last.
    return lambda: gradients()[0].numpy()


def _zeros_for(model: Any, batch_size: int) -> Any:
    import keras
    import tensorflow as tf

    # A loaded Sequential model has no `input`. A functional model's `input` keeps the structure of
    # its inputs, for example a dict; `inputs` is a flat list.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    for one in tf.nest.flatten(inputs):
        if None in one.shape[1:]:
            raise ValueError(
                f"the model's input {one.name!r} has the shape {tuple(one.shape)}, but a batch can "
                "be timed only if every size except the batch size is known. Give a model with "
                "fixed sizes, or --parameters and --compute_ms instead of --model."
            )
    return tf.nest.map_structure(
        lambda one: tf.zeros([batch_size, *one.shape[1:]], one.dtype), inputs
    )
