"""Know which `GossipPGA` drives a model, and whether an optimizer's steps are being averaged."""

from __future__ import annotations

import weakref
from typing import Protocol

import keras

from tf_gossip_pga.training import variables as variables_lib


class Driver(Protocol):
    """A callback that averages the model that it drives."""

    @property
    def in_fit(self) -> bool:
        """Return whether the callback is inside `fit`."""
        ...


# For each model, the GossipPGA that drives it: the one whose `set_model` was called last.
_drivers: weakref.WeakKeyDictionary[keras.Model, weakref.ref[Driver]] = weakref.WeakKeyDictionary()


def take(model: keras.Model, driver: Driver):
    """Let a callback drive a model, in place of any earlier one."""
    _drivers[model] = weakref.ref(driver)


def of(model: keras.Model | None) -> Driver | None:
    """Return the callback that drives a model, or None if there is none."""
    reference = None if model is None else _drivers.get(model)
    return None if reference is None else reference()


def is_averaging(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether a `GossipPGA` is training a model that holds this optimizer at this moment.

    Args:
      optimizer: an optimizer. A `LossScaleOptimizer` of the model may wrap it.
    """
    for model in list(_drivers):
        driver = of(model)
        if driver is not None and driver.in_fit:
            for held, _ in variables_lib.optimizers_of(model):
                if optimizer in (held, getattr(held, "inner_optimizer", None)):
                    return True
    return False
