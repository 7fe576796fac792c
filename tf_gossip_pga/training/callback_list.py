"""Find the callbacks and the data of the running `fit`. Only this module relies on Keras internals.

Keras gives a callback no access to the other callbacks. But Keras calls every hook from a method of
the public class `keras.callbacks.CallbackList`, whose attribute `callbacks` holds all callbacks in
call order. This module finds that list on the call stack. A callback appended to the list runs
after all others at every hook. `tests/unit/test_callback_list.py` fails if a version of Keras
behaves differently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras

# Functions that return a callback to add to every `fit` with a `GossipPGA`, after the callbacks of
# the script. The packages above this one register them here. A function is called once for each
# `GossipPGA`. It may raise a ValueError or an ImportError.
companions: list[Callable[[], keras.callbacks.Callback]] = []


class Follower(Protocol):
    """Methods to call after the hooks of all callbacks have run."""

    def after_batch(self):
        """Run after `on_train_batch_end`."""

    def after_epoch(self, epoch: int):
        """Run after `on_epoch_end`; `epoch` counts from 0."""

    def after_end(self):
        """Run after `on_train_end`."""


class Siblings:
    """The callbacks of a `fit` that is about to begin, other than a given callback.

    Args:
      callbacks: Keras' own list of all callbacks.
      place: index of the given callback in this list.

    Attributes:
      before: the callbacks that Keras calls before the given one, in order.
      after: the callbacks that Keras calls after the given one, in order.
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback], place: int):
        """Split the list, and remove what an interrupted `fit` may have left in it."""
        for each in [each for each in callbacks[place:] if isinstance(each, Last)]:
            each.leave(callbacks)
        self._callbacks = callbacks
        self.before = callbacks[:place]
        self.after = callbacks[place + 1 :]

    def call_last(
        self,
        follower: Follower,
        model: keras.Model,
        params: dict,
        added: Sequence[keras.callbacks.Callback] = (),
    ):
        """Call `added` and then `follower` after all other callbacks, until training ends.

        Args:
          follower: the object whose methods are called after the hooks of all callbacks.
          model: the model that Keras trains.
          params: the `params` that Keras passes to callbacks.
          added: callbacks that Keras does not know. Default: none.
        """
        for each in added:
            each.set_params(params)
            each.set_model(model)
        self._callbacks += [*added, Last(follower, self._callbacks, added)]


class Last(keras.callbacks.Callback):
    """The last callback in a list, which calls a `Follower` after all other callbacks.

    Args:
      follower: the object whose methods this callback calls.
      callbacks: the list, from which this callback removes itself when training ends.
      added: the callbacks that were added to the list together with this one. This callback
        removes them too.
    """

    def __init__(
        self,
        follower: Follower,
        callbacks: list[keras.callbacks.Callback],
        added: Sequence[keras.callbacks.Callback] = (),
    ):
        """Store the arguments. The caller must append this callback to the list."""
        super().__init__()
        self._follower = follower
        self._callbacks = callbacks
        self._added = added

    def leave(self, callbacks: list[keras.callbacks.Callback]):
        """Remove this callback, and those added together with it, from a list."""
        added = {id(self), *map(id, self._added)}
        callbacks[:] = [each for each in callbacks if id(each) not in added]

    def on_train_batch_end(self, batch, logs=None):
        """Call `Follower.after_batch`."""
        self._follower.after_batch()

    def on_epoch_end(self, epoch, logs=None):
        """Call `Follower.after_epoch`."""
        self._follower.after_epoch(epoch)

    def on_train_end(self, logs=None):
        """Remove this callback from the list, and call `Follower.after_end`."""
        if self._callbacks[-1] is self:
            self.leave(self._callbacks)
        self._follower.after_end()


def new_companions() -> tuple[list[keras.callbacks.Callback] | None, str | None]:
    """Call all functions in `companions`.

    Returns:
      The callbacks, or None if one cannot be created. And why it cannot be created, or None.
    """
    try:
        return [make() for make in companions], None
    except (ImportError, ValueError) as error:
        return None, f"A callback that the launcher requests cannot be created: {error}"


def find(callback: keras.callbacks.Callback) -> Siblings | None:
    """Find the other callbacks in the list from which Keras is calling a hook of `callback`.

    If another callback wraps `callback` and calls its hook, the list contains only the wrapper. The
    wrapper's position in the list then counts as that of `callback`.

    Returns:
      The other callbacks, or None if the hook is not called from a `keras.callbacks.CallbackList`,
      as in a custom training loop.
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


def data_of(model: keras.Model) -> Any:
    """Return the argument `x` with which the running `fit` of a model was called.

    Returns:
      The argument, or None if no `fit` of this model is on the call stack.
    """
    frame = sys._getframe(1)
    while frame is not None:
        # Keras also wraps `fit` in a function whose local variables hold the arguments in a tuple.
        is_fit = frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model
        if is_fit and "x" in frame.f_locals:
            return frame.f_locals["x"]
        frame = frame.f_back
    return None


def check_model(model):
    """Raise if a callback received a model that is not a Keras 3 model.

    Raises:
      TypeError: the model, or the caller of `set_model`, does not belong to Keras 3.
    """
    caller = sys._getframe(2).f_locals.get("self")  # the caller of set_model
    for found in (model, caller):
        if type(found).__module__.partition(".")[0] == "tf_keras":
            break
    else:
        if isinstance(model, keras.Model):
            return
        found = model
    kind = type(found)
    raise TypeError(
        "GossipPGA requires a Keras 3 model and the fit of Keras 3, received a "
        f"{kind.__module__}.{kind.__qualname__}. Build the model with `import keras`. (tf.keras is "
        "Keras 3 too, unless TF_USE_LEGACY_KERAS is set.)"
    )


def problem_of_hooks(params: dict | None) -> str | None:
    """Return why training with these Keras `params` is impossible, or None if it is possible.

    Training is impossible if the entry `"epochs"` or `"steps"` is missing. An entry can be missing
    only if a custom training loop calls the hooks.
    """
    missing = [name for name in ("epochs", "steps") if name not in (params or {})]
    if not missing:
        return None
    return (
        f"GossipPGA has not received the number of {' and of '.join(missing)}. If you call its "
        "hooks yourself, call those of keras.callbacks.CallbackList(callbacks, model=model, "
        "epochs=…, steps=…), where steps is the number of batches per epoch. Or call "
        'set_params({"epochs": …, "steps": …}) after set_model(model).'
    )
