"""Gather JSON values from all members with an all-gather of integers."""

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
        """Store the arguments. TensorFlow traces a function for each message length when needed."""
        self._ops = ops
        self._rank = rank
        self._functions: dict[int, tf.types.experimental.ConcreteFunction] = {}

    def __call__(self, value) -> list:
        """Return the values of all members, in rank order.

        Args:
          value: this member's value, JSON-serializable.
        """
        message = encode(self._rank, value)
        longest = int(self._gather(np.array([len(message)], np.int32)).max())
        padded = np.zeros(1 << (longest - 1).bit_length(), np.int32)
        padded[: len(message)] = message
        return decode(self._gather(padded))

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Gather `[n]` int32 from all members. Return `[size, n]` int32. n is a power of two."""
        length = len(values)
        if length not in self._functions:
            # Use a concrete function, because `fit` may run in the scope of another strategy.
            function = tf.function(self._ops.gather, autograph=False)
            spec = tf.TensorSpec([length], tf.int32)
            self._functions[length] = function.get_concrete_function(spec)
        gathered = self._functions[length](tf.constant(values))
        return gathered.numpy().reshape(self._ops.size, length)


def encode(rank: int, value) -> np.ndarray:
    """Encode a rank and its value as `[1 + bytes]` int32.

    The first number is the length of the JSON text in bytes. The others are its bytes.
    """
    text = np.frombuffer(json.dumps([rank, value]).encode(), np.uint8)
    return np.concatenate([[len(text)], text]).astype(np.int32)


def decode(messages: np.ndarray) -> list:
    """Decode messages, `[size, length]`, one message per row. Return the values in rank order."""
    pairs = [json.loads(row[1 : 1 + row[0]].astype(np.uint8).tobytes()) for row in messages]
    # Sort, because TensorFlow gathers in the order of device names, where task:10 precedes task:2.
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
