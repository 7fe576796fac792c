"""Define what is minimized in a simulation: a loss, and the data that each node has of its own.

A problem is one function of one node, `loss(x, *batch)`, in TensorFlow operations; the simulation
makes it a function of all nodes at once. With f_i the mean loss over node i's own data, the nodes
together minimize f(x) = 1/n sum_i f_i(x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss, each node's data, and the start of all nodes.

    Attributes:
      loss: `(x [d], *batch) -> scalar`, the mean over a batch of one node, where `batch` has an
        array `[batch, …]` for each one in `data`. Differentiable TensorFlow operations that
        `tf.vectorized_map` can vectorize.
      data: arrays `[nodes, samples, …]`; node i draws its batches from `[i]` of each.
      initial: `[d]`, float32 or float64, the type of all computations.
      minimum: f*, the minimum of f, or a lower bound where it is not known: curves show
        f(x) - minimum. Default 0.

    Raises:
      ValueError: the arrays' shapes do not fit, or `initial` is not a vector of floats.

    Example: the mean of all nodes' numbers, as the minimum of a parabola.

        >>> numbers = np.arange(8, dtype=np.float32).reshape(4, 2)  # of 4 nodes, 2 each
        >>> problem = Problem(lambda x, b: tf.reduce_mean((x[0] - b) ** 2), (numbers,), np.zeros(1))
        >>> problem.nodes, problem.samples, problem.dimension
        (4, 2, 1)
    """

    loss: Callable[..., Any]
    data: tuple[np.ndarray, ...]
    initial: np.ndarray
    minimum: float = 0.0

    def __post_init__(self):
        self._check_initial()
        self._check_data()

    def _check_initial(self) -> None:
        initial = np.asarray(self.initial)
        if initial.ndim != 1 or not initial.size or initial.dtype not in (np.float32, np.float64):
            raise ValueError(
                "initial must be a vector [d] of float32 or float64, received shape "
                f"{initial.shape} of {initial.dtype}."
            )

    def _check_data(self) -> None:
        shapes = [np.shape(array) for array in self.data]
        if not shapes or any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(
                "data must be arrays [nodes, samples, …] that agree in the first two sizes, "
                f"received shapes {shapes}."
            )
        if 0 in shapes[0][:2]:
            raise ValueError(f"data must have nodes and samples, received shapes {shapes}.")

    @property
    def nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.data[0])

    @property
    def samples(self) -> int:
        """Number of samples that each node has."""
        return len(self.data[0][0])

    @property
    def dimension(self) -> int:
        """Number of parameters, d."""
        return len(self.initial)


def from_keras(model: Any, loss: Any, x: npt.ArrayLike, y: npt.ArrayLike) -> Problem:
    """Return the problem of training a Keras model from its present weights.

    The parameters are the trainable variables one after the other, flat. The loss is that of the
    outputs plus the model's own regularizers.

    Args:
      model: a built `keras.Model`, with one input and one output. It is not changed.
      loss: what `keras.losses.get` accepts, except a sum over samples.
      x: inputs `[nodes, samples, …]`.
      y: targets `[nodes, samples, …]`.

    Raises:
      ValueError: the model is not built, or has variables that are not trained (of BatchNorm, or
        of a random generator), which a simulation would not keep; or the loss is a sum.

    Example:

        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        problem = from_keras(model, entropy, images, labels)
    """
    _check_model(model)
    criterion = _mean_criterion(loss)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    sizes = [math.prod(shape) for shape in shapes]

    def flat_loss(x, inputs, targets):
        parts = tf.split(x, sizes)
        variables = [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
        outputs, _, extra = model.stateless_call(
            variables, [], inputs, training=True, return_losses=True
        )
        return tf.add_n([tf.reduce_mean(criterion(targets, outputs)), *extra])

    initial = np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])
    return Problem(flat_loss, (np.asarray(x), np.asarray(y)), initial)


def _check_model(model: Any) -> None:
    if not model.built or not model.trainable_variables:
        raise ValueError(
            "The model has no trainable variables: build it, and leave some trainable."
        )
    if model.non_trainable_variables:
        names = ", ".join(variable.path for variable in model.non_trainable_variables)
        raise ValueError(
            f"A simulation keeps trainable variables alone, and this model also has {names}. Leave "
            "BatchNorm, dropout and frozen layers out; GroupNormalization is an alternative."
        )


def _mean_criterion(loss: Any) -> Any:
    import keras

    criterion: Any = keras.losses.get(loss)
    if getattr(criterion, "reduction", None) == "sum":
        raise ValueError(
            f"{criterion.name} has reduction='sum': its scale would depend on how many samples are "
            "evaluated. Leave the default, the mean over samples."
        )
    return criterion
