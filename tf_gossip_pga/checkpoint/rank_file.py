"""Save and load what a rank keeps for itself: the variables no global average makes equal.

They are written as `.npz` without pickle, each by its place among the variables of the model and
its optimizer, in the order of `preflight.described`.
"""

import os

import keras
import numpy as np
import tensorflow as tf

from tf_gossip_pga.training.variables import is_slot

# How the names of these files begin.
PREFIX = "rank-"


def variables(model) -> list[keras.Variable]:
    """Return the variables of a model and of its built optimizer."""
    return [*model.variables, *model.optimizer.variables]


def places(model, averages_slots: bool) -> list[int]:
    """Return the places of the variables that global averages leave alone.

    These are integers, random states and the optimizer's variables.

    Args:
      model: with a built optimizer.
      averages_slots: whether a global average makes the optimizer's slots equal too.
    """
    averaged = [keras.backend.is_float_dtype(v.dtype) for v in model.variables]
    averaged += [averages_slots and is_slot(v) for v in model.optimizer.variables]
    return [place for place, is_averaged in enumerate(averaged) if not is_averaged]


def rank_name(rank: int) -> str:
    """Return the name of the file that a rank writes for itself."""
    return f"{PREFIX}{rank}.npz"


def copies(variables: list[keras.Variable]) -> list[tuple[keras.Variable, np.ndarray]]:
    """Return each variable with its present value."""
    return [(each, np.asarray(keras.ops.convert_to_numpy(each))) for each in variables]


def save(path: str | os.PathLike, model, places: list[int]):
    """Write the variables at these places."""
    everything = variables(model)
    arrays = copies([everything[place] for place in places])
    by_place = {str(place): value for place, (_, value) in zip(places, arrays, strict=True)}
    np.savez(path, allow_pickle=False, **by_place)


def load(path: str | os.PathLike, model) -> list[tuple[keras.Variable, np.ndarray]]:
    """Return variables of the model with the values that they have in a file of `save`.

    Raises:
      ValueError: the file's variables are not this model's; and what NumPy raises for a file that
        it cannot read.
    """
    everything, found = variables(model), []
    # NumPy leaves a file open that it cannot read.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        for name in file.files:
            variable, value = everything[int(name)], file[name]
            wanted = np.dtype(variable.dtype)
            if value.dtype.kind == "V" and value.dtype.itemsize == wanted.itemsize:
                value = value.view(wanted)  # bfloat16, which NumPy's format does not know
            if value.dtype != wanted or value.shape != variable.shape:
                raise ValueError(f"{variable.path} is {list(value.shape)} {value.dtype} there")
            found.append((variable, value))
    return found


def is_finite(model) -> bool:
    """Return whether all floating-point variables of a model are finite."""
    floating = [v for v in model.variables if keras.backend.is_float_dtype(v.dtype)]
    return all(bool(tf.reduce_all(tf.math.is_finite(v.value))) for v in floating)
