"""Check that a rank's parameters are finite, before they are mixed with those of other ranks.

A NaN spreads with every gossip. After a few steps all ranks have it, and its origin can no longer
be found. Each rank therefore records the first step after which its own parameters were not finite.
The check costs one sum over the parameters, computed in the exchange's TensorFlow graph while
messages are in flight.

The graph only counts the exchanges in which the parameters are not finite. Because a NaN persists,
the count tells how many exchanges ago the NaN appeared, and Python knows the step of each exchange.
Passing the number of each step to TensorFlow would cost more than the check itself.
"""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf

from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange.traced import Traced

# The integer dtype with a given number of bytes. Sums of integers do not depend on the order
# of the summands.
_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}

_REMEMBERED = 1000  # steps kept in `Health.steps`


class Health:
    """Check whether a rank's own parameters are finite, and fingerprint them.

    Args:
      parameters: the parameters to check.

    Attributes:
      steps: the step count at each exchange since the last global average, limited to the latest
        1000. An interrupted exchange may appear twice. The step that `first_steps` returns is
        then too late, never too early.
    """

    def __init__(self, parameters: buckets.Bucket):
        """Create the counter. Does not check anything yet."""
        self.steps: collections.deque[int] = collections.deque(maxlen=_REMEMBERED)
        self._parameters = parameters
        self._count = tf.Variable(tf.constant(0.0))  # exchanges with non-finite parameters
        self._sum = Traced(self._sum_of_bits)

    def note(self, chunks):
        """Count this exchange if the parameters are not finite. Call this in its graph.

        Args:
          chunks: the parameters, packed by their bucket.
        """
        # Use few ops, because each costs time in a small model. If any number is not finite,
        # neither is the sum.
        sums = [tf.cast(tf.reduce_sum(buckets.wide(chunk)), tf.float64) for chunk in chunks]
        if sums:
            self._count.assign_add(tf.cast(~tf.math.is_finite(tf.add_n(sums)), tf.float32))

    def take_count(self) -> tf.Tensor:
        """Return the count of `note`, scalar float32, and reset it to 0. Call this in a graph."""
        count = self._count.read_value()
        self._count.assign(0.0)
        return count

    def first_steps(self, counts: np.ndarray) -> dict[int, int]:
        """Return each rank's first step with non-finite parameters, and clear `steps`.

        Args:
          counts: the result of `take_count` from each rank, `[ranks]`.

        Returns:
          `{rank: step}` for the ranks whose count is not 0.
        """
        steps = list(self.steps)
        self.steps.clear()
        return {
            rank: steps[-min(count, len(steps))]
            for rank, count in enumerate(np.rint(counts).astype(int).tolist())
            if count
        }

    def fingerprint(self) -> int:
        """Return a 32-bit hash of the parameters. Different parameters rarely have equal hashes."""
        total = int(self._sum())
        return (total ^ total >> 32) % 2**32

    def _sum_of_bits(self):
        total = tf.constant(0, tf.int64)
        for chunk in self._parameters.pack():
            bits = tf.bitcast(chunk, _INTEGERS[chunk.dtype.size])
            total = 31 * total + tf.reduce_sum(tf.cast(bits, tf.int64))
        return total
