"""Record which `GossipPGA` drives the training of each model."""

from __future__ import annotations

import weakref

import keras

_drivers: weakref.WeakKeyDictionary[keras.Model, weakref.ref] = weakref.WeakKeyDictionary()


def drive(model: keras.Model, callback: keras.callbacks.Callback):
    """Record that a `GossipPGA` drives a model's training from now on."""
    _drivers[model] = weakref.ref(callback)


def driver_of(model: keras.Model | None) -> keras.callbacks.Callback | None:
    """Return the `GossipPGA` whose `set_model` was last called with a model, or None."""
    found = _drivers.get(model) if model is not None else None
    return found() if found is not None else None
