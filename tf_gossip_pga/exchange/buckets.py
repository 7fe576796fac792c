"""Pack variables into flat chunks of one dtype, and unpack them.

Small variables share chunks, large ones have chunks of their own, and very large ones are split.
For any model, messages are therefore neither tiny nor longer than `CHUNK_BYTES`.
"""

import dataclasses

import tensorflow as tf

# Maximum bytes of a message. Smaller chunks cost round trips; with larger ones, sending and mixing
# overlap less.
CHUNK_BYTES = 4 << 20

# Collectives support none of these dtypes. The sum of complex numbers is that of pairs of reals.
_CARRIERS = {tf.bool: tf.uint8, tf.complex64: tf.float32, tf.complex128: tf.float64}

# A variable of at least 1/_SHARE of a chunk gets a chunk of its own.
_SHARE = 4

# TensorFlow slices without a copy at multiples of 64 bytes. 64 elements suffice for every dtype.
_ALIGNED = 64


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The elements `start … stop` of a flattened variable, at `offset` in a chunk."""

    variable: int
    start: int
    stop: int
    chunk: int
    offset: int


class Bucket:
    """A list of variables as a list of 1-D chunks of one dtype each.

    Complex numbers travel as pairs of real numbers, Booleans as one-byte integers.

    Args:
      variables: instances of `tf.Variable` with static shapes.
      chunk_bytes: maximum size of a chunk in bytes. Default `CHUNK_BYTES`.

    Attributes:
      variables: the variables.
      bytes: their total size in bytes.
    """

    def __init__(self, variables, chunk_bytes: int = CHUNK_BYTES):
        """Plan the chunks; no tensor is read."""
        self.variables = list(variables)
        self.bytes = sum(v.shape.num_elements() * v.dtype.size for v in self.variables)
        self._pieces: list[_Piece] = []
        self._lengths: list[int] = []  # of the chunks, in elements
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
        shared = None  # the chunk that small variables share at present
        for index, variable in enumerate(self.variables):
            size = variable.shape.num_elements() * (2 if variable.dtype.is_complex else 1)
            if _carrier(variable.dtype) != dtype or not size:
                continue
            if size >= limit / _SHARE:
                # A chunk of several variables is a copy; a variable alone is sent without one.
                part = -(-size // -(-size // limit))  # equal parts …
                part = min(limit, -(-part // _ALIGNED) * _ALIGNED)  # … where TensorFlow can slice
                for start in range(0, size, part):
                    self._place(index, start, min(size, start + part), None)
            else:
                full = shared is None or self._lengths[shared] + size > limit
                shared = self._place(index, 0, size, None if full else shared)

    def _place(self, variable: int, start: int, stop: int, chunk: int | None) -> int:
        """Append a piece to a chunk, or to a new chunk if it is None; return the chunk's index."""
        if chunk is None:
            self._lengths.append(0)
            self._dtypes.append(_carrier(self.variables[variable].dtype))
            chunk = len(self) - 1
        self._pieces.append(_Piece(variable, start, stop, chunk, self._lengths[chunk]))
        self._lengths[chunk] += stop - start
        return chunk

    def pack(self):
        """Return the chunks with the present values of the variables, each `[n]` of one dtype."""
        flat = [_carried(variable) for variable in self.variables]
        parts = [[] for _ in self._lengths]
        for piece in self._pieces:
            parts[piece.chunk].append(flat[piece.variable][piece.start : piece.stop])
        return [tf.concat(part, 0) for part in parts]

    def assign(self, chunks):
        """Set the variables from chunks of the same form as those of `pack`."""
        for variable, value in self._unpacked(chunks):
            variable.assign(_restored(value, variable))

    def add(self, changes):
        """Add chunks of the same lengths, in at least float32, to the variables."""
        for variable, change in self._unpacked(changes):
            if change.dtype == _carrier(variable.dtype):
                variable.assign_add(_restored(change, variable))  # in place
            else:
                change = tf.reshape(change, variable.shape)
                variable.assign(tf.cast(wide(variable) + change, variable.dtype))

    def _unpacked(self, chunks):
        """Yield each variable that is not empty, with its elements as a flat tensor."""
        parts = [[] for _ in self.variables]
        for piece in self._pieces:
            stop = piece.offset + piece.stop - piece.start
            parts[piece.variable].append(chunks[piece.chunk][piece.offset : stop])
        for variable, part in zip(self.variables, parts, strict=True):
            if part:
                yield variable, tf.concat(part, 0)


def _carrier(dtype: tf.DType) -> tf.DType:
    """Return the dtype in which numbers of this dtype travel."""
    return _CARRIERS.get(dtype, dtype)


def _carried(variable):
    """Return a variable's elements as a flat tensor of the dtype in which they travel."""
    flat = tf.reshape(variable, [-1])
    if flat.dtype.is_complex:
        return tf.reshape(tf.bitcast(flat, _carrier(flat.dtype)), [-1])
    return tf.cast(flat, _carrier(flat.dtype))


def _restored(flat, variable):
    """Convert a result of `_carried` back to the variable's own dtype and shape."""
    if variable.dtype.is_complex:
        flat = tf.bitcast(tf.reshape(flat, [-1, 2]), variable.dtype)
    return tf.reshape(tf.cast(flat, variable.dtype), variable.shape)


def wide(chunk):
    """Cast a chunk to at least float32, so that mixing half precision does not round twice."""
    return tf.cast(chunk, tf.float32) if chunk.dtype.size < 4 else chunk
