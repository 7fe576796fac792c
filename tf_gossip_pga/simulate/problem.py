"""Define what a simulation minimizes: a loss and each node's data.

The loss is a function `loss(x, *batch)` for one node, written in TensorFlow operations. The
simulation vectorizes this function over all nodes. If f_i is the mean loss over node i's data, the
n nodes together minimize f(x) = 1/n sum_i f_i(x).
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
    """A loss, the data of each node, and the initial parameters.

    Attributes:
      loss: `(x [d], *batch) -> scalar`, the mean loss over one node's batch. `batch` contains an
        array `[batch, …]` for each array in `data`. The loss must consist of differentiable
        TensorFlow operations that `tf.vectorized_map` supports.
      data: arrays `[nodes, samples, …]`. Node i draws its batches from `array[i]` of each array.
      initial: `[d]`, float32 or float64, the initial parameters of every node. All computations use
        this dtype.
      minimum: f*, the minimum of f, or a lower bound if the minimum is unknown. Here, f is the mean
        loss over the data of all nodes. Curves show f(x) - minimum. Default 0.

    Raises:
      ValueError: the shapes of the arrays are inconsistent, or `initial` is not a vector of floats.

    Example:
      The minimum of this parabola is the mean of all numbers:

      >>> import numpy as np
      >>> import tensorflow as tf
      >>> from tf_gossip_pga import simulate
      >>> numbers = np.arange(8, dtype=np.float32).reshape(4, 2)  # 4 nodes with 2 samples each
      >>> def loss(x, b):
      ...     return tf.reduce_mean((x[0] - b) ** 2)
      >>> problem = simulate.Problem(loss, (numbers,), initial=np.zeros(1))
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
            raise ValueError(
                f"data must have at least one node and one sample, received shapes {shapes}."
            )

    @property
    def nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.data[0])

    @property
    def samples(self) -> int:
        """Number of samples of each node."""
        return len(self.data[0][0])

    @property
    def dimension(self) -> int:
        """Number of parameters, d."""
        return len(self.initial)


def from_keras(model: Any, loss: Any, x: npt.ArrayLike, y: npt.ArrayLike) -> Problem:
    """Return the problem of training a Keras model from its current weights.

    The parameters are the model's trainable variables, flattened and concatenated. The loss is the
    mean of `loss` over the batch, plus the model's regularization losses.

    Args:
      model: a built `keras.Model` with one input and one output. It is not changed.
      loss: a loss or its name, as for `keras.losses.get`. The loss must not sum over samples.
      x: inputs, `[nodes, samples, …]`.
      y: targets, `[nodes, samples, …]`.

    Returns:
      A `Problem` whose `minimum` is 0, because the minimum of the loss is unknown.

    Raises:
      ValueError: the model is not built, has no trainable variables, or has non-trainable variables
        (from BatchNorm, dropout or frozen layers), which simulations do not support; or the loss
        sums over samples.

    Example:
      >>> import keras
      >>> import numpy as np
      >>> from tf_gossip_pga import simulate
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
      >>> x = np.ones((4, 10, 3), np.float32)  # 4 nodes with 10 samples each
      >>> y = np.zeros((4, 10, 1), np.float32)
      >>> simulate.from_keras(model, "mse", x, y).dimension
      4
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
            "The model has no trainable variables. Build it, and leave some variables trainable."
        )
    if model.non_trainable_variables:
        names = ", ".join(variable.path for variable in model.non_trainable_variables)
        raise ValueError(
            f"A simulation supports trainable variables only, but this model also has {names}. "
            "Leave BatchNorm, dropout and frozen layers out. GroupNormalization can replace "
            "BatchNorm."
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
