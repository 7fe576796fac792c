"""IN WHAT FORM parameters travel: as they are, or in fewer bits.

In fewer bits a rank does not send its parameters x_j, but how far they are from r, the values that
all replicas had after the last global average and still remember, the same bits on every rank:

    q_j = Q(x_j - r)                                what is sent; Q rounds
    x_i <- x_i + sum_j W[i, j] * (q_j - q_i)        what becomes of it

Two things make rounding harmless here. Replicas that have taken a few steps since they agreed lie
close to r, so that what Q loses is small beside the difference, not beside the parameters. And for
a doubly stochastic W the sum over i of the second line is zero whatever the q_j are: rounding never
moves the mean over ranks, with nearest rounding as with any other, and no error has to be fed back.

Sources: differences to a value that both sides know, Koloskova, Stich and Jaggi, "Decentralized
Stochastic Optimization and Gossip Algorithms with Compressed Communication", ICML 2019 (CHOCO,
there one value for each neighbour); scales for blocks, Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", ICLR 2022. Departure: one r for all, which a global average renews. Where
there is none (`H=None`) the differences grow with the run and so does what rounding loses.

TensorFlow is imported where it rounds: a plan needs the bytes alone.
"""

import abc
import dataclasses

_BLOCK = 256  # elements that share a scale: 1.6 % more bytes than the numbers themselves


class Wire(abc.ABC):
    """A form of messages.

    Attributes:
      lossy: whether `decode` gives other numbers than `encode` was given.
    """

    lossy = True

    @abc.abstractmethod
    def bytes(self, elements: int, itemsize: int) -> int:
        """Of the message for so many elements of a type with so many bytes each."""

    @abc.abstractmethod
    def encode(self, values):
        """The message for a 1-D tensor of floating-point numbers."""

    @abc.abstractmethod
    def decode(self, message, elements: int):
        """What `encode` was given, so many elements, as far as the message tells."""


@dataclasses.dataclass(frozen=True)
class Full(Wire):
    """Every variable in its own type."""

    lossy = False

    def bytes(self, elements: int, itemsize: int) -> int:
        """Of the message for so many elements of a type with so many bytes each."""
        return elements * itemsize

    def encode(self, values):
        """`[n]` -> the same."""
        return values

    def decode(self, message, elements: int):
        """The same."""
        return message


@dataclasses.dataclass(frozen=True)
class Bfloat16(Wire):
    """Sixteen bits a number: the sign and exponent of float32, and 8 bits of precision."""

    def bytes(self, elements: int, itemsize: int) -> int:
        """Of the message for so many elements of a type with so many bytes each."""
        return -(-elements // 2) * 4

    def encode(self, values):
        """`[n]` floating-point -> `[ceil(n / 2)]` int32: no collective takes bfloat16."""
        import tensorflow as tf

        numbers = tf.cast(tf.pad(values, [[0, values.shape[0] % 2]]), tf.bfloat16)
        return tf.bitcast(tf.reshape(numbers, [-1, 2]), tf.int32)

    def decode(self, message, elements: int):
        """The inverse: `[n]` float32."""
        import tensorflow as tf

        numbers = tf.reshape(tf.bitcast(message, tf.bfloat16), [-1])
        return tf.cast(numbers, tf.float32)[:elements]


@dataclasses.dataclass(frozen=True)
class Int8(Wire):
    """Eight bits a number, and a float32 scale for each block of 256.

    A number x of a block comes out as scale * round(x / scale), scale = max|block| / 127: at most
    max|block| / 254 from x. A block with a number that is not finite comes out as NaN.
    """

    def bytes(self, elements: int, itemsize: int) -> int:
        """Of the message for so many elements of a type with so many bytes each."""
        blocks = -(-elements // _BLOCK)
        return blocks * (_BLOCK + 4)

    def encode(self, values):
        """`[n]` floating-point -> `[65 * ceil(n / 256)]` int32: all numbers, then all scales."""
        import tensorflow as tf

        values = tf.cast(values, tf.float32)
        values = tf.reshape(tf.pad(values, [[0, -values.shape[0] % _BLOCK]]), [-1, _BLOCK])
        scales = tf.reduce_max(tf.abs(values), axis=1, keepdims=True) / 127
        numbers = tf.cast(tf.round(tf.math.divide_no_nan(values, scales)), tf.int8)
        words = tf.bitcast(tf.reshape(numbers, [-1, 4]), tf.int32)
        return tf.concat([words, tf.bitcast(tf.reshape(scales, [-1]), tf.int32)], 0)

    def decode(self, message, elements: int):
        """The inverse: `[n]` float32."""
        import tensorflow as tf

        blocks = -(-elements // _BLOCK)
        words, scales = tf.split(message, [blocks * _BLOCK // 4, blocks])
        numbers = tf.reshape(tf.bitcast(words, tf.int8), [blocks, _BLOCK])
        values = tf.cast(numbers, tf.float32) * tf.bitcast(scales, tf.float32)[:, tf.newaxis]
        return tf.reshape(values, [-1])[:elements]


BY_NAME = {"float32": Full(), "bfloat16": Bfloat16(), "int8": Int8()}


def resolve(name: str) -> Wire:
    """The wire of this name.

    Raises:
      ValueError: the name is unknown.
    """
    if not isinstance(name, str) or name not in BY_NAME:  # a list has no hash
        raise ValueError(
            f"wire_dtype must be one of {', '.join(map(repr, BY_NAME))}; received {name!r}."
        )
    return BY_NAME[name]
