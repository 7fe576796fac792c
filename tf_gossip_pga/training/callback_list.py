"""Reach the list of callbacks of the running `fit`: the one place that relies on Keras' insides.

Keras tells a callback nothing of the others. But it calls every hook from a method of the public
`keras.callbacks.CallbackList`, whose attribute `callbacks` holds them in the order of their calls.
So the list is found on the stack, and a callback that is appended to it comes after all others, at
every hook. `tests/unit/test_callback_list.py` fails where a version of Keras does otherwise.
"""

from __future__ import annotations

import sys
from typing import Protocol

import keras


class Follower(Protocol):
    """What follows the hooks of all callbacks."""

    def after_batch(self):
        """Follow `on_train_batch_end`."""

    def after_epoch(self, epoch: int):
        """Follow `on_epoch_end` of an epoch, counted from 0."""

    def after_end(self):
        """Follow `on_train_end`."""


class Siblings:
    """The callbacks of the `fit` that begins.

    Args:
      callbacks: Keras' own list of them.
      place: where the callback that asks is in it.

    Attributes:
      before: those that Keras calls before it, in order.
      after: those that Keras calls after it.
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback], place: int):
        # A fit that was interrupted has left its last callback in a list that is used again.
        callbacks[place:] = [each for each in callbacks[place:] if not isinstance(each, Last)]
        self._callbacks = callbacks
        self.before = callbacks[:place]
        self.after = callbacks[place + 1 :]

    def call_last(self, follower: Follower):
        """Call `follower` after all callbacks, until training ends."""
        self._callbacks.append(Last(follower, self._callbacks))


class Last(keras.callbacks.Callback):
    """The last callback of a list.

    Args:
      follower: what it calls.
      callbacks: the list, which it leaves when training ends.
    """

    def __init__(self, follower: Follower, callbacks: list[keras.callbacks.Callback]):
        super().__init__()
        self._follower = follower
        self._callbacks = callbacks

    def on_train_batch_end(self, batch, logs=None):
        self._follower.after_batch()

    def on_epoch_end(self, epoch, logs=None):
        self._follower.after_epoch(epoch)

    def on_train_end(self, logs=None):
        if self._callbacks[-1] is self:
            self._callbacks.pop()
        self._follower.after_end()


def find(callback: keras.callbacks.Callback) -> Siblings | None:
    """Return the others in the list from which Keras is calling a hook of `callback`.

    A callback that another one holds and calls has the place of that one.

    Returns:
      None where the hook was not called from a `keras.callbacks.CallbackList`, as in a loop of the
      user's own.
    """
    callers: list[object] = [callback]
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            places = [
                place
                for place, each in enumerate(caller.callbacks)
                if any(each is other for other in callers)
            ]
            return Siblings(caller.callbacks, places[0]) if places else None
        callers.append(caller)
        frame = frame.f_back
    return None


def check_model(model):
    """Raise where a callback is given to something else than Keras 3.

    Raises:
      TypeError: it is; the message says what.
    """
    caller = sys._getframe(2).f_locals.get("self")  # of set_model
    for found in (model, caller):
        if type(found).__module__.partition(".")[0] == "tf_keras":
            break
    else:
        if isinstance(model, keras.Model):
            return
        found = model
    kind = type(found)
    raise TypeError(
        "GossipPGA trains models of Keras 3 in the fit of Keras 3, received a "
        f"{kind.__module__}.{kind.__qualname__}. Build the model with `import keras`. (tf.keras is "
        "Keras 3 too, unless TF_USE_LEGACY_KERAS is set.)"
    )


def problem_of_hooks(params: dict | None) -> str | None:
    """Return why a callback whose hooks are called by hand cannot train, or None if it can."""
    missing = [name for name in ("epochs", "steps") if name not in (params or {})]
    if not missing:
        return None
    return (
        f"GossipPGA was not told the number of {' and of '.join(missing)}. Where you call its "
        "hooks yourself, make them those of a keras.callbacks.CallbackList(callbacks, "
        "model=model, epochs=…, steps=…), steps being the batches of an epoch; or call "
        'set_params({"epochs": …, "steps": …}) after set_model(model).'
    )
