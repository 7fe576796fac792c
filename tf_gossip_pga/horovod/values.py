"""Encode NumPy arrays and Python objects as JSON-serializable values, and decode them.

Objects are not pickled, because whoever can reach a worker's port could then run any code in it.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import tensorflow as tf


def encoded(value: object) -> Any:
    """Return a JSON-serializable value from which `decoded` restores `value`.

    Args:
      value: None, a Boolean, number, string or bytes; a NumPy array or number; an eager
        TensorFlow tensor or a variable, which `decoded` returns as a NumPy array; or a list, tuple
        or dict of such values.

    Raises:
      TypeError: `value` is or contains something else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if type(value) is list:
        return [encoded(each) for each in value]
    if type(value) is tuple:
        return {"tuple": [encoded(each) for each in value]}
    if type(value) is dict:
        return {"dict": [[encoded(key), encoded(each)] for key, each in value.items()]}
    return {"number" if isinstance(value, np.generic) else "array": _encoded_array(value)}


def _encoded_array(value: object) -> list:
    array = np.asarray(value)
    # Objects of subclasses, such as a named tuple, would become arrays.
    if array.dtype.kind in "OUSMm" or isinstance(value, list | tuple | dict):
        raise TypeError(
            f"Cannot send a {type(value).__name__} to other workers. Accepted are numbers, "
            "strings, bytes, NumPy arrays of numbers, and lists, tuples and dicts of these. "
            "Convert the object to one of them."
        )
    # TensorFlow's names, because NumPy itself does not know bfloat16.
    name = tf.as_dtype(array.dtype).name
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # names have no byte order
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [name, list(array.shape), text]


def decoded(value: Any) -> Any:
    """Return the value from which `encoded` made its argument."""
    if isinstance(value, list):
        return [decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in ("array", "number"):
        name, shape, text = content
        dtype = tf.as_dtype(name).as_numpy_dtype
        # A copy, because frombuffer returns an array that cannot be written to.
        array = np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy()
        return array[()] if tag == "number" else array
    if tag == "bytes":
        return base64.b64decode(content)
    if tag == "dict":
        return {decoded(key): decoded(each) for key, each in content}
    return tuple(decoded(each) for each in content)
