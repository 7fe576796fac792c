"""Pack variables into flat chunks of one dtype, and unpack them.

Small variables share chunks, large variables get chunks of their own, and very large variables are
split. As a result, no message is longer than the transport's `message_bytes`, and many small
variables do not cause many tiny messages.
"""

import dataclasses

import tensorflow as tf

from tf_gossip_pga.exchange.transport import RING

# Collectives do not support the dtypes on the left, so variables of these dtypes are sent in the
# dtypes on the right. A complex number can be summed as a pair of real numbers.
_CARRIERS = {tf.bool: tf.uint8, tf.complex64: tf.float32, tf.complex128: tf.float64}

# A variable that fills at least 1/_SHARE of a chunk gets a chunk of its own.
_SHARE = 4

# TensorFlow slices without copying at multiples of 64 bytes. Multiples of 64 elements are multiples
# of 64 bytes for any dtype.
_ALIGNED = 64


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The elements `start … stop` of a flattened variable, stored at `offset` in a chunk."""

    variable: int
    start: int
    stop: int
    chunk: int
    offset: int


class Bucket:
    """A list of variables, represented as a list of 1-D chunks that have one dtype each.

    Complex numbers are sent as pairs of real numbers, and Booleans as one-byte integers.

    Args:
      variables: instances of `tf.Variable` with static shapes.
      chunk_bytes: maximum size of a chunk in bytes. Default: that of messages over gRPC.

    Attributes:
      variables: the variables.
      bytes: their total size in bytes.
    """

    def __init__(self, variables, chunk_bytes: int = RING.message_bytes):
        """Plan the chunks. Does not read any tensor."""
        self.variables = list(variables)
        self.bytes = sum(v.shape.num_elements() * v.dtype.size for v in self.variables)
        self._pieces: list[_Piece] = []
        self._lengths: list[int] = []  # of each chunk, in elements
        self._dtypes: list[tf.DType] = []
        for dtype in dict.fromkeys(_carrier(v.dtype) for v in self.variables):
            self._plan(dtype, max(1, chunk_bytes // dtype.size))

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._lengths)

    @property
    def layout(self) -> list[tuple[int, tf.DType]]:
        """Return the length in elements and the dtype of each chunk."""
        return list(zip(self._lengths, self._dtypes, strict=True))

    def _plan(self, dtype, limit: int):
        """Place the variables of one dtype in chunks of at most `limit` elements."""
        shared = None  # the current chunk for small variables
        for index, variable in enumerate(self.variables):
            size = variable.shape.num_elements() * (2 if variable.dtype.is_complex else 1)
            if _carrier(variable.dtype) != dtype or not size:
                continue
            if size >= limit / _SHARE:
                # Packing several variables copies them. A variable alone is not copied.
                part = -(-size // -(-size // limit))  # equal parts,
                part = min(limit, -(-part // _ALIGNED) * _ALIGNED)  # rounded so slices need no copy
                for start in range(0, size, part):
                    self._place(index, start, min(size, start + part), None)
            else:
                full = shared is None or self._lengths[shared] + size > limit
                shared = self._place(index, 0, size, None if full else shared)

    def _place(self, variable: int, start: int, stop: int, chunk: int | None) -> int:
        """Append a piece to a chunk (a new one if `chunk` is None). Return the chunk's index."""
        if chunk is None:
            self._lengths.append(0)
            self._dtypes.append(_carrier(self.variables[variable].dtype))
            chunk = len(self) - 1
        self._pieces.append(_Piece(variable, start, stop, chunk, self._lengths[chunk]))
        self._lengths[chunk] += stop - start
        return chunk

    def pack(self):
        """Return the chunks with the variables' current values, each `[n]` of one dtype."""
        flat = [_carried(variable) for variable in self.variables]
        parts = [[] for _ in self._lengths]
        for piece in self._pieces:
            parts[piece.chunk].append(flat[piece.variable][piece.start : piece.stop])
        return [tf.concat(part, 0) for part in parts]

    def assign(self, chunks):
        """Set the variables from chunks of the same lengths and dtypes as `pack` returns."""
        for variable, value in self._unpacked(chunks):
            variable.assign(_restored(value, variable))

    def add(self, changes):
        """Add chunks of changes to the variables.

        Args:
          changes: chunks of the same lengths as `pack` returns, of at least float32 precision.
        """
        for variable, change in self._unpacked(changes):
            if change.dtype == _carrier(variable.dtype):
                variable.assign_add(_restored(change, variable))  # in place
            else:
                change = tf.reshape(change, variable.shape)
                variable.assign(tf.cast(wide(variable) + change, variable.dtype))

    def _unpacked(self, chunks):
        """Yield each non-empty variable, with its elements as a flat tensor."""
        parts = [[] for _ in self.variables]
        for piece in self._pieces:
            stop = piece.offset + piece.stop - piece.start
            parts[piece.variable].append(chunks[piece.chunk][piece.offset : stop])
        for variable, part in zip(self.variables, parts, strict=True):
            if part:
                yield variable, tf.concat(part, 0)


def _carrier(dtype: tf.DType) -> tf.DType:
    """Return the dtype in which numbers of this dtype are sent."""
    return _CARRIERS.get(dtype, dtype)


def _carried(variable):
    """Return a variable's elements as a flat tensor, in the dtype in which they are sent."""
    flat = tf.reshape(variable, [-1])
    if flat.dtype.is_complex:
        return tf.reshape(tf.bitcast(flat, _carrier(flat.dtype)), [-1])
    return tf.cast(flat, _carrier(flat.dtype))


def _restored(flat, variable):
    """Convert a result of `_carried` back to the variable's dtype and shape."""
    if variable.dtype.is_complex:
        flat = tf.bitcast(tf.reshape(flat, [-1, 2]), variable.dtype)
    return tf.reshape(tf.cast(flat, variable.dtype), variable.shape)


def wide(chunk):
    """Cast a chunk to at least float32, to avoid rounding twice when mixing half precision."""
    return tf.cast(chunk, tf.float32) if chunk.dtype.size < 4 else chunk
