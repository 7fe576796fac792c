"""Build the TensorFlow graph of a gossip: the change that a round makes to each chunk."""

from __future__ import annotations

from typing import cast

import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange import buckets, message_plan
from tf_gossip_pga.exchange.group_ops import Ops
from tf_gossip_pga.exchange.wire import Wire


class Mixer:
    """The gossips of one bucket on one topology, among the members of a view.

    Args:
      ops: the collective ops of the view.
      topology: which members average with each other.
      parameters: the parameters to mix.
      wire: the encoding of messages.
      first_key: the first of the instance keys that are reserved for these gossips:
        `group_ops.KEYS_PER_CHUNK * len(parameters)` of them.
    """

    def __init__(
        self, ops: Ops, topology: Topology, parameters: buckets.Bucket, wire: Wire, first_key: int
    ):
        """Store the arguments. If the encoding is lossy, copy the parameters as its reference."""
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
        return message_plan.bytes_sent(
            message_plan.of_gossip(
                self._parameters.layout,
                self._topology,
                round,
                self._ops.place,
                self._ops.transport,
                self._wire,
            )
        )

    def remember(self, chunks):
        """Set a lossy encoding's reference to these chunks, which must be equal on all ranks."""
        if self._reference:
            for reference, chunk in zip(self._reference, chunks, strict=True):
                reference.assign(chunk)

    def changes(self, round: int, *chunks):
        """Return the change that a gossip makes to each chunk: sum_j W[i, j] * x_j - x_i.

        Args:
          round: the round of the topology.
          *chunks: the parameters x_i, packed by their bucket.

        Returns:
          A list of 1-D tensors, as long as the chunks, of at least float32 precision.
        """
        weights, _ = self._topology.neighbors(round, self._ops.place)
        if self._is_paired(round):
            return self._changes_of_pair(weights, list(chunks))
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

    def _is_paired(self, round: int) -> bool:
        return message_plan.is_paired(
            self._parameters.layout, self._topology, round, self._ops.transport, self._wire
        )

    def _changes_of_pair(self, weights: dict[int, float], chunks: list) -> list:
        """Return the change w * (x_j - x_i) of each chunk, computed as 2 * w * (m - x_i).

        w is the weight of the partner j, and m is the mean of x_i and x_j.
        """
        if not weights:  # this rank has no partner in the round
            return [tf.zeros_like(chunk) for chunk in chunks]
        ((partner, weight),) = weights.items()
        means = self._ops.mean_of_pair(chunks, partner, self._first_key)
        return [2 * weight * (mean - chunk) for mean, chunk in zip(means, chunks, strict=True)]

    def _difference(self, pair):
        """Encode a chunk's difference from its reference. `pair` is `(chunk, reference)`."""
        chunk, reference = pair
        return self._wire.encode(buckets.wide(chunk) - buckets.wide(reference))

    def _decode(self, message: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        numbers: tf.Tensor = self._wire.decode(message, cast(int, chunk.shape[0]))
        return tf.cast(numbers, buckets.wide(chunk).dtype)
