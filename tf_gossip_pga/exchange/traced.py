"""Trace a function of tensors once and never again."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


class Traced:
    """A function of tensors, traced at its first call.

    A concrete function cannot retrace. It also avoids TensorFlow's warning about many small
    functions of one name, which every `fit` of a program would bring nearer.

    Args:
      body: the function to trace.

    Attributes:
      total: how many functions this process has traced so far.
    """

    total = 0

    def __init__(self, body: Callable):
        self._body = body
        self._concrete = None

    def __call__(self, *tensors):
        """Return `body(*tensors)`, as a graph."""
        if self._concrete is None:
            function = tf.function(self._count, autograph=False)
            self._concrete = function.get_concrete_function(*tensors)
        return self._concrete(*tensors)

    def _count(self, *tensors):
        Traced.total += 1  # Python runs this when it traces
        return self._body(*tensors)
