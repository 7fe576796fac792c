"""Build the TensorFlow graph of a gossip: the change that a round makes to each chunk."""

from __future__ import annotations

from typing import cast

import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange.group_ops import Ops
from tf_gossip_pga.exchange.wire import Wire


class Mixer:
    """The gossips of one bucket on one topology, among the members of a view.

    Args:
      ops: the collective ops of the view.
      topology: which members average with each other.
      parameters: the parameters to mix.
      wire: the encoding of messages.
      first_key: the first of `len(parameters)` reserved instance keys.
    """

    def __init__(
        self, ops: Ops, topology: Topology, parameters: buckets.Bucket, wire: Wire, first_key: int
    ):
        """Exchange nothing. If the encoding is lossy, copy the parameters as its reference r."""
        self._ops = ops
        self._topology = topology
        self._parameters = parameters
        self._wire = wire
        self._first_key = first_key
        # The parameters after the last global average. Lossy encodings send differences from them.
        self._reference: list[tf.Variable] = []
        if wire.lossy and not all(each.is_empty for each in topology.cycle):
            self._reference = [tf.Variable(chunk) for chunk in parameters.pack()]

    def bytes_sent(self, round: int) -> int:
        """Return the number of payload bytes that this rank sends in a round."""
        colors = self._topology.colors(round)
        messages = sum(sender == self._ops.place for color in colors for sender, _ in color)
        layout = self._parameters.layout
        return messages * sum(
            self._wire.encoded_bytes(length, dtype.size) for length, dtype in layout
        )

    def remember(self, chunks):
        """Set the reference to the given chunks, which must be equal on all ranks."""
        if self._reference:
            for reference, chunk in zip(self._reference, chunks, strict=True):
                reference.assign(chunk)

    def changes(self, round: int, *chunks):
        """Return the change that a gossip makes to each chunk: sum_j W[i, j] * x_j - x_i.

        Args:
          round: the round of the topology.
          *chunks: the parameters x_i, packed by their bucket.

        Returns:
          A list of 1-D tensors of the same lengths, of at least float32 precision.
        """
        weights, _ = self._topology.neighbors(round, self._ops.place)
        sources, encode = chunks, self._wire.encode
        if self._reference:
            sources, encode = list(zip(chunks, self._reference, strict=True)), self._difference
        exchanged = self._ops.exchange(
            sources, self._topology.colors(round), self._first_key, encode
        )
        changes = []
        for chunk, (message, received, sent) in zip(chunks, exchanged, strict=True):
            with tf.control_dependencies(sent):
                own = self._decode(message, chunk)
                parts = [
                    weight * (self._decode(received[sender], chunk) - own)
                    for sender, weight in weights.items()
                ]
                changes.append(tf.add_n(parts) if parts else tf.zeros_like(own))
        return changes

    def _difference(self, pair):
        """Encode a chunk's difference from its reference. `pair` is `(chunk, reference)`."""
        chunk, reference = pair
        return self._wire.encode(buckets.wide(chunk) - buckets.wide(reference))

    def _decode(self, message: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        numbers: tf.Tensor = self._wire.decode(message, cast(int, chunk.shape[0]))
        return tf.cast(numbers, buckets.wide(chunk).dtype)
