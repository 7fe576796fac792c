"""WHAT THE NETWORK IS LIKE, and a computation: timed on the running cluster, for a plan."""

import math
import operator
import time

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib

_SMALL = 256  # elements of the exchange that measures what does not depend on the size
_LEAST_LARGE, _MOST_LARGE = 1 << 20, 1 << 24  # and of the one that measures the bandwidth
_REPETITIONS = 9
_WARM_UP, _STEPS = 3, 20
_PATIENCE_S = 600


def count(parameters) -> int:
    """A number of parameters as it is, or how many a built Keras model trains.

    Raises:
      ValueError: neither.
    """
    shapes = _shapes(parameters)
    try:
        number = 0 if isinstance(parameters, bool) else operator.index(parameters)
    except TypeError:
        number = sum(map(math.prod, shapes))
    if number < 1:
        raise ValueError(
            "parameters must be a whole number, at least 1, or a Keras model that is built and has "
            f"trainable variables; received {parameters!r}."
        )
    return number


def _shapes(parameters) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in getattr(parameters, "trainable_variables", ())]


def measure(parameters, step=None) -> dict:
    """Times exchanges on the running cluster, and a computation; all ranks must call it.

    A gossip and a global average of 1 kB and a one-peer gossip of the parameters (at least 4 MiB,
    so that it takes clearly longer, and where only their number is given at most 64), nine times
    from a common start until the last rank has finished; medians. A small average has 2 (n-1)
    latencies and a gossip one, which tells what is latency and what an exchange costs anyhow; the
    rest of the large gossip is bandwidth. Steps are computed one after the other on all ranks at
    once.

    Args:
      parameters: their number, or a built Keras model.
      step: a function that computes one training step without exchange; None: not timed.

    Returns:
      Arguments of `predict`, the same on every rank: `mbit`, `latency_ms`, `overhead_ms`; with
      `step` also `compute_ms` and `straggler_ms`, over ranks and 20 steps.

    Raises:
      RuntimeError: there is no cluster, or its exchanges are too irregular to tell a bandwidth.

    Example:

        pga.initialize()
        found = plan.measure(model, lambda: model.train_on_batch(x, y))
        plan.predict(nodes=64, parameters=model, **found)
    """
    import tensorflow as tf

    from tf_gossip_pga.exchange import averaging, collectives

    mine = collectives.active()
    if mine.size < 2:
        raise RuntimeError(
            "Measuring needs a running cluster, and this is one worker. Start several, for example "
            "python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure …, or set "
            "TF_CONFIG on each machine."
        )
    elements = min(max(count(parameters), _LEAST_LARGE), _MOST_LARGE)
    shapes = _shapes(parameters) if count(parameters) >= _LEAST_LARGE else []
    shapes = shapes or [(elements,)]
    elements = sum(map(math.prod, shapes))
    graph = topology_lib.one_peer_exponential(mine.size)

    def averager(shapes):
        variables = [tf.Variable(tf.ones(shape)) for shape in shapes]
        return averaging.Averager(mine, graph, variables, [], [], _PATIENCE_S, _PATIENCE_S)

    def timed(action) -> float:
        seconds = []
        for repetition in range(graph.rounds + _REPETITIONS):  # each round is traced once
            mine.gather(None, "the common start", _PATIENCE_S)
            started = time.perf_counter()
            action(repetition)
            seconds.append(time.perf_counter() - started)
        everyone = mine.gather(seconds[graph.rounds :], "the measurement", _PATIENCE_S)
        return float(1000 * np.median(np.max(everyone, axis=0)))

    small, large = averager([(_SMALL,)]), averager(shapes)
    gossip = timed(lambda round: small.gossip(round, "the measurement"))
    average = timed(lambda _: small.global_average("the measurement"))
    slow = timed(lambda round: large.gossip(round, "the measurement"))
    found = _network(mine.size, elements, gossip, average, slow)
    if step is not None:
        ends = []
        for _ in range(_WARM_UP + _STEPS + 1):
            step()
            ends.append(time.perf_counter())
        everyone = np.diff(mine.gather(ends[_WARM_UP:], "the computation", _PATIENCE_S))
        found |= {"compute_ms": 1000 * float(everyone.mean())}
        found |= {"straggler_ms": 1000 * float(everyone.std())}
    return found


def _network(
    size: int, elements: int, gossip_ms: float, average_ms: float, large_ms: float
) -> dict[str, float]:
    """What small exchanges and a gossip of so many elements tell of a network of `size` ranks."""
    if large_ms <= gossip_ms:
        raise RuntimeError(
            f"A gossip of {elements} parameters took no longer than one of "
            f"{_SMALL}: measure again with more --parameters, or on a quieter machine."
        )
    mbit = 32 * (elements - _SMALL) / (large_ms - gossip_ms) / 1000
    latency = min(max(0.0, (average_ms - gossip_ms) / (2 * size - 3)), gossip_ms)
    return {"mbit": mbit, "latency_ms": latency, "overhead_ms": gossip_ms - latency}


def step_of(model, batch_size: int):
    """A function that computes a Keras model's gradients for a batch of zeros, and updates nothing.

    The model is functional or sequential.

    Raises:
      ValueError: another dimension than that of the batch is unknown.
    """
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
    batch = tf.nest.map_structure(
        lambda one: tf.zeros([batch_size, *one.shape[1:]], one.dtype), inputs
    )

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(batch, training=True))
            loss = tf.add_n([tf.reduce_mean(tf.cast(each, tf.float32)) for each in outputs])
        found = tape.gradient(loss, model.trainable_weights)
        return [tf.convert_to_tensor(each) for each in found if each is not None]

    return lambda: gradients()[0].numpy()  # of the first layer: the last one
