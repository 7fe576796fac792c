"""Look at a rank's own parameters before they are mixed with those of others.

A NaN travels with every gossip. A few steps later all ranks have it, and whose it was can no longer
be told, so each rank notes the first step at which its own parameters were not finite. This costs
one sum over the parameters in the graph of the exchange, while messages are under way.
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
        self._non_finite = tf.Variable(tf.constant(0, tf.int64))
        self._sum = Traced(self._sum_of_bits)

    def note(self, chunks, step) -> tf.Tensor:
        """Note, in a graph, whether the parameters are finite.

        Args:
          chunks: the parameters, as their bucket packs them.
          step: the number of completed steps, `[]` int64.

        Returns:
          The first step at which they were found not to be finite, `[]` int64; 0 for none.
        """
        total = tf.constant(0.0, tf.float64)  # not finite if one number is not
        for chunk in chunks:
            total += tf.cast(tf.reduce_sum(buckets.wide(chunk)), tf.float64)
        is_first = (self._non_finite == 0) & ~tf.math.is_finite(total)
        first = tf.where(is_first, step, self._non_finite)
        self._non_finite.assign(first)
        return first

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
