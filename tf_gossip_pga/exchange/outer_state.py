"""Hold the state of an outer optimizer between global averages, and take its steps."""

from __future__ import annotations

import tensorflow as tf

from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange.traced import Traced


class OuterState:
    """The state of a run's outer optimizer: as many numbers as the parameters, twice.

    It is equal on all ranks. It belongs to the run, and therefore outlives averagers and `fit`
    calls.

    Args:
      outer: the outer optimizer.

    Attributes:
      anchor: x_prev of each parameter, the result of the previous outer step. Variables of at least
        float32 precision. Empty before `serve`.
      velocity: v of each parameter, like `anchor`.
      is_restored: whether the next `fit` continues from the anchor of a checkpoint.
    """

    def __init__(self, outer: Outer):
        """Create the state without any variable."""
        self._outer = outer
        self._parameters: list[tf.Variable] = []
        self.anchor: list[tf.Variable] = []
        self.velocity: list[tf.Variable] = []
        self.is_restored = False
        self._step = Traced(self._step_each)

    @property
    def variables(self) -> list[tf.Variable]:
        """Return all variables of this state."""
        return [*self.anchor, *self.velocity]

    def serve(self, parameters: list[tf.Variable]):
        """Optimize these parameters from now on. Keep the state if they are the same as before."""
        if [*map(id, parameters)] != [*map(id, self._parameters)]:
            self._parameters = list(parameters)
            self._step = Traced(self._step_each)
            values = [buckets.wide(tf.convert_to_tensor(each)) for each in parameters]
            self.anchor = [tf.Variable(value, trainable=False) for value in values]
            self.velocity = [tf.Variable(tf.zeros_like(v), trainable=False) for v in values]

    def forget(self):
        """Start over: with velocity 0, and from the parameters with which the next `fit` begins.

        Keep the variables, which averagers of earlier fits hold.
        """
        self.is_restored = False
        for velocity in self.velocity:
            velocity.assign(tf.zeros_like(velocity))

    def begin(self):
        """Set the anchor to the current parameters, unless it was restored for this `fit`."""
        if not self.is_restored:
            for anchor, parameter in zip(self.anchor, self._parameters, strict=True):
                anchor.assign(buckets.wide(tf.convert_to_tensor(parameter)))

    def step(self):
        """Take an outer step. The parameters must hold their mean over ranks.

        All ranks compute the same step, without an exchange.
        """
        self._step()

    def _step_each(self):
        of_each = zip(self._parameters, self.anchor, self.velocity, strict=True)
        for parameter, anchor, velocity in of_each:
            mean = buckets.wide(tf.convert_to_tensor(parameter))
            new, changed = self._outer.step(mean, anchor, velocity)
            parameter.assign(tf.cast(new, parameter.dtype))
            anchor.assign(new)
            velocity.assign(changed)
