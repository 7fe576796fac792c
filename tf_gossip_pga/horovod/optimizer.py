"""Mark optimizers whose steps must be averaged: `DistributedOptimizer`, `load_model`."""

from __future__ import annotations

import enum
import functools
import math
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tf_gossip_pga.horovod import collectives, processes
from tf_gossip_pga.training import driver


class Compression(enum.Enum):
    """How Horovod would compress gradients. Global averages are sent in the parameters' dtype."""

    none = "none"
    fp16 = "fp16"


# Arguments of Horovod that only change how gradients travel, not what is computed.
_WITHOUT_EFFECT = {
    *("device_dense", "device_sparse", "sparse_as_dense"),
    *("gradient_predivide_factor", "num_groups", "groups"),
}
_REFUSED = {
    "process_set": "All workers train together. Remove this argument.",
    "scale_local_gradients": (
        "There are no local gradients. To keep layers local, pass pga.GossipPGA(H=1, local=[…]) to "
        "fit instead of BroadcastGlobalVariablesCallback."
    ),
}

# Each marked optimizer, and the compression that the script requested.
_marked: weakref.WeakKeyDictionary[keras.optimizers.Optimizer, Compression] = (
    weakref.WeakKeyDictionary()
)


def DistributedOptimizer(  # noqa: N802
    optimizer: keras.optimizers.Optimizer,
    name: str | None = None,
    compression: Compression = Compression.none,
    op: collectives.ReduceOp = collectives.Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    **others: Any,
) -> keras.optimizers.Optimizer:
    """Mark an optimizer, so that training with it raises an error if no callback averages.

    The optimizer itself does not communicate. `hvd.callbacks.BroadcastGlobalVariablesCallback` (or
    a `pga.GossipPGA`) averages the parameters after each of its steps. If there is none, the first
    `fit` of a model raises the error at its first step, and a later `fit` when training ends.

    Args:
      optimizer: a Keras optimizer.
      name: has no effect.
      compression: has no effect, because global averages are exact.
      op: only `hvd.Average`.
      backward_passes_per_step: number of batches whose gradients are accumulated for one step. If
        it is not 1, `average_aggregated_gradients` must be True; it then becomes the optimizer's
        `gradient_accumulation_steps`. Default 1.
      average_aggregated_gradients: whether accumulated gradients are averaged instead of summed.
      **others: `device_dense`, `device_sparse`, `sparse_as_dense`, `gradient_predivide_factor`,
        `num_groups` and `groups` have no effect. Other arguments raise an error.

    Returns:
      The same object, with the same class and configuration. A saved model therefore loads without
      this package.

    Raises:
      TypeError: `optimizer` is not an optimizer of Keras 3, or an argument is unknown.
      ValueError: an argument has no equivalent.
      RuntimeError: `init` was not called. In training with several workers: no callback averages.

    Example:
      >>> import keras
      >>> import tf_gossip_pga.horovod as hvd
      >>> hvd.init()
      >>> sgd = keras.optimizers.SGD(0.01 * hvd.size(), momentum=0.9)
      >>> hvd.DistributedOptimizer(sgd) is sgd
      True
    """
    processes.cluster()
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "hvd.DistributedOptimizer needs an optimizer of Keras 3, such as "
            f"keras.optimizers.SGD(0.1), received {optimizer!r}."
        )
    _check(op, others)
    if not isinstance(compression, Compression):
        raise ValueError(
            "compression must be hvd.Compression.none or hvd.Compression.fp16, received "
            f"{compression!r}."
        )
    if backward_passes_per_step != 1:
        _accumulate(optimizer, backward_passes_per_step, average_aggregated_gradients)
    _mark(optimizer, compression)
    return optimizer


def _check(op: Any, others: dict[str, Any]) -> None:
    """Raise if an argument of `DistributedOptimizer` has no equivalent."""
    if op is not collectives.Average:
        raise ValueError(
            f"op must be hvd.Average, received {op!r}. hvd.Sum is the same as hvd.Average with a "
            "learning rate that is hvd.size() times as high, if the optimizer is SGD."
        )
    for name in others:
        if name in _REFUSED:
            raise ValueError(
                f"hvd.DistributedOptimizer does not support {name!r}. {_REFUSED[name]}"
            )
        if name not in _WITHOUT_EFFECT:
            raise TypeError(f"hvd.DistributedOptimizer has no argument {name!r}.")


def _accumulate(optimizer: keras.optimizers.Optimizer, passes: int, is_mean: bool) -> None:
    """Let the optimizer accumulate gradients, as Keras does it: it takes their mean."""
    if not is_mean:
        raise ValueError(
            f"backward_passes_per_step={passes} sums {passes} gradients, but Keras averages "
            "accumulated gradients. Pass average_aggregated_gradients=True too. To keep the sum, "
            f"multiply the learning rate by {passes}, if the optimizer is SGD."
        )
    if optimizer.built:
        raise ValueError(
            "backward_passes_per_step needs an optimizer that is not built. Call "
            "hvd.DistributedOptimizer before the optimizer's build and before fit."
        )
    optimizer.gradient_accumulation_steps = passes


def _mark(optimizer: keras.optimizers.Optimizer, compression: Compression) -> None:
    """Check before each use of the optimizer by `fit` that a callback averages."""
    if optimizer not in _marked:
        # Keras calls `apply` when it traces the training step, which happens in the first fit. It
        # calls `finalize_variable_values` at the end of every fit.
        for method in ("apply", "finalize_variable_values"):
            checked = functools.partial(_checked, optimizer, getattr(optimizer, method))
            setattr(optimizer, method, checked)
    _marked[optimizer] = compression


def _checked(optimizer: keras.optimizers.Optimizer, method: Callable, *args, **kwargs) -> Any:
    if processes.workers() > 1 and not driver.is_averaging(optimizer):
        raise RuntimeError(
            f"This {type(optimizer).__name__} was passed to hvd.DistributedOptimizer, but no "
            "callback averages the models of the workers. Pass "
            "callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0)] or "
            "callbacks=[pga.GossipPGA(H=6)] to model.fit on every rank. A custom training loop "
            "must call the hooks of a keras.callbacks.CallbackList that contains this callback."
        )
    return method(*args, **kwargs)


def load_model(
    filepath: str | os.PathLike,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Compression = Compression.none,
    legacy_opts: bool = False,
) -> keras.Model:
    """Load a model with `keras.models.load_model`, and mark its optimizer.

    Args:
      filepath: the file of the model.
      custom_optimizers: classes of optimizers that Keras does not know by name.
      custom_objects: see `keras.models.load_model`.
      compression: see `DistributedOptimizer`.
      legacy_opts: only False, because Keras 3 has no legacy optimizers.

    Returns:
      The model. If it was saved with an optimizer, `DistributedOptimizer` was applied to it.

    Raises:
      ValueError: `legacy_opts` is True, or Keras cannot load the file.
      RuntimeError: `init` was not called.
    """
    processes.cluster()
    if legacy_opts:
        raise ValueError("legacy_opts must be False: Keras 3 has no legacy optimizers.")
    objects = {each.__name__: each for each in custom_optimizers or ()}
    model: Any = keras.models.load_model(
        os.fspath(filepath), custom_objects={**objects, **(custom_objects or {})}
    )
    if model.optimizer is not None:
        DistributedOptimizer(model.optimizer, compression=compression)
    return model


def explanation(optimizer: keras.optimizers.Optimizer, size: int) -> str:
    """Return a line that says what Horovod's API maps to for this optimizer.

    Args:
      optimizer: the optimizer of the model, or a `LossScaleOptimizer` around it.
      size: number of workers.
    """
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    line = (
        f"Horovod's API runs GossipPGA(H=1): {size} workers average parameters, not gradients, "
        f"after every step. {_difference(inner, size, is_scaled=inner is not optimizer)}"
    )
    if _marked.get(inner) is Compression.fp16:
        line += " Compression.fp16 has no effect."
    return line


def _difference(optimizer: keras.optimizers.Optimizer, size: int, is_scaled: bool) -> str:
    """Return how averaging parameters differs from averaging gradients.

    Args:
      optimizer: the optimizer.
      size: number of workers.
      is_scaled: whether a `LossScaleOptimizer` wraps the optimizer.
    """
    name = type(optimizer).__name__
    guide = "See docs/guides/from-horovod.md."
    if isinstance(optimizer, keras.optimizers.SGD):
        if optimizer.clipnorm or optimizer.clipvalue or optimizer.global_clipnorm:
            return f"{name} clips each worker's own gradient, not their mean. {guide}"
        if is_scaled:
            return f"A worker whose scaled gradient overflows skips its step alone. {guide}"
        if optimizer.use_ema:
            return f"{name} keeps the moving average of each worker's own parameters. {guide}"
        return f"With {name} the result is the same."
    if isinstance(optimizer, keras.optimizers.Adam):
        return (
            f"With {name} the steps are shorter: multiply the learning rate by sqrt({size}) = "
            f"{math.sqrt(size):.2f}. {guide}"
        )
    return f"With {name} the result is not the same. {guide}"
