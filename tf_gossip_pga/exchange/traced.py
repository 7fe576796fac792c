"""Trace a function of tensors exactly once."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


class Traced:
    """A function of tensors, traced at its first call.

    A `Traced` holds a concrete function, which is never retraced. TensorFlow warns if a program
    creates many small functions of the same name. Concrete functions avoid this warning in programs
    with many `fit` calls.

    Args:
      body: the function to trace.

    Attributes:
      total: number of `Traced` functions that this process has traced so far.
    """

    total = 0

    def __init__(self, body: Callable):
        """Store the function. It is traced at the first call."""
        self._body = body
        self._concrete = None

    def __call__(self, *tensors):
        """Return `body(*tensors)`, run as a graph. All calls need the same shapes and dtypes."""
        if self._concrete is None:
            function = tf.function(self._count, autograph=False)
            self._concrete = function.get_concrete_function(*tensors)
        return self._concrete(*tensors)

    def _count(self, *tensors):
        Traced.total += 1  # runs only during tracing
        return self._body(*tensors)
