"""Collect the variables that a run averages, by what becomes of them."""

from __future__ import annotations

import keras

from tf_gossip_pga.exchange.averager import Variables


class SharedScalars:
    """Numbers that travel with the global averages next to the model.

    Args:
      with_loss: whether the training loss is one of them.

    Attributes:
      votes: > 0 after a global average in which a rank wanted to stop.
      loss: the training loss; None without it.
    """

    def __init__(self, with_loss: bool):
        self.votes = _scalar("votes")
        self.loss = _scalar("loss") if with_loss else None

    @property
    def variables(self) -> list:
        """Return the `tf.Variable`s behind them."""
        return [each.value for each in (self.votes, self.loss) if each is not None]


def variables_of(model: keras.Model, optimizer_state: str, scalars: SharedScalars) -> Variables:
    """Return what a run exchanges.

    Args:
      model: compiled, with a built optimizer.
      optimizer_state: what becomes of the optimizer's slots; see `GossipPGA`.
      scalars: what travels with the global averages next to the model.
    """
    slots = [v for v in model.optimizer.variables if is_slot(v)]
    return Variables(
        parameters=_floating(model.trainable_variables),
        statistics=[*_floating(model.non_trainable_variables), *scalars.variables],
        others=[v.value for v in model.optimizer.variables],
        slots=[] if optimizer_state == "local" else _floating(slots),
    )


def is_slot(variable: keras.Variable) -> bool:
    """Return whether an optimizer's variable is one of its slots (momentum and the like).

    Slots are its floating-point variables other than scalars.
    """
    return len(variable.shape) > 0 and keras.backend.is_float_dtype(variable.dtype)


def _scalar(name: str) -> keras.Variable:
    return keras.Variable(0.0, trainable=False, dtype="float32", name=name)


def _floating(variables) -> list:
    """Return the `tf.Variable`s behind those Keras variables that hold floating-point numbers."""
    return [v.value for v in variables if keras.backend.is_float_dtype(v.dtype)]
