"""Checkpoints in real processes: a resumed run is the run that was never interrupted."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from tests.support import workers
from tf_gossip_pga.training import preemption

# Keras' own, where it saves weights under NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

STEPS, BATCH = 5, 4

# What is kept besides weights differs between these: slots of every rank, or one for all; the
# period; the reference of rounded messages; a gossip under way when the epoch ends.
CASES = {
    "adam, local": {"optimizer": "adam", "optimizer_state": "local"},
    "adam, average": {"optimizer": "adam", "optimizer_state": "average"},
    "momentum, local": {"optimizer": "momentum", "optimizer_state": "local"},
    "momentum, average": {"optimizer": "momentum", "optimizer_state": "average"},
    "adaptive, overlap": {"H": "adaptive", "overlap": True},
    "no global average, int8": {"H": None, "wire_dtype": "int8", "optimizer": "scaled"},
    "reset": {"optimizer": "momentum", "optimizer_state": "reset"},
}


def _data(rank: int):
    random = np.random.default_rng(rank)
    x = random.normal(size=(STEPS * BATCH, 4)).astype(np.float32)
    return x, x.sum(1, keepdims=True) + rank


def _model(rank: int, optimizer="adam"):
    """With everything that a rank may have of its own: dropout, an integer, an optimizer."""
    import keras

    class Counting(keras.layers.Layer):
        """Counts its calls."""

        def build(self, shape):
            self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")

        def call(self, x, training=False):
            if training:
                self.count.assign_add(1 + rank)
            return x

    keras.utils.set_random_seed(rank)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            Counting(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    momentum = keras.optimizers.SGD(0.01, momentum=0.9)
    if optimizer != "adam":
        scaled = optimizer == "scaled"
        optimizer = keras.optimizers.LossScaleOptimizer(momentum) if scaled else momentum
    model.compile(optimizer, "mse")
    return model


def _gossip(H=4, **arguments):  # noqa: N803
    import tf_gossip_pga as pga

    if H == "adaptive":
        # At step 12 it remembers the loss of the first batch after a global average: after the one
        # of step 10 that is the checkpoint, not after that of step 9.
        H = pga.AdaptivePeriod(initial=3, warmup_steps=12, maximum=8)  # noqa: N806
    # Of two ranks a gossip makes both equal, with these weights it does not.
    uneven = pga.topology.from_matrix([[0.75, 0.25], [0.25, 0.75]])
    two = pga.initialize().size == 2
    return pga.GossipPGA(H, uneven if two else "ring", **arguments)


def _digests(model) -> dict[str, str]:
    """Of every variable, so that a test that fails says which."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{place} {v.path}": hashlib.sha256(v.value.numpy().tobytes()).hexdigest()[:16]
        for place, v in enumerate(variables)
    }


class LeftError(Exception):
    """Leaves `fit`, as a crash would."""


def _fit(cluster, folder, resume=False, crash_in=None, optimizer="adam", epochs=4, **settings):
    """A run with a checkpoint after every second epoch."""
    import keras

    import tf_gossip_pga as pga

    model, gossip = _model(cluster.rank, optimizer), _gossip(**settings)
    checkpoint = pga.Checkpoint(gossip, folder, every=2)

    def crash(batch, logs=None):
        if gossip.step == crash_in:
            raise LeftError

    x, y = _data(cluster.rank)
    losses = []
    own_loss = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]), on_train_batch_begin=crash
    )
    start = checkpoint.restore(model) if resume else 0
    with contextlib.suppress(LeftError):
        model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=epochs,
            initial_epoch=start,
            validation_data=(x, y),
            shuffle=False,
            callbacks=[own_loss, gossip, checkpoint],
            verbose=0,
        )
    return {
        "start": start,
        "losses": losses,
        "variables": _digests(model),
        "state": gossip.state,
        "bytes": gossip.bytes_sent,
        "preempted": checkpoint.preempted,
    }


# ---- Resumed and uninterrupted ------------------------------------------------------------------


def _runs(cluster, folder, **more):
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    return {
        name: _fit(cluster, f"{folder}/{name}", **settings, **more)
        for name, settings in CASES.items()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For each way to run, what each rank has for each case; in processes of their own."""
    whole, broken = (str(tmp_path_factory.mktemp(name)) for name in ("whole", "broken"))
    return {
        "whole": workers.run(_runs, 2, folder=whole),
        "broken": workers.run(_runs, 2, folder=broken, crash_in=3 * STEPS + 2),
        "resumed": workers.run(_runs, 2, folder=broken, resume=True),
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs, case):
    for rank in (0, 1):
        whole, broken, resumed = (runs[how][rank][case] for how in ("whole", "broken", "resumed"))
        assert whole["start"] == 0
        assert resumed["start"] == 2
        assert resumed["losses"] == whole["losses"][2:]
        assert resumed["variables"] == whole["variables"]
        assert resumed["state"] == whole["state"]
        assert broken["state"]["step"] == 3 * STEPS + 2
        assert broken["variables"] != whole["variables"]
    differ = {
        name.split(" ")[1]
        for name, digest in runs["resumed"][0][case]["variables"].items()
        if digest != runs["resumed"][1][case]["variables"][name]
    }
    # These are each rank's own, so that a resumed run with rank 0's would be another.
    assert any("seed_generator" in name for name in differ)
    assert any("count" in name for name in differ)
    if CASES[case].get("optimizer_state", "local") == "local":
        assert any("momentum" in name for name in differ)


# ---- Other workers, other disks -----------------------------------------------------------------


def _continued(cluster, folder, disks=False, epochs=4):
    """A run that goes on from what lies in the folder, and the model it began with."""
    import keras

    import tf_gossip_pga as pga

    own = f"{folder}/{cluster.rank}" if disks else folder
    model, gossip = _model(10 + cluster.rank), _gossip()
    checkpoint = pga.Checkpoint(gossip, own, keep=2)
    start = checkpoint.restore(model)
    begun = {}
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: begun or begun.update(_digests(model))
    )
    model.fit(
        *_data(cluster.rank),
        batch_size=BATCH,
        epochs=epochs,
        initial_epoch=start,
        shuffle=False,
        callbacks=[gossip, checkpoint, look],
        verbose=0,
    )
    return {"start": start, "step": gossip.step, "begun": begun, "ended": _digests(model)}


def _parts(digests: dict[str, str]) -> dict[str, list[str]]:
    """The digests of the weights, the optimizer's variables, and what is each rank's for ever."""
    parts = {"weights": [], "optimizer": [], "own": []}
    for name, digest in digests.items():
        kind = "optimizer" if "adam" in name else "weights"
        parts["own" if "seed" in name or "count" in name else kind].append(digest)
    return parts


@pytest.mark.multiprocess
@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_workers_goes_on(tmp_path, size, capfd):
    saved = workers.run(_continued, 2, folder=str(tmp_path), epochs=2)
    resumed = workers.run(_continued, size, folder=str(tmp_path))
    for rank, each in enumerate(resumed):
        assert each["start"] == 2
        begun = _parts(each["begun"])
        assert begun["weights"] == _parts(saved[0]["ended"])["weights"]
        of = saved[rank] if rank < 2 else saved[0]  # a new one has rank 0's optimizer …
        assert begun["optimizer"] == _parts(of["ended"])["optimizer"]
        if rank < 2:  # … and its own random generators
            assert begun["own"] == _parts(of["ended"])["own"]
    assert len({each["ended"]["0 sequential/dense/kernel"] for each in resumed}) == 1
    said = capfd.readouterr().out
    assert f"Goes on from {tmp_path}/checkpoint-000002, after step 10." in said
    lost = f"Rank 2 has no rank-2.npz in {tmp_path}/checkpoint-000002: it takes the optimizer's"
    assert (lost in said) == (size == 3)


@pytest.mark.multiprocess
def test_each_rank_may_have_a_disk_of_its_own_and_lose_it(tmp_path, capfd):
    saved = workers.run(_continued, 2, folder=str(tmp_path), disks=True, epochs=3)
    names = [[path.name for path in sorted((tmp_path / f"{rank}").rglob("*"))] for rank in (0, 1)]
    folders = [f"checkpoint-{number:06d}" for number in (1, 2, 3)]
    mine = ["manifest.json", "model.weights.h5", "rank-0.npz"]
    assert sorted(names[0]) == sorted([*folders[1:], *mine, *mine])
    assert sorted(names[1]) == sorted([*folders, *["rank-1.npz"] * 3])  # one checkpoint late
    shutil.rmtree(tmp_path / "1" / folders[2])
    _, resumed = workers.run(_continued, 2, folder=str(tmp_path), disks=True)
    assert resumed["start"] == 3
    assert _parts(resumed["begun"])["optimizer"] == _parts(saved[0]["ended"])["optimizer"]
    assert "Rank 1 has no rank-1.npz in" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "0")
    anew = workers.run(_continued, 2, folder=str(tmp_path), disks=True, epochs=1)
    assert [rank["start"] for rank in anew] == [0, 0]
    assert "Rank 0 has no checkpoint in" in capfd.readouterr().out


# ---- SIGTERM ------------------------------------------------------------------------------------


def _preempted(cluster, folder):
    """SIGTERM on the last rank in the seventh step, the second of the second epoch; for each H."""
    import keras

    import tf_gossip_pga as pga

    found = {}
    for name, H in (("H=4", 4), ("H=None", None)):  # noqa: N806
        ends = []
        for attempt in range(2):
            model, gossip = _model(cluster.rank), _gossip(H)
            checkpoint = pga.Checkpoint(gossip, f"{folder}/{name}", every=10)
            start = checkpoint.restore(model)
            before = signal.getsignal(signal.SIGTERM)

            def kill(batch, logs=None, gossip=gossip, attempt=attempt):
                if gossip.step == 6 and cluster.rank == cluster.size - 1 and attempt == 0:
                    os.kill(os.getpid(), signal.SIGTERM)

            killer = keras.callbacks.LambdaCallback(on_train_batch_begin=kill)
            model.fit(
                *_data(cluster.rank),
                batch_size=BATCH,
                epochs=3,
                initial_epoch=start,
                callbacks=[killer, gossip, checkpoint],
                verbose=0,
            )
            assert signal.getsignal(signal.SIGTERM) == before
            ends.append([start, gossip.step, checkpoint.preempted])
        found[name] = [*ends, next(iter(_digests(model).values()))]
    return found


@pytest.mark.multiprocess
def test_sigterm_on_one_rank_stops_all_who_save_and_go_on_later(tmp_path, capfd):
    first, second = workers.run(_preempted, 2, folder=str(tmp_path))
    assert first == second
    # At the next global average, of step 8: the second epoch begins anew, with its 5 steps.
    assert first["H=4"][:2] == [[0, 8, True], [1, 8 + 2 * STEPS, False]]
    # At the end of the second epoch.
    assert first["H=None"][:2] == [[0, 10, True], [2, 10 + STEPS, False]]
    said = capfd.readouterr().out
    assert said.count("Rank 1 has received SIGTERM: all ranks are asked to stop and save.") == 2
    assert "Rank 0 has received" not in said


def _preempted_at_random(cluster, folder):
    """SIGTERM on one rank or the other at any moment of a run, several times over."""
    import threading

    import tf_gossip_pga as pga

    signal.signal(signal.SIGTERM, lambda number, frame: None)  # those that come after fit
    random = np.random.default_rng(0)
    model, ends = _model(cluster.rank), []
    for attempt in range(8):
        gossip = _gossip(4, overlap=attempt % 2 == 1)
        checkpoint = pga.Checkpoint(gossip, f"{folder}/{attempt}", every=2)
        victim, moment = random.integers(2), random.uniform(0, 0.8)
        timer = threading.Timer(moment, _terminate)
        if cluster.rank == victim:
            model_begins = _lambda(on_epoch_begin=lambda epoch, logs, t=timer: epoch or t.start())
        else:
            model_begins = _lambda()
        x, y = _data(cluster.rank)
        model.fit(
            *(x, y),
            batch_size=BATCH,
            epochs=12,
            validation_data=(x, y),
            callbacks=[model_begins, gossip, checkpoint],
            verbose=0,
        )
        timer.cancel()
        resumed = pga.Checkpoint(_gossip(4, overlap=attempt % 2 == 1), f"{folder}/{attempt}")
        ends.append([gossip.step, checkpoint.preempted, resumed.restore(model)])
    return ends


@pytest.mark.multiprocess
def test_sigterm_at_any_moment_stops_all_at_one_step_with_a_checkpoint(tmp_path):
    first, second = workers.run(_preempted_at_random, 2, folder=str(tmp_path))
    assert first == second
    for step, preempted, epoch in first:
        # At a global average or at the end of an epoch; an epoch that was left begins anew.
        assert step % 4 == 0 or step % STEPS == 0
        assert epoch == step // STEPS
        assert preempted or step == 12 * STEPS
    assert sum(preempted for _, preempted, _ in first) > 2


@pytest.mark.multiprocess
def test_sigterm_stops_a_single_worker_at_once(tmp_path):
    (alone,) = workers.run(_preempted, 1, folder=str(tmp_path))
    for name in ("H=4", "H=None"):
        assert alone[name][:2] == [[0, 7, True], [1, 7 + 2 * STEPS, False]]


@pytest.fixture
def received():
    """The signals that have come to a handler of the user's."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def _terminate(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


def _train(folder, *callbacks, epochs=2, model=None, **arguments):
    """A single worker's run in this process, where all is quick."""
    import tf_gossip_pga as pga

    model, gossip = model or _model(0), _gossip()
    checkpoint = pga.Checkpoint(gossip, folder, **arguments)
    fit = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0}
    model.fit(*_data(0), callbacks=[gossip, *callbacks, checkpoint], **fit)
    return model, checkpoint


def _lambda(**hooks):
    import keras

    return keras.callbacks.LambdaCallback(**hooks)


def test_a_second_sigterm_has_its_usual_effect_but_for_an_echo(tmp_path, received, monkeypatch):
    def twice(batch, logs=None):
        if batch == 1:
            _terminate()
            _terminate()
            assert received == []
            monkeypatch.setattr(preemption, "_ECHO_S", 0.0)
            _terminate()

    _, checkpoint = _train(tmp_path, _lambda(on_train_batch_begin=twice))
    assert received == [signal.SIGTERM]
    assert checkpoint.preempted


def test_sigterm_after_fit_was_left_by_an_exception_has_its_usual_effect(tmp_path, received):
    def leave(batch, logs=None):
        raise LeftError

    with pytest.raises(LeftError):
        _train(tmp_path, _lambda(on_train_batch_end=leave))
    assert received == []
    _terminate()
    assert received == [signal.SIGTERM]


def test_sigterm_that_comes_too_late_to_stop_anything_is_not_swallowed(tmp_path, received):
    _, checkpoint = _train(tmp_path, _lambda(on_train_end=_terminate))
    assert received == [signal.SIGTERM]
    assert not checkpoint.preempted


def test_an_ignored_sigterm_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _, checkpoint = _train(tmp_path, _lambda(on_train_batch_begin=_terminate), epochs=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not checkpoint.preempted


# ---- What is saved when -------------------------------------------------------------------------


def _saved(folder) -> list[int]:
    """The epochs that checkpoints begin with, the oldest first."""
    manifests = sorted(pathlib.Path(folder).glob("checkpoint-*/manifest.json"))
    return [json.loads(path.read_text())["epoch"] for path in manifests]


def test_every_nth_epoch_and_the_last_are_saved_and_the_newest_stay(tmp_path):
    _train(tmp_path, epochs=5, every=2)
    assert _saved(tmp_path) == [2, 4, 5]
    _train(tmp_path, epochs=3, keep=2)
    assert _saved(tmp_path) == [2, 3]


def test_a_run_that_stops_early_is_saved_at_the_end_of_its_epoch_only(tmp_path):
    import keras

    _train(tmp_path, keras.callbacks.EarlyStopping("loss", min_delta=99, patience=1), epochs=9)
    assert _saved(tmp_path)[-1] == 2

    def stop(batch, logs=None):
        callback.model.stop_training = batch == 2

    callback = _lambda(on_train_batch_end=stop)
    _train(tmp_path / "other", callback)
    assert _saved(tmp_path / "other") == []


def test_a_model_that_has_diverged_is_not_saved(tmp_path, capsys):
    def diverge(epoch, logs=None):
        if epoch == 1:
            model.layers[0].kernel.assign(np.full((4, 8), np.nan))

    model = _model(0)
    _train(tmp_path, _lambda(on_epoch_end=diverge), model=model)
    assert _saved(tmp_path) == [1]
    said = "was not completed, training goes on. The model has weights that are no finite numbers"
    assert said in capsys.readouterr().err


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    model = _model(0)
    monkeypatch.setattr(model, "save_weights", full)
    _train(tmp_path, model=model)
    assert _saved(tmp_path) == []
    error = capsys.readouterr().err
    assert error.count("was not completed, training goes on. Rank 0: [Errno 28] No space left") == 2
    assert list(tmp_path.iterdir()) == []  # no half of one takes the room


def test_the_weights_are_plain_keras(tmp_path):
    model, _ = _train(tmp_path, epochs=1)
    other = _model(1)
    other.optimizer.build(other.trainable_variables)  # else Keras warns that it is left out
    other.load_weights(tmp_path / "checkpoint-000001" / "model.weights.h5")
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        if "count" not in mine.path:
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "mixed_float16", "float64"])
def test_every_type_of_number_comes_back(tmp_path, policy):
    import keras

    import tf_gossip_pga as pga

    keras.config.set_dtype_policy(policy)
    try:
        model, _ = _train(tmp_path, epochs=1)
        other = _model(1)
        assert pga.Checkpoint(_gossip(), tmp_path).restore(other) == 1
    finally:
        keras.config.set_dtype_policy("float32")
    assert list(_digests(other).values()) == list(_digests(model).values())


# ---- Damaged and foreign checkpoints ------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A directory with two checkpoints, not to be changed."""
    folder = tmp_path_factory.mktemp("original")
    _train(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "copy")


def _odd_ranks(cluster, folder):
    """What happens where the second rank, or its disk, differs."""
    import keras

    import tf_gossip_pga as pga

    def fit(name, *more, **arguments):
        model, gossip = _model(cluster.rank), _gossip()
        checkpoint = pga.Checkpoint(gossip, f"{folder}/{name}")
        callbacks = [gossip, *([] if arguments.get("without") else [checkpoint]), *more]
        if arguments.get("restore"):
            arguments["initial_epoch"] = checkpoint.restore(model)
        if arguments.get("full") and cluster.rank == 1:
            checkpoint._store.write = full
        more = {name: arguments[name] for name in ("initial_epoch",) if name in arguments}
        model.fit(
            *_data(cluster.rank), batch_size=BATCH, epochs=2, callbacks=callbacks, verbose=0, **more
        )
        return _digests(model)

    def full(*_):
        raise OSError(28, "No space left on device")

    odd = cluster.rank == 1
    found = {}

    # Keras' own callbacks beside ours: after a Checkpoint all ranks have the averaged model.
    kept = keras.callbacks.ModelCheckpoint(f"{folder}/kept.weights.h5", save_weights_only=True)
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup/{cluster.rank}")
    digests = fit("saved", *([] if odd else [kept]), backup)
    if not odd:
        model = _model(0)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(f"{folder}/kept.weights.h5")
        names = [name for name in digests if "dense" in name or "normalization" in name]
        mine = list(_digests(model).values())
        found["kept"] = [[digests[name], mine[int(name.split()[0])]] for name in names]

    # Keras' own on one rank alone: it resumes, and the others do not.
    lone = [] if odd else [keras.callbacks.BackupAndRestore(f"{folder}/lone")]
    with contextlib.suppress(LeftError):
        fit("lone", *lone, _lambda(on_epoch_begin=_leave_in_second_epoch))
    try:
        fit("lone", *lone)
    except RuntimeError as error:
        found["only one backs up"] = str(error)

    fit("full", full=True)
    if odd:
        path = pathlib.Path(folder, "saved", "checkpoint-000002", "rank-1.npz")
        path.write_bytes(path.read_bytes()[:-1])
    checkpoint = pga.Checkpoint(_gossip(), f"{folder}/saved")
    found["damaged"] = checkpoint.restore(_model(0))
    for name, mine in {
        "only one restores": {"restore": not odd},
        "only one saves": {"without": odd},
    }.items():
        try:
            found[name] = fit(name, **mine)
        except (ValueError, RuntimeError) as error:
            found[name] = str(error)
    return found


def _leave_in_second_epoch(epoch, logs=None):
    if epoch:
        raise LeftError


@pytest.mark.multiprocess
def test_ranks_that_differ_are_told_apart(tmp_path, capfd):
    first, second = workers.run(_odd_ranks, 2, folder=str(tmp_path))
    said = capfd.readouterr().out
    for saved, loaded in first["kept"]:
        assert saved == loaded
    assert said.count("training goes on. Rank 1: [Errno 28] No space left on device.") == 2
    assert first["damaged"] == second["damaged"] == 1
    assert re.search(r"Passed over a checkpoint\. Rank 1: .*rank-1.npz is not as it was writ", said)
    assert "Rank 1 cannot restore a checkpoint: it has called fit" in first["only one restores"]
    assert "Rank 0 cannot start training: it restores a check" in second["only one restores"]
    assert first["only one backs up"] == second["only one backs up"]
    assert "The ranks took different ways through training" in first["only one backs up"]
    assert first["only one saves"] == second["only one saves"]
    assert "rank 0 is at the checkpoint after step 5" in first["only one saves"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gossip": "gossip"}, "gossip must be a GossipPGA, received 'gossip'"),
        ({"every": 0}, "every must be a whole number of epochs >= 1, received 0"),
        ({"every": True}, "every must be a whole number of epochs >= 1, received True"),
        ({"keep": 1.5}, r"keep must be a whole number of checkpoints >= 1, received 1\.5"),
        ({"directory": "/proc/none"}, "directory must be one that this .* received '/proc/none'"),
        ({"directory": None}, "directory must be one that this .* received None"),
    ],
)
def test_bad_arguments_are_errors(tmp_path, arguments, message):
    import tf_gossip_pga as pga

    with pytest.raises(ValueError, match=message):
        pga.Checkpoint(**{"gossip": _gossip(), "directory": tmp_path, **arguments})


@pytest.mark.parametrize("others", ["none", "after"])
def test_its_gossip_must_come_before_it(tmp_path, others):
    import tf_gossip_pga as pga

    gossip = _gossip()
    callbacks = [pga.Checkpoint(gossip, tmp_path), *([gossip] if others == "after" else [])]
    with pytest.raises(ValueError, match=r"must come before it: callbacks=\[gossip, checkpoint\]"):
        _model(0).fit(*_data(0), callbacks=callbacks, verbose=0)


def _restore(folder, model=None, **gossip):
    import tf_gossip_pga as pga

    return pga.Checkpoint(_gossip(**gossip), folder).restore(model or _model(0))


def test_without_a_checkpoint_training_begins_with_the_first_epoch(tmp_path):
    assert _restore(tmp_path / "new") == 0


@pytest.mark.parametrize("name", ["model.weights.h5", "rank-0.npz", "manifest.json"])
def test_a_damaged_one_is_passed_over_with_a_word_and_no_other_is_an_error(folder, name, capsys):
    path = folder / "checkpoint-000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert _restore(folder) == 1
    said = capsys.readouterr().err
    assert re.search(rf"Passed over a checkpoint\. Rank 0: {path} is not as it was written", said)
    assert f"Goes on from {folder}/checkpoint-000001, after step 5." in said
    shutil.rmtree(folder / "checkpoint-000001")
    with pytest.raises(ValueError, match=rf"None of the checkpoints in {folder} can .*\n.*{path}"):
        _restore(folder)


def test_an_unfinished_one_is_ignored(folder):
    (folder / "checkpoint-000002" / "manifest.json").unlink()
    assert _restore(folder) == 1


def test_another_model_optimizer_or_period_is_an_error(folder):
    import keras

    import tf_gossip_pga as pga

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7)])
    other.compile("adam", "mse")
    there = r"variable 1 of .* is sequential/dense/kernel \[4, 8\] .* there, .*\[4, 7\].* here"
    with pytest.raises(ValueError, match=there):
        _restore(folder, other)
    with pytest.raises(ValueError, match=r"another model or optimizer: variable \d+ .* sgd/"):
        _restore(folder, _model(0, "momentum"))
    with pytest.raises(ValueError, match=r"is of a run with another H: state must be what"):
        _restore(folder, H=pga.AdaptivePeriod())
    other.compile(None, "mse")
    with pytest.raises(ValueError, match=r"Rank 0 cannot restore .* Give compile one"):
        _restore(folder, other)


def test_nothing_is_unpickled(folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "unpickled",))

    np.savez(folder / "own.npz", **{"0": np.array([Touch()], dtype=object)})
    for number in (1, 2):
        _forge(folder, number, "rank-0.npz", (folder / "own.npz").read_bytes())
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        _restore(folder)
    assert not (tmp_path / "unpickled").exists()


def _forge(folder, number: int, name: str, data: bytes):
    """Replaces a file, and makes the manifest agree."""
    from tf_gossip_pga.checkpoint import store as store_lib

    store = store_lib.Store(folder, keep=9)
    content = store.read(number)
    content["files"][name] = store.write(number, name, lambda path: path.write_bytes(data))
    (store.folder(number) / "manifest.json").write_bytes(store_lib._manifest(content))


# ---- Generated checkpoints that are none --------------------------------------------------------


def _damaged(data: bytes, how: str, place: int, random: bytes) -> bytes:
    """Bytes that were once a file."""
    place %= len(data) + 1
    if how == "cut":
        return data[:place]
    if how == "overwritten":
        return data[:place] + random + data[place + len(random) :]
    return random


NAMES = ("model.weights.h5", "rank-0.npz")
SCALARS = (
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=9)
)
KEYS = strategies.sampled_from(["step", "period", "H", "last", "initial_loss"])
INNER = SCALARS | strategies.lists(SCALARS, max_size=3) | strategies.dictionaries(KEYS, SCALARS)
ANYTHING = INNER | strategies.lists(INNER, max_size=3) | strategies.dictionaries(KEYS, INNER)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    name=strategies.sampled_from(NAMES),
    how=strategies.sampled_from(["cut", "overwritten", "replaced"]),
    place=strategies.integers(0, 1 << 20),
    random=strategies.binary(min_size=1, max_size=60),
)
def test_no_forged_file_is_worse_than_an_error(generated, name, how, place, random):
    folder, intact, model = generated
    _forge(folder, 1, name, _damaged(intact[name], how, place, random))
    try:
        assert _restore(folder, model) == 1  # bytes changed that mean nothing, or a number
    except ValueError as error:
        assert "None of the checkpoints in" in str(error)
        assert f"{name} cannot be loaded: " in str(error)
    finally:
        _forge(folder, 1, name, intact[name])


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    strategies.dictionaries(
        strategies.sampled_from(["epoch", "state", "variables", "files", "format"]),
        ANYTHING,
        min_size=1,
    )
)
def test_no_forged_manifest_is_worse_than_an_error(generated, content):
    from tf_gossip_pga.checkpoint import store as store_lib

    folder, _, model = generated
    path = folder / "checkpoint-000001" / "manifest.json"
    intact = path.read_bytes()
    manifest = {**store_lib.Store(folder, keep=1).read(1), **content}
    path.write_bytes(store_lib._manifest(manifest))
    try:
        assert _restore(folder, model) == manifest["epoch"]
    except ValueError as error:
        assert "None of the checkpoints in" in str(error)
        assert "checkpoint-000001" in str(error)
    finally:
        path.write_bytes(intact)


@pytest.fixture(scope="module")
def generated(original, tmp_path_factory):
    """A directory with one checkpoint to be damaged, its files, and a model."""
    folder = tmp_path_factory.mktemp("generated")
    one = shutil.copytree(original / "checkpoint-000001", folder / "checkpoint-000001")
    return folder, {name: (one / name).read_bytes() for name in NAMES}, _model(0)
