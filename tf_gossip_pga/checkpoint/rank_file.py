"""Save and load each rank's own variables, which global averages do not make equal.

Each rank writes one file, an `.npz` without pickled data. The file also holds variables that Keras
does not track and so does not save with the model's weights. Each array is named after the
variable's position among the variables of the model and its optimizers, in the order of
`preflight.described`.
"""

import os
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from tf_gossip_pga.training.variables import Held, held

# Prefix of these files' names.
PREFIX = "rank-"


def places(model, averages_slots: bool, local: Collection[str]) -> list[int]:
    """Return the positions of the variables that each rank must save for itself.

    These are integers, random states, optimizer variables (except slots if `averages_slots`),
    variables named in `local`, and variables that Keras does not save.

    Args:
      model: a model with built optimizers.
      averages_slots: whether a global average also makes the optimizers' slots equal.
      local: the `local` argument of `GossipPGA`.
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
    """Return the name of a rank's file."""
    return f"{PREFIX}{rank}.npz"


def copies(variables: list[Held]) -> list[tuple[Held, np.ndarray]]:
    """Return each variable with a copy of its current value."""
    return [(each, np.asarray(each.value.numpy())) for each in variables]


def save(path: str | os.PathLike, model, places: list[int]):
    """Write the variables at these positions to a file.

    Args:
      path: path of the file.
      model: a model with built optimizers.
      places: the result of the function `places`.
    """
    everything = held(model)
    arrays = copies([everything[place] for place in places])
    by_place = {str(place): value for place, (_, value) in zip(places, arrays, strict=True)}
    np.savez(path, allow_pickle=False, **by_place)


def load(path: str | os.PathLike, model) -> list[tuple[Held, np.ndarray]]:
    """Return the variables in a file with their values. Does not assign the values.

    If NumPy or zipfile cannot read the file, they raise errors other than those below.

    Args:
      path: path of a file that `save` wrote.
      model: a model with built optimizers.

    Raises:
      ValueError: a variable has a different shape or dtype in the file than in the model.
    """
    everything, found = held(model), []
    # Open the file here, because NumPy does not close a file that it cannot read.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        for name in file.files:
            variable, value = everything[int(name)], file[name]
            wanted = np.dtype(variable.value.dtype.as_numpy_dtype)
            if value.dtype.kind == "V" and value.dtype.itemsize == wanted.itemsize:
                value = value.view(wanted)  # bfloat16, which NumPy's format does not support
            if value.dtype != wanted or value.shape != tuple(variable.value.shape):
                raise ValueError(
                    f"{variable.path} has shape {list(value.shape)} and dtype {value.dtype} in the "
                    f"file, but {list(variable.value.shape)} and {wanted} in the model"
                )
            found.append((variable, value))
    return found


def is_finite(model) -> bool:
    """Return whether a model's floating-point variables, except its optimizers', are all finite."""
    floating = [each.value for each in held(model) if each.is_averaged]
    return all(bool(tf.reduce_all(tf.math.is_finite(tf.abs(value)))) for value in floating)
