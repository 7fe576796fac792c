"""Save and load what a rank keeps for itself: the variables no global average makes equal.

They are written as `.npz` without pickle, each by its place among the variables of the model and
its optimizers, in the order of `preflight.described`. So are variables that Keras does not know and
does not write with the model's weights.
"""

import os
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from tf_gossip_pga.training.variables import Held, held

# How the names of these files begin.
PREFIX = "rank-"


def places(model, averages_slots: bool, local: Collection[str]) -> list[int]:
    """Return the places of the variables that global averages leave alone, or Keras does not save.

    These are integers, random states, the optimizers' variables and what is local.

    Args:
      model: with built optimizers.
      averages_slots: whether a global average makes the optimizers' slots equal too.
      local: names of what each rank keeps for itself; see `GossipPGA`.
    """

    def is_in_weights(each: Held) -> bool:
        is_equal = each.is_averaged or (averages_slots and each.is_slot)
        return is_equal and not each.is_raw and not each.is_local(local)

    return [
        place
        for place, each in enumerate(held(model))
        if each.is_sendable and not is_in_weights(each)
    ]


def rank_name(rank: int) -> str:
    """Return the name of the file that a rank writes for itself."""
    return f"{PREFIX}{rank}.npz"


def copies(variables: list[Held]) -> list[tuple[Held, np.ndarray]]:
    """Return each variable with its present value."""
    return [(each, np.asarray(each.value.numpy())) for each in variables]


def save(path: str | os.PathLike, model, places: list[int]):
    """Write the variables at these places."""
    everything = held(model)
    arrays = copies([everything[place] for place in places])
    by_place = {str(place): value for place, (_, value) in zip(places, arrays, strict=True)}
    np.savez(path, allow_pickle=False, **by_place)


def load(path: str | os.PathLike, model) -> list[tuple[Held, np.ndarray]]:
    """Return variables of the model with the values that they have in a file of `save`.

    Raises:
      ValueError: the file's variables are not this model's; and what NumPy raises for a file that
        it cannot read.
    """
    everything, found = held(model), []
    # NumPy leaves a file open that it cannot read.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        for name in file.files:
            variable, value = everything[int(name)], file[name]
            wanted = np.dtype(variable.value.dtype.as_numpy_dtype)
            if value.dtype.kind == "V" and value.dtype.itemsize == wanted.itemsize:
                value = value.view(wanted)  # bfloat16, which NumPy's format does not know
            if value.dtype != wanted or value.shape != tuple(variable.value.shape):
                raise ValueError(f"{variable.path} is {list(value.shape)} {value.dtype} there")
            found.append((variable, value))
    return found


def is_finite(model) -> bool:
    """Return whether all floating-point variables of a model are finite."""
    floating = [each.value for each in held(model) if each.is_averaged]
    return all(bool(tf.reduce_all(tf.math.is_finite(tf.abs(value)))) for value in floating)
