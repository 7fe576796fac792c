"""The callbacks of Horovod's Keras API: those that average, and those that set learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_gossip_pga._log import logger
from tf_gossip_pga.horovod import optimizer as optimizer_lib
from tf_gossip_pga.horovod import processes
from tf_gossip_pga.observe import launched
from tf_gossip_pga.training import callback_list, driver
from tf_gossip_pga.training.callback import GossipPGA

_explained: set[str] = set()  # the lines that this process has logged


class BroadcastGlobalVariablesCallback(GossipPGA):
    """Broadcast rank 0's variables when `fit` starts, and average parameters after every step.

    This is a `GossipPGA` with `H=1`, so it also averages logs, and validates the averaged model.
    It builds a model that is not built, if `fit` was called with arrays, a `tf.data.Dataset` or a
    `keras.utils.PyDataset`. The chief logs one line, which says how this differs from averaging
    gradients.

    Args:
      root_rank: only 0, the rank whose variables all other ranks take.
      device: has no effect.
      local_variables: only None. Pass `GossipPGA(H=1, local=[…])` to `fit` instead.

    Raises:
      ValueError: an argument has another value. For errors in training, see `GossipPGA`.
      RuntimeError: `init` was not called.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: None = None):
        """Check the arguments without exchanging anything."""
        processes.cluster()
        if root_rank != 0:
            raise ValueError(
                "root_rank of BroadcastGlobalVariablesCallback must be 0, because all ranks take "
                f"the variables of rank 0, received {root_rank!r}."
            )
        if local_variables is not None:
            raise ValueError(
                "BroadcastGlobalVariablesCallback does not support local_variables. Pass "
                "pga.GossipPGA(H=1, local=[…]), with the names of the variables or layers, to fit "
                "instead."
            )
        launched.connect()
        super().__init__(H=1)

    def on_train_begin(self, logs=None):
        """Build the model if necessary, begin as `GossipPGA` does, and log what is computed."""
        if self.model is not None:
            build(self.model, callback_list.data_of(self.model))
        super().on_train_begin(logs)
        cluster = processes.cluster()
        model: Any = self.model
        line = optimizer_lib.explanation(model.optimizer, cluster.size)
        if cluster.is_chief and cluster.size > 1 and line not in _explained:
            _explained.add(line)
            logger.info(line)


def build(model: keras.Model, data: Any) -> None:
    """Build a model from the data with which `fit` was called, if it is not built.

    A script of Horovod's shape leaves this to the first batch, but all ranks must begin with equal
    variables. If the shapes cannot be found in the data, the model stays as it is, and `GossipPGA`
    raises an error that says how to build it.

    Args:
      model: a compiled model.
      data: the argument `x` of `fit`.
    """
    if model.built or data is None:
        return
    if isinstance(data, tf.data.Dataset):
        x = data.element_spec[0] if isinstance(data.element_spec, tuple) else data.element_spec
    else:
        x = data[0][0] if isinstance(data, keras.utils.PyDataset) else data
    leaves = keras.tree.flatten(x)
    if not all(hasattr(each, "shape") and hasattr(each, "dtype") for each in leaves):
        return
    if all(each.shape is not None and len(each.shape) > 0 for each in leaves):
        model(keras.tree.map_structure(_symbolic, x))


def _symbolic(array: Any) -> keras.KerasTensor:
    """Return a tensor without values, for batches of any size like an array or its spec."""
    return keras.KerasTensor((None, *array.shape[1:]), tf.as_dtype(array.dtype).name)


class MetricAverageCallback(keras.callbacks.Callback):
    """Check that logs are averaged, which `BroadcastGlobalVariablesCallback` does.

    Callbacks that come after `BroadcastGlobalVariablesCallback` in the list receive logs that are
    means over ranks, wherever this callback is.

    Args:
      device: has no effect.

    Raises:
      RuntimeError: in training with several workers, if no callback averages.
    """

    def __init__(self, device: str = ""):
        super().__init__()

    def on_epoch_begin(self, epoch, logs=None):
        """Check that a callback averages. By now, `on_train_begin` of all callbacks has run."""
        model: Any = self.model
        gossip = driver.of(model)
        if processes.size() > 1 and (gossip is None or not gossip.in_fit):
            raise RuntimeError(
                "MetricAverageCallback needs a callback that averages. Pass "
                "hvd.callbacks.BroadcastGlobalVariablesCallback(0) or pga.GossipPGA(H=6) to "
                "model.fit too, before MetricAverageCallback, on every rank."
            )


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Set the learning rate to `initial_lr * multiplier` in a range of epochs.

    Pass the same callback on every rank. At the end of each epoch, the learning rate is added to
    the logs as `lr`.

    Args:
      initial_lr: the learning rate that is multiplied, usually that of the optimizer.
      multiplier: a number, or a function of the epoch. The epoch counts from 0 and, unless
        `staircase`, includes the fraction of the epoch that has passed. Horovod's documentation
        agrees, but its current versions take a number to the power `epoch - start_epoch`.
      start_epoch: the first epoch in which the learning rate is set. Default 0.
      end_epoch: the first epoch in which it is no longer set. Default None: it always is.
      staircase: whether to set the learning rate once at the beginning of an epoch, instead of
        before every batch. Default True.
      momentum_correction: whether to multiply SGD's momentum slots by the ratio of the new and the
        old learning rate, because they contain the learning rate (Goyal et al., "Accurate, Large
        Minibatch SGD", 2017, equation 10). Default True.
      steps_per_epoch: number of batches in an epoch, if `staircase` is false. Default None: the
        number that Keras knows.

    Raises:
      ValueError: at construction, if `initial_lr` is None; when training starts, if the number of
        batches is needed but unknown.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: float = 0,
        end_epoch: float | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ):
        """Store the arguments."""
        super().__init__()
        if initial_lr is None:
            raise ValueError(f"{type(self).__name__} needs initial_lr, a number, received None.")
        self.initial_lr = initial_lr
        self.multiplier = multiplier
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.staircase = staircase
        self.momentum_correction = momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self._epoch = 0

    @property
    def _optimizer(self) -> Any:
        model: Any = self.model
        return model.optimizer

    def on_train_begin(self, logs=None):
        """Find the number of batches in an epoch."""
        self.steps_per_epoch = self.steps_per_epoch or (self.params or {}).get("steps")
        if not self.staircase and not self.steps_per_epoch:
            raise ValueError(
                f"{type(self).__name__} needs the number of batches in an epoch, which Keras does "
                "not know. Pass steps_per_epoch to fit."
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        """Set the learning rate, if this epoch and this batch are concerned."""
        is_over = self.end_epoch is not None and self._epoch >= self.end_epoch
        if self._epoch < self.start_epoch or is_over:
            return
        if not self.staircase:
            self._set(self._epoch + batch / (self.steps_per_epoch or 1))
        elif batch == 0:
            self._set(self._epoch)

    def _set(self, epoch: float):
        optimizer = self._optimizer
        factor = self.multiplier(epoch) if callable(self.multiplier) else self.multiplier
        old, new = float(optimizer.learning_rate), self.initial_lr * factor
        optimizer.learning_rate = new
        sgd = getattr(optimizer, "inner_optimizer", optimizer)
        if self.momentum_correction and isinstance(sgd, keras.optimizers.SGD) and old > 0:
            for slot in getattr(sgd, "momentums", ()):  # a single worker builds it later
                slot.assign(slot * (new / old))

    def on_epoch_end(self, epoch, logs=None):
        """Log the learning rate."""
        if logs is not None:
            logs["lr"] = float(self._optimizer.learning_rate)


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raise the learning rate from `initial_lr / size` to `initial_lr`, linearly and per batch.

    After b batches of w epochs of s batches, the learning rate is
    `initial_lr / size * (1 + (size - 1) * b / (w * s))`, where b counts the batch that begins. The
    learning rate is `initial_lr` from the last batch of epoch w. Source: Goyal et al., "Accurate,
    Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.

    Args:
      initial_lr: the learning rate at the end.
      warmup_epochs: w, the number of epochs. Default 5.
      momentum_correction: see `LearningRateScheduleCallback`.
      steps_per_epoch: see `LearningRateScheduleCallback`.
      verbose: 1 to let rank 0 print a line at the end. Default 0.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: float = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ):
        """Store the arguments."""
        self.verbose = verbose
        super().__init__(
            initial_lr,
            self._share,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )

    def _share(self, epoch: float) -> float:
        """Return the share of `initial_lr` for a batch that begins at this epoch, a fraction."""
        size = processes.size()
        ended = epoch + 1 / (self.steps_per_epoch or 1)
        # A warm-up that ends within an epoch is over for the rest of this epoch.
        return (1 + (size - 1) * min(ended / (self.end_epoch or 1), 1)) / size

    def on_epoch_end(self, epoch, logs=None):
        """Log the learning rate, and print a line at the end of the warm-up."""
        super().on_epoch_end(epoch, logs)
        if self.verbose and epoch + 1 == self.end_epoch and processes.rank() == 0:
            rate = float(self._optimizer.learning_rate)
            print(f"\nEpoch {epoch + 1}: the learning rate is now {rate:g}, after the warm-up.")
