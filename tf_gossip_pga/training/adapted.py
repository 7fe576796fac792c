"""Describe the state of adapted layers, so that the ranks can compare it.

A layer's `adapt` method produces lookup tables, means, and boundaries. Some of these are not Keras
variables, and others are copies of variables, so the broadcast of rank 0's variables does not
update them. If each rank adapts a lookup layer to its own part of the data, the ranks map the same
word to different rows of an embedding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_gossip_pga.training.variables import walk

# How many leading bits of each number are compared. Machines may round the last bits differently.
_BITS = 12


def described(model: keras.Model, local: Collection[str] = ()) -> dict[str, str]:
    """Describe the state of each layer that has a lookup table or an `adapt` method.

    Args:
      model: the model to be trained.
      local: names of layers that each rank keeps to itself. Default: none.

    Returns:
      A dict that maps each layer to a description, such as
      `{"the adapted layer 'string_lookup'": "150 values (digest 3fa2c81d)"}`.
    """
    found: dict[int, tuple[keras.layers.Layer, list[np.ndarray]]] = {}
    # id of a layer with `adapt` -> the outermost such layer that holds it, which may be itself. For
    # example, a TextVectorization holds a StringLookup.
    around: dict[int, keras.layers.Layer] = {}
    for _, holder, thing in walk(model):
        is_layer = isinstance(thing, keras.layers.Layer) and not isinstance(thing, keras.Model)
        if is_layer and hasattr(thing, "adapt"):
            layer = around[id(thing)] = around.get(id(holder), thing)
            found.setdefault(id(layer), (layer, []))[1].extend(_arrays(thing))
        elif _is_table(thing):
            layer = around.get(id(holder), holder)
            found.setdefault(id(layer), (layer, []))[1].extend(_exported(thing))
    texts: dict[str, str] = {}
    for layer, arrays in found.values():
        if layer.name in local:
            continue
        # Drop the number at the end of the name. Keras counts the layers of each process, so this
        # number may differ between ranks.
        name = f"the adapted layer {re.sub(r'_[0-9]+$', '', layer.name)!r}"
        texts[name if name not in texts else f"{name} ({len(texts)})"] = _text(arrays)
    return texts


def _is_table(thing) -> bool:
    is_resource = isinstance(thing, tf.saved_model.experimental.TrackableResource)
    return is_resource and hasattr(thing, "export")


def _exported(table) -> list[np.ndarray]:
    """Return the keys and values of a lookup table, sorted by key."""
    keys, values = (np.asarray(each) for each in table.export())
    order = np.argsort(keys, kind="stable", axis=0)
    return [keys[order], values[order]]


def _arrays(layer) -> list[np.ndarray]:
    """Return the numbers and words in a layer's attributes, ordered by attribute name.

    Variables are not included, because rank 0's are broadcast to all ranks.
    """
    return [np.asarray(value) for _, value in sorted(vars(layer).items()) if _is_array(value)]


def _is_array(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, (bool, int, float, str)) for each in value)
    if isinstance(value, (tf.Variable, keras.Variable)):
        return False
    return isinstance(value, np.ndarray) or (tf.is_tensor(value) and hasattr(value, "numpy"))


def _text(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(_rounded(array).tobytes())
    return f"{sum(array.size for array in arrays)} values (digest {digest.hexdigest()[:8]})"


def _rounded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "O":  # words, as bytes objects
        return np.array(repr(array.tolist()))
    if array.dtype.kind != "f":
        return array
    mantissas, exponents = np.frexp(array.astype("float64"))
    return np.ldexp(np.round(np.ldexp(mantissas, _BITS)), exponents - _BITS)
