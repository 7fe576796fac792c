"""Save and load the state of the outer optimizer, which is equal on all ranks.

The chief writes one file, an `.npz` without pickled data, with the arrays `anchor-0`, `velocity-0`,
`anchor-1`, … in the order of the model's parameters.
"""

import os

import numpy as np
import tensorflow as tf

from tf_gossip_pga.exchange.outer_state import OuterState

# Name of the file.
NAME = "outer.npz"


def save(path: str | os.PathLike, outer: OuterState):
    """Write the state to a file.

    Args:
      path: path of the file.
      outer: a state that serves the parameters of a model.
    """
    arrays = {name: variable.numpy() for name, variable in _named(outer).items()}
    np.savez(path, allow_pickle=False, **arrays)


def load(path: str | os.PathLike, outer: OuterState):
    """Set the state from a file.

    If NumPy or zipfile cannot read the file, they raise errors other than those below.

    Args:
      path: path of a file that `save` wrote.
      outer: a state that serves the parameters of a model.

    Raises:
      ValueError: the file belongs to other parameters.
    """
    variables = _named(outer)
    # Open the file here, because NumPy does not close a file that it cannot read.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    wanted = {name: (each.dtype, tuple(each.shape)) for name, each in variables.items()}
    if {name: (tf.as_dtype(each.dtype), each.shape) for name, each in found.items()} != wanted:
        raise ValueError("it belongs to other parameters. Check the argument local of GossipPGA")
    for name, variable in variables.items():
        variable.assign(found[name])


def _named(outer: OuterState) -> dict[str, tf.Variable]:
    pairs = enumerate(zip(outer.anchor, outer.velocity, strict=True))
    return {
        f"{kind}-{index}": variable
        for index, pair in pairs
        for kind, variable in zip(("anchor", "velocity"), pair, strict=True)
    }
