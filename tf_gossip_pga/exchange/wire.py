"""Encode gossip messages, as parameters in their own dtype or as differences in fewer bits.

A lossy encoding does not send rank j's parameters x_j, but their difference from a reference r: the
parameters after the last global average. Every rank keeps a bit-identical copy of r::

    q_j = Q(x_j - r)                                sent by rank j; Q rounds
    x_i <- x_i + sum_j W[i, j] * (q_j - q_i)        computed by rank i

Rounding does little harm, for two reasons. First, the replicas stay close to r for a few steps
after a global average, and the rounding error is proportional to their difference from r, not to
the parameters. Second, because W is doubly stochastic, the changes of all x_i sum to zero, whatever
the rounded q_j are. Rounding therefore never shifts the mean over ranks, and no error feedback is
needed.

Sources. For differences from a value that both sides know: Koloskova, Stich and Jaggi,
"Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication", ICML
2019 (CHOCO, which keeps one such value per neighbor). For the scales per block of `Int8`: Dettmers
et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022. Unlike CHOCO, this module uses
one r for all neighbors, and each global average renews r. Without global averages (`H=None`), the
differences and the rounding errors grow during the run.

To add an encoding, write a subclass of `Wire`, add it to `BY_NAME`, and mention it in `GossipPGA`'s
docstring and in `job/flags.py`. Its messages must be 1-D tensors of a dtype of at least two bytes
(`group_ops` lists the supported dtypes), with a static shape that is the same on all ranks.
`encoded_bytes` must be consistent with `encode`.

Only `encode` and `decode` import TensorFlow, because `tf_gossip_pga.plan` needs only the sizes.
"""

import abc
import dataclasses
from typing import Any

_BLOCK = 256  # elements that share one float32 scale, which adds 1.6 % to the bytes


class Wire(abc.ABC):
    """An encoding of messages.

    Attributes:
      lossy: whether `decode` may return numbers that differ from those passed to `encode`.
    """

    lossy = True

    @abc.abstractmethod
    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""

    @abc.abstractmethod
    def encode(self, values: Any) -> Any:
        """Return the message for `[n]` floating-point numbers, as a 1-D tensor."""

    @abc.abstractmethod
    def decode(self, message: Any, elements: int) -> Any:
        """Return the numbers in a message, `[elements]`, up to rounding."""


@dataclasses.dataclass(frozen=True)
class Full(Wire):
    """Send every variable in its own dtype."""

    lossy = False

    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""
        return elements * itemsize

    def encode(self, values: Any) -> Any:
        """Return the values unchanged."""
        return values

    def decode(self, message: Any, elements: int) -> Any:
        """Return the message unchanged."""
        return message


@dataclasses.dataclass(frozen=True)
class Bfloat16(Wire):
    """Send 16 bits per number: float32's sign and exponent, and 8 bits of precision."""

    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""
        return -(-elements // 2) * 4

    def encode(self, values: Any) -> Any:
        """Return `[n]` floats as `[ceil(n / 2)]` int32, because no collective supports bfloat16."""
        import tensorflow as tf

        numbers = tf.cast(tf.pad(values, [[0, values.shape[0] % 2]]), tf.bfloat16)
        return tf.bitcast(tf.reshape(numbers, [-1, 2]), tf.int32)

    def decode(self, message: Any, elements: int) -> Any:
        """Return the numbers in a message, `[n]` float32."""
        import tensorflow as tf

        numbers = tf.reshape(tf.bitcast(message, tf.bfloat16), [-1])
        return tf.cast(numbers, tf.float32)[:elements]


@dataclasses.dataclass(frozen=True)
class Int8(Wire):
    """Send 8 bits per number, plus one float32 scale per block of 256 numbers.

    A number x becomes `scale * round(x / scale)` with `scale = max|block| / 127`, so the error is
    at most `max|block| / 254`. If a block contains a non-finite number, the whole block becomes
    NaN.
    """

    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""
        blocks = -(-elements // _BLOCK)
        return blocks * (_BLOCK + 4)

    def encode(self, values: Any) -> Any:
        """Return `[n]` floats as `[65 * ceil(n / 256)]` int32: all numbers, then all scales."""
        import tensorflow as tf

        values = tf.cast(values, tf.float32)
        values = tf.reshape(tf.pad(values, [[0, -values.shape[0] % _BLOCK]]), [-1, _BLOCK])
        scales = tf.reduce_max(tf.abs(values), axis=1, keepdims=True) / 127
        numbers = tf.cast(tf.round(tf.math.divide_no_nan(values, scales)), tf.int8)
        words = tf.bitcast(tf.reshape(numbers, [-1, 4]), tf.int32)
        return tf.concat([words, tf.bitcast(tf.reshape(scales, [-1]), tf.int32)], 0)

    def decode(self, message: Any, elements: int) -> Any:
        """Return the numbers in a message, `[n]` float32."""
        import tensorflow as tf

        blocks = -(-elements // _BLOCK)
        words, scales = tf.split(message, [blocks * _BLOCK // 4, blocks])
        numbers = tf.reshape(tf.bitcast(words, tf.int8), [blocks, _BLOCK])
        values = tf.cast(numbers, tf.float32) * tf.bitcast(scales, tf.float32)[:, tf.newaxis]
        return tf.reshape(values, [-1])[:elements]


BY_NAME = {"float32": Full(), "bfloat16": Bfloat16(), "int8": Int8()}


def resolve(name: str) -> Wire:
    """Return the encoding with this name.

    Args:
      name: a key of `BY_NAME`.

    Raises:
      ValueError: no encoding has this name.
    """
    if not isinstance(name, str) or name not in BY_NAME:  # a list is not hashable
        raise ValueError(
            f"wire_dtype must be one of {', '.join(map(repr, BY_NAME))}; received {name!r}."
        )
    return BY_NAME[name]
