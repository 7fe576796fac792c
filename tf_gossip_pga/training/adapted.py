"""Describe what layers have adapted to, so that ranks can compare it.

`adapt` leaves lookup tables, means and boundaries that are no Keras variables, or have been copied
from them. No broadcast reaches them. Ranks that have adapted to their own parts of the data give
the same word different rows of one embedding.
"""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_gossip_pga.training.variables import walk

# Bits of a number that are compared: machines may round a mean differently in its last ones.
_BITS = 12


def described(model: keras.Model) -> dict[str, str]:
    """Return, for each layer of a model with a lookup table or an `adapt` method, what it holds.

    Returns:
      `{"the adapted layer 'string_lookup'": "150 values (digest 3fa2c81d)"}`
    """
    found: dict[int, tuple[keras.layers.Layer, list[np.ndarray]]] = {}
    for _, layer, thing in walk(model):
        if isinstance(thing, keras.layers.Layer) and hasattr(thing, "adapt"):
            found.setdefault(id(thing), (thing, []))[1].extend(_arrays(thing))
        elif _is_table(thing):
            found.setdefault(id(layer), (layer, []))[1].extend(_exported(thing))
    texts: dict[str, str] = {}
    for layer, arrays in found.values():
        name = f"the adapted layer {layer.name!r}"
        texts[name if name not in texts else f"{name} ({len(texts)})"] = _text(arrays)
    return texts


def _is_table(thing) -> bool:
    is_resource = isinstance(thing, tf.saved_model.experimental.TrackableResource)
    return is_resource and hasattr(thing, "export")


def _exported(table) -> list[np.ndarray]:
    """Return the keys and values of a lookup table, sorted by its keys."""
    keys, values = (np.asarray(each) for each in table.export())
    order = np.argsort(keys, kind="stable", axis=0)
    return [keys[order], values[order]]


def _arrays(layer) -> list[np.ndarray]:
    """Return the numbers and words that a layer holds as attributes, in the order of names."""
    return [np.asarray(value) for _, value in sorted(vars(layer).items()) if _is_array(value)]


def _is_array(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, (bool, int, float, str)) for each in value)
    is_eager = tf.is_tensor(value) and hasattr(value, "numpy")
    return is_eager or isinstance(value, (np.ndarray, tf.Variable, keras.Variable))


def _text(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(_rounded(array).tobytes())
    return f"{sum(array.size for array in arrays)} values (digest {digest.hexdigest()[:8]})"


def _rounded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "O":  # words, as bytes of any length
        return np.array(repr(array.tolist()))
    if array.dtype.kind != "f":
        return array
    mantissas, exponents = np.frexp(array.astype("float64"))
    return np.ldexp(np.round(np.ldexp(mantissas, _BITS)), exponents - _BITS)
