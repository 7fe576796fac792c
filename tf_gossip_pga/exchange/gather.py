"""Gather JSON values from all members through an all-gather of integers."""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from tf_gossip_pga.exchange.group_ops import Ops


class Gatherer:
    """Gather one value from every member of a view.

    Args:
      ops: the collective ops of the view.
      rank: this worker's rank.
    """

    def __init__(self, ops: Ops, rank: int):
        self._ops = ops
        self._rank = rank
        self._functions: dict[int, tf.types.experimental.ConcreteFunction] = {}

    def __call__(self, value) -> list:
        """Return what every member passed, in rank order.

        Args:
          value: anything JSON can hold.
        """
        message = encode(self._rank, value)
        longest = int(self._gather(np.array([len(message)], np.int32)).max())
        padded = np.zeros(1 << (longest - 1).bit_length(), np.int32)
        padded[: len(message)] = message
        return decode(self._gather(padded))

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Return `values`, `[n]` int32 with n a power of two, of all members: `[size, n]`."""
        length = len(values)
        if length not in self._functions:
            # Concrete, since `fit` may be called in the scope of another strategy.
            function = tf.function(self._ops.gather, autograph=False)
            spec = tf.TensorSpec([length], tf.int32)
            self._functions[length] = function.get_concrete_function(spec)
        gathered = self._functions[length](tf.constant(values))
        return gathered.numpy().reshape(self._ops.size, length)


def encode(rank: int, value) -> np.ndarray:
    """Return a message: its length in bytes, then JSON, `[1 + bytes]` int32."""
    text = np.frombuffer(json.dumps([rank, value]).encode(), np.uint8)
    return np.concatenate([[len(text)], text]).astype(np.int32)


def decode(messages: np.ndarray) -> list:
    """Return the values of messages, one per row, in rank order."""
    pairs = [json.loads(row[1 : 1 + row[0]].astype(np.uint8).tobytes()) for row in messages]
    # TensorFlow gathers in the order of its devices' names: task:10 comes before task:2.
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
