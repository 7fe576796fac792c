"""How the other callbacks of a fit are reached. Fails where a version of Keras changes it."""

import keras
import numpy as np
import pytest

import tf_gossip_pga as pga
from tf_gossip_pga.training import callback_list

DATA = (np.ones((6, 4), np.float32), np.ones((6, 1), np.float32))


def _model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class Follows:
    """Keeps what it follows, and in what order."""

    def __init__(self):
        self.seen = []

    def after_batch(self):
        self.seen.append("last: batch")

    def after_epoch(self, epoch):
        self.seen.append(f"last: epoch {epoch}")

    def after_end(self):
        self.seen.append("last: end")


class Asks(keras.callbacks.Callback):
    """Finds its siblings when training begins."""

    def __init__(self, follower, added=()):
        super().__init__()
        self.follower = follower
        self.added = added
        self.siblings = None

    def on_train_begin(self, logs=None):
        self.siblings = callback_list.find(self)
        self.siblings.call_last(self.follower, self.model, self.params, self.added)


class Says(keras.callbacks.Callback):
    """Notes each of its own hooks."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append("batch")

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(f"epoch {epoch}")

    def on_train_end(self, logs=None):
        self.seen.append("end")


def test_a_fit_shows_its_callbacks_and_calls_the_last_one_after_all_others():
    follower = Follows()
    asks = Asks(follower)
    first, last = Says(follower.seen), Says(follower.seen)
    given = [first, asks, last]
    _model().fit(*DATA, batch_size=3, epochs=2, callbacks=given, verbose=1)
    assert asks.siblings.before == [first]
    assert asks.siblings.after[0] is last
    kinds = {type(each) for each in asks.siblings.after[1:]}
    assert kinds == {keras.callbacks.History, keras.callbacks.ProgbarLogger}
    epoch = ["batch", "batch", "last: batch"] * 2
    assert follower.seen == [
        *(*epoch, "epoch 0", "epoch 0", "last: epoch 0"),
        *(*epoch, "epoch 1", "epoch 1", "last: epoch 1"),
        *("end", "end", "last: end"),
    ]
    assert given == [first, asks, last]  # the user's own list


def test_a_list_that_is_used_again_keeps_nothing_of_an_interrupted_fit():
    class StopError(Exception):
        pass

    def stop(batch, logs=None):
        if not follower.seen:
            follower.seen.append("stopped")
            raise StopError

    follower = Follows()
    asks = Asks(follower)
    model = _model()
    stops = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    callbacks = keras.callbacks.CallbackList(
        [asks, stops], add_history=True, model=model, epochs=1, steps=1
    )
    before = list(callbacks.callbacks)
    with pytest.raises(StopError):
        model.fit(*DATA, callbacks=callbacks, verbose=0)
    model.fit(*DATA, callbacks=callbacks, verbose=0)
    assert follower.seen == ["stopped", "last: batch", "last: epoch 0", "last: end"]
    assert callbacks.callbacks == before


def test_a_companion_runs_after_the_callbacks_of_the_script_in_every_fit():
    class Companion(Says):
        def on_train_begin(self, logs=None):
            self.seen.append(("companion of", self.model, self.params["epochs"]))

    follower = Follows()
    asks = Asks(follower, [Companion(follower.seen)])
    model = _model()
    callbacks = keras.callbacks.CallbackList(
        [asks], add_history=True, model=model, epochs=1, steps=1
    )
    before = list(callbacks.callbacks)
    for _ in range(2):
        follower.seen.clear()
        model.fit(*DATA, callbacks=callbacks, verbose=0)
        assert follower.seen[0] == ("companion of", model, 1)
        batches = follower.seen[1:-4]
        assert batches == ["batch", "last: batch"] * (len(batches) // 2) != []
        assert follower.seen[-4:] == ["epoch 0", "last: epoch 0", "end", "last: end"]
        assert callbacks.callbacks == before


def test_a_callback_that_another_holds_has_its_place():
    class Holds(keras.callbacks.Callback):
        def __init__(self, held):
            super().__init__()
            self.held = held

        def on_train_begin(self, logs=None):
            self.held.on_train_begin(logs)

    asks = Asks(Follows())
    first = keras.callbacks.Callback()
    _model().fit(*DATA, callbacks=[first, Holds(asks)], verbose=0)
    assert asks.siblings.before == [first]
    assert [type(each) for each in asks.siblings.after] == [keras.callbacks.History]


def test_a_loop_of_the_users_own_has_no_list():
    assert callback_list.find(keras.callbacks.Callback()) is None


# ---- Hooks that Keras does not call -------------------------------------------------------------


def test_hooks_called_by_hand_without_a_model_or_params_say_what_to_call():
    gossip = pga.GossipPGA()
    with pytest.raises(RuntimeError, match=r"has no model.*call set_model\(model\) and set_params"):
        gossip.on_train_begin()
    gossip.set_model(_model())
    with pytest.raises(
        ValueError, match=r"not received the number of epochs and of steps.*CallbackList"
    ):
        gossip.on_train_begin()
    gossip.set_params({"epochs": 2})
    with pytest.raises(ValueError, match="not received the number of steps"):
        gossip.on_train_begin()


@pytest.mark.parametrize("by", ["hand", "CallbackList"])
def test_hooks_called_in_a_loop_of_the_users_own_work(by):
    gossip, model = pga.GossipPGA(H=2), _model()
    params = {"epochs": 2, "steps": 3}
    if by == "hand":
        callbacks = gossip
        gossip.set_model(model)
        gossip.set_params(params)
    else:
        callbacks = keras.callbacks.CallbackList([gossip], model=model, **params)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(3):
            model.train_on_batch(*DATA)
            callbacks.on_train_batch_end(batch)
        callbacks.on_epoch_end(epoch, {})
    callbacks.on_train_end()
    assert (gossip.step, gossip.global_steps) == (6, 3)


def _legacy(base=object):
    """A class as of tf_keras."""
    return type("CallbackList", (base,), {"__module__": "tf_keras.src.callbacks"})


def test_a_model_or_a_list_of_tf_keras_is_refused():
    gossip = pga.GossipPGA()
    with pytest.raises(TypeError, match=r"a Keras 3 model .*received a tf_keras\.src\.callbacks"):
        gossip.set_model(_legacy()())

    class Container(_legacy()):
        def set(self):
            gossip.set_model(_model())

    Container.__module__ = "tf_keras.src.callbacks"
    with pytest.raises(TypeError, match=r"received a tf_keras\.src\.callbacks.*Container"):
        Container().set()
    with pytest.raises(TypeError, match=r"received a builtins\.NoneType"):
        gossip.set_model(None)


def test_the_data_of_a_fit_is_found():
    model, found = _model(), []

    def look(logs):
        found.extend(callback_list.data_of(each) for each in (model, _model()))

    model.fit(*DATA, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_begin=look)])
    assert found[0] is DATA[0]
    assert found[1] is None
    assert callback_list.data_of(model) is None
