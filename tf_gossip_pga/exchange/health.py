"""Look at a rank's own parameters before they are mixed with those of others.

A NaN travels with every gossip. A few steps later all ranks have it, and whose it was can no longer
be told, so each rank notes the first step at which its own parameters were not finite. This costs
one sum over the parameters in the graph of the exchange, while messages are under way.

The graph only counts: a NaN stays, so the number of exchanges since it came tells the step, and all
ranks have made the same exchanges. To hand each step to TensorFlow would cost more than the rest.
"""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf

from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange.traced import Traced

# Integers of the same width, whose sums do not depend on how numbers are rounded.
_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}

_REMEMBERED = 1000  # steps


class Health:
    """What a rank knows of its own parameters.

    Args:
      parameters: what is watched.

    Attributes:
      steps: the step count at each exchange since the last global average. One that is interrupted
        may be in it twice, and the step that is told too late, never too early.
    """

    def __init__(self, parameters: buckets.Bucket):
        self.steps: collections.deque[int] = collections.deque(maxlen=_REMEMBERED)
        self._parameters = parameters
        self._count = tf.Variable(tf.constant(0.0))  # of exchanges at which they were not finite
        self._sum = Traced(self._sum_of_bits)

    def note(self, chunks):
        """Note, in a graph, whether the parameters are finite.

        Args:
          chunks: the parameters, as their bucket packs them.
        """
        # Of few ops: for a small model each counts. A sum is not finite if one number is not.
        sums = [tf.cast(tf.reduce_sum(buckets.wide(chunk)), tf.float64) for chunk in chunks]
        if sums:
            self._count.assign_add(tf.cast(~tf.math.is_finite(tf.add_n(sums)), tf.float32))

    def take_count(self) -> tf.Tensor:
        """Return, in a graph, at how many exchanges they were not finite, and count anew."""
        count = self._count.read_value()
        self._count.assign(0.0)
        return count

    def first_steps(self, counts: np.ndarray) -> dict[int, int]:
        """Return the first steps after which parameters were not finite, and note steps anew.

        Args:
          counts: what `take_count` has returned on each rank, `[ranks]`.

        Returns:
          The step, by rank, for the ranks whose count is not 0.
        """
        steps = list(self.steps)
        self.steps.clear()
        return {
            rank: steps[-min(count, len(steps))]
            for rank, count in enumerate(np.rint(counts).astype(int).tolist())
            if count
        }

    def fingerprint(self) -> int:
        """Return 32 bits that are equal for equal parameters, and hardly for others."""
        total = int(self._sum())
        return (total ^ total >> 32) % 2**32

    def _sum_of_bits(self):
        total = tf.constant(0, tf.int64)
        for chunk in self._parameters.pack():
            bits = tf.bitcast(chunk, _INTEGERS[chunk.dtype.size])
            total = 31 * total + tf.reduce_sum(tf.cast(bits, tf.int64))
        return total
