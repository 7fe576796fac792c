"""Other callbacks next to `GossipPGA`, before and after it in the list, in two real processes."""

import logging

import numpy as np
import pytest

pytestmark = pytest.mark.multiprocess

STEPS, BATCH = 6, 4


def _data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(STEPS * BATCH, 4)).astype(np.float32)
    return x, x.sum(1, keepdims=True) + seed


def _model(rank: int, rate: float = 0.1, **compiled):
    import keras

    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", **compiled)
    return model


def _flat(model) -> list[float]:
    return np.concatenate([weight.ravel() for weight in model.get_weights()]).tolist()


def _gossip(H=None):  # noqa: N803
    import tf_gossip_pga as pga

    # A gossip that does not average two ranks exactly.
    uneven = pga.topology.from_matrix([[0.75, 0.25], [0.25, 0.75]])
    return pga.GossipPGA(H=H, topology=uneven)


def _fit(cluster, model, callbacks, epochs=3, **arguments):
    fit = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, **arguments}
    return model.fit(*_data(cluster.rank), callbacks=callbacks, **fit).history


def _does(**hooks):
    import keras

    return keras.callbacks.LambdaCallback(**hooks)


def _set_all(model, value: float):
    model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])


# ---- Weights and files --------------------------------------------------------------------------


def _early_stopping(cluster):
    """The order that comes to mind first, each rank with validation data of its own."""
    import keras

    model, validation = _model(cluster.rank, rate=0.3), _data(10 + cluster.rank)
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = _fit(cluster, model, [_gossip(), stop], epochs=20, validation_data=validation)
    return [history["val_loss"], _flat(model), model.evaluate(*validation, verbose=0)]


def test_early_stopping_after_gossip_ends_with_the_best_validated_model(pools):
    first, second = pools.run(_early_stopping, 2)
    assert first[0] == second[0]
    assert len(first[0]) < 20
    assert first[1] == second[1]
    assert (first[2] + second[2]) / 2 == pytest.approx(min(first[0]), rel=1e-5)


def _best_file(cluster, folder):
    """On the chief, the best `val_loss` that was reported, and what the saved file has."""
    import keras

    model, validation = _model(cluster.rank), _data(10)
    path = f"{folder}/best.weights.h5"
    callbacks = [_gossip()]
    if cluster.is_chief:
        callbacks.append(
            keras.callbacks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True)
        )
    history = _fit(cluster, model, callbacks, validation_data=validation)
    if not cluster.is_chief:
        return None
    model.load_weights(path)
    return [min(history["val_loss"]), model.evaluate(*validation, verbose=0)]


def test_the_file_of_the_best_epoch_holds_the_model_that_was_validated(pools, tmp_path):
    reported, saved = pools.run(_best_file, 2, folder=str(tmp_path))[0]
    assert saved == pytest.approx(reported, rel=1e-6)


def _weights_set(cluster):
    """What becomes of weights that callbacks after GossipPGA set."""
    found = {}
    model = _model(cluster.rank)
    seen = []
    sets = _does(
        on_epoch_end=lambda epoch, logs: _set_all(model, cluster.rank),
        on_epoch_begin=lambda epoch, logs: seen.append(_flat(model)),
    )
    _fit(cluster, model, [_gossip(), sets], epochs=2, validation_data=_data(10))
    found["at an epoch's end"] = seen[1]
    sets = _does(on_train_end=lambda logs: _set_all(model, cluster.rank))
    _fit(cluster, model, [_gossip(), sets], epochs=1)
    found["by all ranks"] = _flat(model)
    for order in ("before", "after"):
        callbacks = [_gossip()]
        if cluster.rank == 1:
            callbacks.insert(order == "after", sets)
        try:
            _fit(cluster, model, callbacks, epochs=1)
        except RuntimeError as error:
            found[order] = str(error)
    return found


def test_weights_that_callbacks_set_never_leave_ranks_with_different_models(pools):
    ranks = pools.run(_weights_set, 2)
    for rank, found in enumerate(ranks):
        assert set(found["at an epoch's end"]) == {float(rank)}  # training continues from them
        assert set(found["by all ranks"]) == {0.5}
        for order in ("before", "after"):
            assert (
                "set the weights of rank 1 when training ended, but not those of rank 0"
                in (found[order])
            )


# ---- Stops, logs, learning rates ----------------------------------------------------------------


def _stops(cluster):
    """Rank 1 stops in a callback that comes after GossipPGA."""
    found = {}
    for when in ("after step 2", "after epoch 1"):
        model = _model(cluster.rank)
        gossip = _gossip(H=5)

        def stop(now, model=model):
            if now and cluster.rank == 1:
                model.stop_training = True

        stops = _does(
            on_train_batch_end=lambda batch, logs, w=when, s=stop: s(
                (w, batch) == ("after step 2", 1)
            ),
            on_epoch_end=lambda epoch, logs, w=when, s=stop: s(w == "after epoch 1"),
        )
        history = _fit(cluster, model, [gossip, stops])
        found[when] = [gossip.step, len(history["loss"]), _flat(model)]
    return found


def test_all_ranks_stop_with_one_that_stops_after_gossip(pools):
    first, second = pools.run(_stops, 2)
    assert first == second
    assert first["after step 2"][:2] == [5, 1]  # at the next global average
    assert first["after epoch 1"][:2] == [6, 1]


def _array_logs(cluster):
    import keras

    # Two classes, whose F1 scores differ from rank to rank.
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
    score = keras.metrics.F1Score(average=None, name="f1")
    model.compile("sgd", "categorical_crossentropy", metrics=[score])
    x, y = _data(cluster.rank)
    y = np.eye(2, dtype=np.float32)[(y[:, 0] > cluster.rank).astype(int)]
    own = []
    before = _does(on_epoch_end=lambda epoch, logs: own.append(np.asarray(logs["f1"]).tolist()))
    fit = {"batch_size": BATCH, "epochs": 1, "verbose": 0, "callbacks": [before, _gossip()]}
    history = model.fit(x, y, **fit).history
    return [own[0], np.asarray(history["f1"][0]).tolist()]


def test_arrays_in_logs_are_means_over_ranks(pools):
    first, second = pools.run(_array_logs, 2)
    assert first[0] != second[0]
    assert first[1] == second[1] == pytest.approx(np.mean([first[0], second[0]], axis=0))


class _Lines(logging.Handler):
    """Keeps the warnings that are logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.kept = []

    def emit(self, record):
        self.kept.append(record.getMessage())


def _warnings(cluster, folder):
    """What each rank is warned of, or the error."""
    import keras

    from tf_gossip_pga._log import logger

    def slow_down(epoch, logs):
        if cluster.rank == 1:
            model.optimizer.learning_rate = 0.01

    lines = _Lines()
    logger.addHandler(lines)
    try:
        model = _model(cluster.rank)
        log = keras.callbacks.CSVLogger(f"{folder}/log.csv")
        _fit(cluster, model, [_gossip(), log, _does(on_epoch_end=slow_down)])
        plateau = [keras.callbacks.ReduceLROnPlateau("loss")] if cluster.is_chief else []
        try:
            _fit(cluster, model, [_gossip(), *plateau])
        except ValueError as error:
            lines.kept.append(str(error))
    finally:
        logger.removeHandler(lines)
    return lines.kept


def test_callbacks_that_collide_or_differ_are_said(pools, tmp_path):
    first, second = pools.run(_warnings, 2, folder=str(tmp_path))
    path, rates, error = first  # said once
    assert f"CSVLogger writes to the same path on ranks 0, 1: {tmp_path}/log.csv." in path
    assert "learning rates have differed since epoch 1: rank 0 has 0.1, rank 1 has 0.01." in rates
    assert "rank 1 has no ReduceLROnPlateau" in error
    assert second == [error]


def _errors_at_the_start(cluster, folder):
    """The errors of fits in which only the chief has a callback that syncs, or cannot have it."""
    import tf_gossip_pga as pga
    from tf_gossip_pga.training import callback_list

    path = f"{folder}/file"
    own = [[pga.Report(path)], [pga.Timeline(path, (1, 2))]] if cluster.is_chief else [[], []]
    fits = [(callbacks, []) for callbacks in own]
    fits.append(([], [lambda: pga.Report(f"{folder}/missing/file")]))  # checked on the chief
    # As for a worker without the launcher's variable.
    fits.append(([], [lambda: pga.Report(path)] if cluster.is_chief else []))
    found, before = [], list(callback_list.companions)
    for callbacks, companions in fits:
        gossip = _gossip()
        callback_list.companions[:] = companions
        try:
            _fit(cluster, _model(cluster.rank), [gossip, *callbacks])
        except ValueError as error:
            found.append([gossip.step, str(error)])
        finally:
            callback_list.companions[:] = before
    return found


def test_a_callback_with_sync_points_on_one_rank_is_an_error_before_the_first_step(pools, tmp_path):
    first, second = pools.run(_errors_at_the_start, 2, folder=str(tmp_path))
    assert {step for step, _ in first + second} == {0}
    report, timeline, missing, variable = (text for _, text in first)
    assert "rank 0 has Report(), rank 1 has no Report." in report
    assert "rank 0 has Timeline(steps=(1, 2)), rank 1 has no Timeline." in timeline
    assert "Pass it on every rank, with the same arguments" in timeline
    assert missing.startswith("A callback that the launcher requests cannot be created: path must")
    assert variable == report
    others = [text for _, text in second]
    assert others == [report, timeline, f"Rank 0 cannot start training: {missing}", variable]


def _own_loop(cluster, by):
    """Hooks that a loop of the user's own calls."""
    import keras

    model, gossip = _model(cluster.rank), _gossip(H=4)
    x, y = _data(cluster.rank)
    if by == "hand":
        hooks = gossip
        gossip.set_model(model)
        gossip.set_params({"epochs": 2, "steps": STEPS})
    else:
        hooks = keras.callbacks.CallbackList([gossip], model=model, epochs=2, steps=STEPS)
    hooks.on_train_begin()
    for epoch in range(2):
        hooks.on_epoch_begin(epoch)
        for batch in range(STEPS):
            part = slice(BATCH * batch, BATCH * batch + BATCH)
            model.train_on_batch(x[part], y[part])
            hooks.on_train_batch_end(batch)
        hooks.on_epoch_end(epoch, {})
    hooks.on_train_end()
    return [gossip.step, gossip.global_steps, _flat(model)]


@pytest.mark.parametrize("by", ["hand", "a CallbackList"])
def test_a_loop_of_the_users_own_ends_with_one_model(pools, by):
    first, second = pools.run(_own_loop, 2, by=by)
    assert first == second
    assert first[:2] == [2 * STEPS, 3]
