"""Bad arguments, and bad calls of fit in one process: a clear error."""

import numpy as np
import pytest


def _pga():
    import tf_gossip_pga as pga

    return pga


# ---- One process --------------------------------------------------------------------------------


@pytest.mark.parametrize("H", [0, -1, 2.5, "6", True, float("nan")])
def test_a_bad_period_quotes_what_was_received(H):  # noqa: N803
    with pytest.raises(ValueError, match=r"H must be a whole number of steps >= 1.*None") as error:
        _pga().GossipPGA(H=H)
    assert repr(H) in str(error.value)


def test_an_unknown_topology_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown topology 'star'.*hypercube.*ring"):
        _pga().GossipPGA(topology="star")


def test_a_topology_of_the_wrong_size_names_both_sizes():
    with pytest.raises(ValueError, match="is for 3 ranks, but the cluster has 1 workers"):
        _pga().GossipPGA(topology=_pga().topology.ring(3))


@pytest.mark.parametrize("timeout_s", [0, -1.0, "5", None, True, float("nan"), float("inf")])
def test_a_bad_timeout_is_refused(timeout_s):
    with pytest.raises(ValueError, match="timeout_s must be a number of seconds > 0"):
        _pga().GossipPGA(timeout_s=timeout_s)


def _model(**compile_arguments):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **compile_arguments)
    return model


DATA = (np.ones((8, 4), np.float32), np.ones((8, 1), np.float32))


def _unbuilt():
    import keras

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_two_callbacks_in_one_fit_are_refused():
    callbacks = [_pga().GossipPGA(), _pga().GossipPGA(H=2)]
    with pytest.raises(ValueError, match="two GossipPGA callbacks; pass one"):
        _model().fit(*DATA, callbacks=callbacks, verbose=0)


def test_steps_per_execution_is_refused():
    with pytest.raises(ValueError, match=r"see every batch.*steps_per_execution=8.*=1"):
        _model(steps_per_execution=8).fit(*DATA, callbacks=[_pga().GossipPGA()], verbose=0)


def test_an_unknown_optimizer_state_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"one of 'local', 'average', 'reset'; received 'mean'"):
        _pga().GossipPGA(optimizer_state="mean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outer_optimizer": "sgd"}, r"must be a pga.Outer or None, received 'sgd'.*DiLoCo, pga"),
        ({"outer_optimizer": True}, "must be a pga.Outer or None, received True"),
        ({"H": None, "outer_optimizer": "an Outer"}, r"H=None has none; received Outer\(learning"),
    ],
)
def test_an_outer_optimizer_is_an_outer_with_global_averages(arguments, message):
    if arguments["outer_optimizer"] == "an Outer":
        arguments = {**arguments, "outer_optimizer": _pga().Outer()}
    with pytest.raises(ValueError, match=message):
        _pga().GossipPGA(**arguments)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_ema": True}, r"erase the optimizer's moving averages.*Use 'local' or 'average'"),
        ({"gradient_accumulation_steps": 2}, "erase the optimizer's accumulated gradients"),
    ],
)
def test_reset_must_not_erase_what_is_not_momentum(arguments, message, scaled):
    import keras

    optimizer = keras.optimizers.SGD(**arguments)
    model = _model()
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse")
    callback = _pga().GossipPGA(optimizer_state="reset")
    with pytest.raises(ValueError, match=message):
        model.fit(*DATA, callbacks=[callback], verbose=0)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match=r"no trainable variables.*call it on a batch"):
        _unbuilt().fit(*DATA, callbacks=[_pga().GossipPGA()], verbose=0)


@pytest.mark.parametrize("local", ["bank", [3], None])
def test_local_takes_a_list_of_names(local):
    with pytest.raises(ValueError, match="local must be a list of names") as error:
        _pga().GossipPGA(local=local)
    assert repr(local) in str(error.value)


def test_a_name_of_nothing_cannot_be_local():
    callback = _pga().GossipPGA(local=["bank"])
    with pytest.raises(
        ValueError, match=r"local contains 'bank', but .* Its variables are .*/kernel"
    ):
        _model().fit(*DATA, callbacks=[callback], verbose=0)


def test_one_worker_is_a_quiet_no_op():
    callback = _pga().GossipPGA(H=2)
    history = _model().fit(*DATA, batch_size=2, callbacks=[callback], verbose=0)
    assert (callback.step, callback.gossip_steps, callback.global_steps) == (4, 2, 2)
    assert callback.bytes_sent == 0 and callback.communication_seconds == 0
    logs = history.history
    added = {"consensus_distance", "global_averages", "communication_seconds"}  # as of several
    assert set(logs) == {"loss", *added}
    assert logs["consensus_distance"] == [0.0]


def test_one_worker_counts_as_an_adaptive_period_says():
    callback = _pga().GossipPGA(H=_pga().AdaptivePeriod(initial=2, warmup_steps=2, maximum=3))
    history = _model().fit(*DATA, batch_size=1, epochs=2, callbacks=[callback], verbose=0)
    # 2 and 4 are global, then the loss has fallen: 7, 10, 13, 16.
    assert (callback.step, callback.global_steps) == (16, 6)
    assert history.history["H"] == [3, 3]


@pytest.mark.filterwarnings("ignore:.*input ran out of data")  # how Keras ends such an epoch
def test_one_worker_may_train_on_data_of_unknown_length():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(DATA).filter(lambda x, y: True).batch(2)
    callback = _pga().GossipPGA(H=2)
    _model().fit(data, epochs=2, shuffle=False, callbacks=[callback], verbose=0)
    assert callback.step == 8
