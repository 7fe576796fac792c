"""Look at a rank's own parameters before they are mixed with those of others.

A NaN travels with every gossip. A few steps later all ranks have it, and whose it was can no longer
be told, so each rank notes the first step at which its own parameters were not finite. This costs
one sum over the parameters in the graph of the gossip, while messages are under way.
"""

from __future__ import annotations

import tensorflow as tf

from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange.traced import Traced

# Integers of the same width, whose sums do not depend on how numbers are rounded.
_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}


class Health:
    """What a rank knows of its own parameters.

    Args:
      parameters: what is watched.
    """

    def __init__(self, parameters: buckets.Bucket):
        self._parameters = parameters
        self._non_finite = tf.Variable(tf.constant(0, tf.int64))  # the first such step
        self._check = Traced(self._noted)
        self._sum = Traced(self._sum_of_bits)

    def note(self, chunks, step):
        """Note, in a graph, whether the parameters are finite.

        Args:
          chunks: the parameters, as their bucket packs them.
          step: the number of completed steps, `[]` int64.
        """
        total = tf.constant(0.0, tf.float64)  # not finite if one number is not
        for chunk in chunks:
            total += tf.cast(tf.reduce_sum(buckets.wide(chunk)), tf.float64)
        is_first = (self._non_finite == 0) & ~tf.math.is_finite(total)
        self._non_finite.assign(tf.where(is_first, step, self._non_finite))

    def first_non_finite(self, step: int) -> int:
        """Return the first step at which the parameters were found not to be finite; 0 for none.

        Args:
          step: the number of completed steps; the present parameters are those after it.
        """
        return int(self._check(tf.constant(step, tf.int64)))

    def fingerprint(self) -> int:
        """Return 32 bits that are equal for equal parameters, and hardly for others."""
        total = int(self._sum())
        return (total ^ total >> 32) % 2**32

    def _noted(self, step):
        self.note(self._parameters.pack(), step)
        return self._non_finite.read_value()

    def _sum_of_bits(self):
        total = tf.constant(0, tf.int64)
        for chunk in self._parameters.pack():
            bits = tf.bitcast(chunk, _INTEGERS[chunk.dtype.size])
            total = 31 * total + tf.reduce_sum(tf.cast(bits, tf.int64))
        return total
