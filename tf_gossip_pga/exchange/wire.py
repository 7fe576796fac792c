"""Encode parameters for the wire: as they are, or in fewer bits.

In fewer bits a rank does not send its parameters x_j, but their difference to r, the values that
all replicas had after the last global average and still remember, the same bits on every rank:

    q_j = Q(x_j - r)                                what is sent; Q rounds
    x_i <- x_i + sum_j W[i, j] * (q_j - q_i)        what the receiver does with it

Two things make rounding harmless here. Replicas that have taken a few steps since they agreed lie
close to r: what Q loses is small compared with the difference, not with the parameters. And for a
doubly stochastic W the sum over i of the second line is zero whatever the q_j are. Rounding of any
kind therefore never moves the mean over ranks, and no error has to be fed back.

Sources: differences to a value that both sides know, Koloskova, Stich and Jaggi, "Decentralized
Stochastic Optimization and Gossip Algorithms with Compressed Communication", ICML 2019 (CHOCO,
there one value for each neighbor); scales for blocks, Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", ICLR 2022. Departure: one r for all, renewed by each global average.
Without global averages (`H=None`) the differences grow with the run, and with them what rounding
loses.

To add an encoding: write a subclass of `Wire`, list it in `BY_NAME`, and name it in `GossipPGA`'s
docstring and in `job/flags.py`. Its messages are 1-D tensors of a dtype of at least two bytes
(`group_ops` says which a broadcast carries), with a static shape that is the same on all ranks.
`encoded_bytes` must agree with `encode`.

TensorFlow is imported only where values are rounded: a plan needs nothing but the bytes.
"""

import abc
import dataclasses
from typing import Any

_BLOCK = 256  # elements that share a scale: 1.6 % more bytes than the numbers themselves


class Wire(abc.ABC):
    """An encoding of messages.

    Attributes:
      lossy: whether `decode` returns other numbers than `encode` took.
    """

    lossy = True

    @abc.abstractmethod
    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""

    @abc.abstractmethod
    def encode(self, values: Any) -> Any:
        """Return the message for a 1-D tensor of floating-point numbers."""

    @abc.abstractmethod
    def decode(self, message: Any, elements: int) -> Any:
        """Return the `elements` numbers of a message, as far as rounding has kept them."""


@dataclasses.dataclass(frozen=True)
class Full(Wire):
    """Every variable in its own type."""

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
    """Sixteen bits a number: the sign and exponent of float32, and 8 bits of precision."""

    def encoded_bytes(self, elements: int, itemsize: int) -> int:
        """Return the encoded size in bytes of `elements` numbers of `itemsize` bytes each."""
        return -(-elements // 2) * 4

    def encode(self, values: Any) -> Any:
        """Return `[n]` floats as `[ceil(n / 2)]` int32: no collective takes bfloat16."""
        import tensorflow as tf

        numbers = tf.cast(tf.pad(values, [[0, values.shape[0] % 2]]), tf.bfloat16)
        return tf.bitcast(tf.reshape(numbers, [-1, 2]), tf.int32)

    def decode(self, message: Any, elements: int) -> Any:
        """Return the numbers of a message, `[n]` float32."""
        import tensorflow as tf

        numbers = tf.reshape(tf.bitcast(message, tf.bfloat16), [-1])
        return tf.cast(numbers, tf.float32)[:elements]


@dataclasses.dataclass(frozen=True)
class Int8(Wire):
    """Eight bits a number, and a float32 scale for each block of 256.

    A number x of a block comes out as scale * round(x / scale), scale = max|block| / 127: at most
    max|block| / 254 from x. A block with a number that is not finite comes out as NaN.
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
        """Return the numbers of a message, `[n]` float32."""
        import tensorflow as tf

        blocks = -(-elements // _BLOCK)
        words, scales = tf.split(message, [blocks * _BLOCK // 4, blocks])
        numbers = tf.reshape(tf.bitcast(words, tf.int8), [blocks, _BLOCK])
        values = tf.cast(numbers, tf.float32) * tf.bitcast(scales, tf.float32)[:, tf.newaxis]
        return tf.reshape(values, [-1])[:elements]


BY_NAME = {"float32": Full(), "bfloat16": Bfloat16(), "int8": Int8()}


def resolve(name: str) -> Wire:
    """Return the encoding of this name.

    Raises:
      ValueError: the name is unknown.
    """
    if not isinstance(name, str) or name not in BY_NAME:  # a list has no hash
        raise ValueError(
            f"wire_dtype must be one of {', '.join(map(repr, BY_NAME))}; received {name!r}."
        )
    return BY_NAME[name]
