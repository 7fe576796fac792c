"""Train with Gossip-PGA and a Keras optimizer on virtual workers, all in one process.

    replicas = Replicas(loss, initial, keras.optimizers.Adam(), topology.ring(4))
    replicas.run(batches, learning_rate=1e-3, H=6)
    replicas.mean                                   # [seeds, d]

The parameters of all workers and seeds are stored in one variable, `[workers, seeds, d]`. SGD with
momentum, Adam and AdamW update each parameter independently of the others, so one Keras optimizer
can update all workers. LAMB and clipping by norm do not work here.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.simulate import mixing


class Replicas:
    """Train the replicas of all workers, for several seeds at once.

    Args:
      loss: `(x [d], *batch) -> scalar`, as in `simulate.Problem`.
      initial: `[seeds, d]` float32, the initial parameters of all workers for each seed.
      optimizer: an elementwise Keras optimizer that is not built yet.
      topology: who gossips with whom.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        initial: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        topology: Topology,
    ):
        self._loss = loss
        self._initial = np.broadcast_to(initial, (topology.size, *initial.shape))
        self._parameters = keras.Variable(self._initial, dtype="float32")
        self._optimizer: Any = optimizer
        self._optimizer.build([self._parameters])
        self._fresh = [variable.numpy() for variable in optimizer.variables]
        self._slots = [variable for variable in optimizer.variables if len(variable.shape)]
        self._rounds = topology.rounds
        self._mixers = [mixing.mixer(each, tf.float32) for each in topology.cycle]
        self._take = tf.function(self._step, autograph=False)

    @property
    def x(self) -> np.ndarray:
        """Parameters of all workers, `[workers, seeds, d]`."""
        return self._parameters.numpy()

    @property
    def mean(self) -> np.ndarray:
        """Mean of the parameters over workers, `[seeds, d]`."""
        return self.x.mean(axis=0)

    def run(
        self,
        batches: Iterable[tuple[np.ndarray, ...]],
        learning_rate: float,
        H: int | None,  # noqa: N803
        optimizer_state: str = "local",
    ) -> np.ndarray:
        """Train from the initial parameters.

        Args:
          batches: for each step, arrays `[workers, seeds, batch, …]`.
          learning_rate: the constant learning rate.
          H: period of the global average in steps; None: never.
          optimizer_state: as in `GossipPGA`. Default `"local"`.

        Returns:
          `[seeds]`, the length of a step of the workers' mean: root mean square over parameters,
          mean over steps.
        """
        self._parameters.assign(self._initial)
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self._optimizer.learning_rate = learning_rate
        period, moved = schedule.FixedPeriod(H), []
        for step, batch in enumerate(batches, start=1):
            is_global = period.is_global(step)
            mixer = self._rounds if is_global else (step - 1) % self._rounds
            moved.append(self._take(batch, tf.constant(mixer)))
            if is_global:
                self._combine_slots(optimizer_state)
        return np.mean(moved, axis=0)

    def _step(self, batch: Any, mixer: Any) -> Any:
        shape = self._parameters.shape
        flat = [tf.reshape(part, [-1, *part.shape[2:]]) for part in batch]
        x = tf.reshape(self._parameters.value, [-1, shape[2]])
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = tf.vectorized_map(lambda both: self._loss(both[0], *both[1]), (x, flat))
        # This is the gradient of the sum of all losses. Each loss depends only on its own x.
        gradient: Any = tape.gradient(losses, x)
        before = tf.reduce_mean(self._parameters.value, axis=0)
        self._optimizer.apply([tf.reshape(gradient, shape)], [self._parameters])
        y = tf.convert_to_tensor(self._parameters.value)
        mean = tf.reduce_mean(y, axis=0)
        branches = [functools.partial(mix, y) for mix in self._mixers]
        branches.append(functools.partial(tf.broadcast_to, mean, shape))
        self._parameters.assign(tf.switch_case(mixer, branches))
        return tf.sqrt(tf.reduce_mean((mean - before) ** 2, axis=1))

    def _combine_slots(self, optimizer_state: str) -> None:
        for slot in self._slots:
            if optimizer_state == "average":
                slot.assign(tf.broadcast_to(tf.reduce_mean(slot.value, axis=0), slot.shape))
            elif optimizer_state == "reset":
                slot.assign(tf.zeros(slot.shape))
