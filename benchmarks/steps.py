"""Time steps of `model.fit` whose computation leaves the CPU idle, like that of an accelerator."""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import exchanges, timing

if TYPE_CHECKING:
    from tf_gossip_pga import Cluster

ALONE, PGA, OVERLAP, GOSSIP_OVERLAP = "compute alone", "PGA", "PGA, overlap", "gossip, overlap"
SYNCHRONOUS = "Parallel SGD, MWMS"
NAMES = (ALONE, OVERLAP, GOSSIP_OVERLAP, PGA, SYNCHRONOUS)
FACTORS = (0.5, 1.0, 1.2, 2.0)  # computation of a step, relative to the time of a gossip
PERIOD = 6  # H of Gossip-PGA, and number of timed steps in a fit


def row_name(factor: float | str, name: str) -> str:
    """Return the name of a row.

    Args:
      factor: computation of a step, relative to the time of a gossip.
      name: one of `NAMES`.
    """
    return f"step, compute {factor}x: {name}"


def measure(
    cluster: "Cluster", shapes: Sequence[tuple[int, ...]], gossip_s: float, fits: int
) -> dict[str, dict[str, list[float]]]:
    """Time steps whose computation takes each of `FACTORS` times as long as a gossip.

    The smallest of these times may be shorter than the CPU's own work in a step. Then the factors
    multiply not the time of a gossip, but the shortest time for which the smallest factor is
    possible.

    Args:
      cluster: the cluster.
      shapes: shapes of the model's parameters.
      gossip_s: time of a gossip in seconds.
      fits: how often to time each kind of step.

    Returns:
      Factor -> name -> step times in seconds, one per fit.
    """
    pause = [0.0]
    trainers = _trainers(cluster, shapes, pause)
    for train in trainers.values():
        train()  # not timed, because it traces functions
    busy_s = max(cluster.gather(trainers[ALONE](), timing.PATIENCE_S))
    unit_s = max(gossip_s, busy_s / FACTORS[0])
    if cluster.is_chief:
        print(
            f"Steps of fit: the unit of computation is {unit_s:.3g} s; a gossip takes "
            f"{gossip_s:.3g} s, the processor's own work in a step {busy_s:.3g} s",
            flush=True,
        )
    seconds = {str(factor): {name: [] for name in trainers} for factor in FACTORS}
    for _ in range(fits):
        for factor in FACTORS:
            if cluster.is_chief:
                print(f"Steps of fit, computation {factor}x", flush=True)
            pause[0] = factor * unit_s - busy_s
            for name, train in trainers.items():
                cluster.barrier(timing.PATIENCE_S)
                seconds[str(factor)][name].append(train())
    return seconds


def _trainers(
    cluster: "Cluster", shapes: Sequence[tuple[int, ...]], pause: list[float]
) -> dict[str, Callable[[], float]]:
    """Return `{name: function}`; each function trains and returns the step time in seconds."""
    import keras

    import tf_gossip_pga as pga

    def local(*callbacks):
        model = _model(keras, shapes, pause)
        model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
        return functools.partial(_fit, keras, model, callbacks)

    trainers = {
        ALONE: local(),
        PGA: local(pga.GossipPGA(H=PERIOD)),
        OVERLAP: local(pga.GossipPGA(H=PERIOD, overlap=True)),
        GOSSIP_OVERLAP: local(pga.GossipPGA(H=None, overlap=True)),
    }
    is_installed = importlib.util.find_spec("tf_keras") is not None
    if all(cluster.gather(is_installed, timing.PATIENCE_S)):
        tf_keras = importlib.import_module("tf_keras")
        with exchanges.synchronous_strategy().scope():
            model = _model(tf_keras, shapes, pause)
            model.compile(tf_keras.optimizers.SGD(1e-3), "mse")
        trainers[SYNCHRONOUS] = functools.partial(_fit, tf_keras, model, ())
    return trainers


def _model(library: Any, shapes: Sequence[tuple[int, ...]], pause: list[float]) -> Any:
    """Return a model whose step sleeps for `pause[0]` seconds, as if computing elsewhere.

    Args:
      library: Keras, or tf_keras.
      shapes: shapes of the model's parameters.
      pause: a list that contains one number, which may change between steps.
    """
    import tensorflow as tf

    def compute():
        time.sleep(pause[0])
        return np.float32(0)

    class Elsewhere(library.layers.Layer):
        def build(self, shape):
            self.parts = [
                self.add_weight(shape=shape, initializer="zeros", name=f"part{index}")
                for index, shape in enumerate(shapes)
            ]

        def call(self, x):
            nothing = tf.numpy_function(compute, [], tf.float32)
            nothing = tf.ensure_shape(nothing, [])
            return x + tf.add_n([tf.reduce_mean(part) for part in self.parts]) + nothing

    return library.Sequential([library.layers.Input((1,)), Elsewhere()])


def _fit(library: Any, model: Any, callbacks: Sequence) -> float:
    """Train for one period after a first step, and return the mean step time in seconds."""
    import tensorflow as tf

    class Clock(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.ended = time.perf_counter()
            # Exclude the first step, which does not wait for a gossip of a previous step.
            self.started = self.ended if batch == 0 else self.started

    clock = Clock()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    examples = tf.data.Dataset.from_tensors((tf.ones([8, 1]), tf.zeros([8, 1])))
    model.fit(
        examples.repeat(PERIOD + 1).with_options(options),
        steps_per_epoch=PERIOD + 1,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, clock],
    )
    return (clock.ended - clock.started) / PERIOD
