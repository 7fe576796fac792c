"""Collect the variables that a run averages, by what becomes of them."""

from __future__ import annotations

import math

import keras

from tf_gossip_pga.exchange.averager import Variables


class SharedScalars:
    """Numbers that travel with the global averages next to the model.

    Args:
      with_loss: whether the training loss is one of them.
    """

    def __init__(self, with_loss: bool):
        self._votes = _scalar("votes")
        self._loss = _scalar("loss") if with_loss else None

    @property
    def variables(self) -> list:
        """The `tf.Variable`s behind them."""
        return [each.value for each in (self._votes, self._loss) if each is not None]

    def clear_votes(self):
        """Begin a fit, in which nobody has voted yet."""
        self._votes.assign(0.0)

    def tell(self, stop: bool, loss: float | None):
        """Set what this rank contributes to the next global average.

        Args:
          stop: whether this rank wants to stop.
          loss: its training loss; None where it is not one of the numbers.
        """
        if self._loss is not None:
            self._loss.assign(loss)
        if stop:
            self._votes.assign(1.0)

    @property
    def is_stop(self) -> bool:
        """Whether some rank wanted to stop at the last global average."""
        return bool(self._votes.numpy() > 0)

    @property
    def loss(self) -> float:
        """The mean over ranks of the loss, after a global average; NaN without it."""
        return math.nan if self._loss is None else float(self._loss.numpy())


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
