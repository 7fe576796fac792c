"""Checkpoints in one process: what is saved when, damaged ones, and SIGTERM."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from tests.support import checkpoints as kit
from tf_gossip_pga.training import preemption

# Keras' own, where it saves weights under NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


# ---- SIGTERM ------------------------------------------------------------------------------------


@pytest.fixture
def received():
    """The signals that have come to a handler of the user's."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def _train(folder, *callbacks, epochs=2, model=None, **arguments):
    """A single worker's run in this process, where all is quick."""
    import tf_gossip_pga as pga

    model, gossip = model or kit.a_model(0), kit.a_gossip()
    checkpoint = pga.Checkpoint(gossip, folder, **arguments)
    fit = {"batch_size": kit.BATCH, "epochs": epochs, "shuffle": False, "verbose": 0}
    model.fit(*kit.data(0), callbacks=[gossip, *callbacks, checkpoint], **fit)
    return model, checkpoint


def test_a_second_sigterm_has_its_usual_effect_but_for_an_echo(tmp_path, received, monkeypatch):
    def twice(batch, logs=None):
        if batch == 1:
            kit.terminate()
            kit.terminate()
            assert received == []
            monkeypatch.setattr(preemption, "_ECHO_S", 0.0)
            kit.terminate()

    _, checkpoint = _train(tmp_path, kit.a_callback(on_train_batch_begin=twice))
    assert received == [signal.SIGTERM]
    assert checkpoint.preempted


def test_a_preempted_script_ends_with_an_exit_code_of_its_own(tmp_path, received):
    import tf_gossip_pga as pga

    def once(batch, logs=None):
        if batch == 1:
            kit.terminate()

    _, checkpoint = _train(tmp_path, kit.a_callback(on_train_batch_begin=once))
    with pytest.raises(SystemExit) as ended:
        checkpoint.exit_if_preempted()
    assert ended.value.code == pga.PREEMPTED
    _, checkpoint = _train(tmp_path)
    checkpoint.exit_if_preempted()
    assert received == []


def test_sigterm_after_fit_was_left_by_an_exception_has_its_usual_effect(tmp_path, received):
    def leave(batch, logs=None):
        raise kit.LeftError

    with pytest.raises(kit.LeftError):
        _train(tmp_path, kit.a_callback(on_train_batch_end=leave))
    assert received == []
    kit.terminate()
    assert received == [signal.SIGTERM]


def test_sigterm_that_comes_too_late_to_stop_anything_is_not_swallowed(tmp_path, received):
    _, checkpoint = _train(tmp_path, kit.a_callback(on_train_end=kit.terminate))
    assert received == [signal.SIGTERM]
    assert not checkpoint.preempted


def test_an_ignored_sigterm_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _, checkpoint = _train(
            tmp_path, kit.a_callback(on_train_batch_begin=kit.terminate), epochs=1
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not checkpoint.preempted


def test_a_forked_child_does_not_note_its_parents_sigterm(tmp_path, received):
    statuses = []

    def fork(batch, logs=None):
        if batch == 0:
            pid = os.fork()
            if not pid:
                os._exit(signal.getsignal(signal.SIGTERM) is not before)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            assert signal.getsignal(signal.SIGTERM) is not before  # the parent's own stays

    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        _train(tmp_path, kit.a_callback(on_train_batch_begin=fork), epochs=1)
    assert statuses == [0]


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

    callback = kit.a_callback(on_train_batch_end=stop)
    _train(tmp_path / "other", callback)
    assert _saved(tmp_path / "other") == []


def test_a_model_that_has_diverged_is_not_saved(tmp_path, capsys):
    def diverge(epoch, logs=None):
        if epoch == 1:
            model.layers[0].kernel.assign(np.full((4, 8), np.nan))

    model = kit.a_model(0)
    _train(tmp_path, kit.a_callback(on_epoch_end=diverge), model=model)
    assert _saved(tmp_path) == [1]
    said = "was not completed. Training continues. The model has weights that are not finite"
    assert said in capsys.readouterr().err


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    model = kit.a_model(0)
    monkeypatch.setattr(model, "save_weights", full)
    _train(tmp_path, model=model)
    assert _saved(tmp_path) == []
    error = capsys.readouterr().err
    assert (
        error.count("was not completed. Training continues. Rank 0: [Errno 28] No space left") == 2
    )
    assert not list(tmp_path.glob("checkpoint-*"))  # no half of one takes the room


# ---- Directories that fail, and those of others -------------------------------------------------


def _fails_after(epoch: int, monkeypatch, *calls: str, **also):
    """A callback after which these calls of `os` are denied."""

    def denied(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    def fail(now, logs=None):
        if now == epoch:
            for each in calls:
                monkeypatch.setattr(os, each, denied)

    return kit.a_callback(on_epoch_begin=fail)


@pytest.mark.parametrize(
    "calls",
    [("listdir",), ("open",), ("replace",), ("listdir", "open", "replace", "mkdir", "unlink")],
)
def test_a_directory_that_fails_in_mid_run_never_ends_training(
    tmp_path, capsys, monkeypatch, calls
):
    with monkeypatch.context() as patch:
        _, checkpoint = _train(tmp_path, _fails_after(1, patch, *calls), epochs=3)
    assert checkpoint._gossip.step == 3 * kit.STEPS
    said = capsys.readouterr().err
    assert said.count("was not completed. Training continues. Rank 0: ") == 2
    assert said.count("Permission denied") == 2
    assert _saved(tmp_path) == [1]
    assert _restore(tmp_path) == 1


def test_a_directory_that_vanishes_in_mid_run_is_made_again(tmp_path):
    def vanish(epoch, logs=None):
        if epoch == 1:
            shutil.rmtree(tmp_path / "new")

    _train(tmp_path / "new", kit.a_callback(on_epoch_begin=vanish), epochs=3)
    assert _saved(tmp_path / "new") == [2, 3]


def test_old_checkpoints_that_cannot_be_removed_cost_no_new_one(tmp_path, capsys, monkeypatch):
    from tf_gossip_pga.checkpoint import files as files_lib

    def denied(self, newest):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files_lib.CheckpointFiles, "prune", denied)
    _train(tmp_path, keep=1)
    assert _saved(tmp_path) == [1, 2]
    assert (
        "Old checkpoints were not removed. Rank 0: [Errno 13] Permission denied."
        in capsys.readouterr().err
    )


def test_a_directory_that_cannot_be_listed_is_no_empty_one(folder, monkeypatch):
    monkeypatch.setattr(os, "listdir", _denied)
    with pytest.raises(ValueError, match=r"Rank 0 cannot restore .* Permission denied"):
        _restore(folder)


def _denied(*_, **__):
    raise PermissionError(13, "Permission denied")


def _claimed_by(folder, process):
    from tf_gossip_pga.checkpoint.ownership import Ownership

    offer = {"run": "another", "process": dataclasses.asdict(process)}
    Ownership(folder).take([offer], 0, (process.rank,))


def test_a_second_job_is_refused_before_its_first_step(tmp_path):
    from tf_gossip_pga.checkpoint import ownership

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "_runs", {})
        _claimed_by(tmp_path, dataclasses.replace(ownership.Process.this(0), rank=5))
    model, handler = kit.a_model(0), signal.getsignal(signal.SIGTERM)
    before = kit.digests(model)
    with pytest.raises(
        ValueError, match=rf"^Rank 0: {tmp_path} is in use by another job: process {os.getpid()}"
    ):
        _train(tmp_path, model=model)
    assert signal.getsignal(signal.SIGTERM) is handler
    after = kit.digests(model)
    assert {name: after[name] for name in before} == before
    assert _saved(tmp_path) == []


def test_who_was_left_out_trains_on_and_pushes_out_nothing(tmp_path, capsys):
    from tf_gossip_pga.checkpoint import ownership

    def leave_out(epoch, logs=None):
        if epoch != 1:
            return
        run = json.loads((tmp_path / "owner" / "000001.json").read_text())["run"]
        other = dataclasses.replace(ownership.Process.this(0), rank=5)
        others = ownership.Ownership(tmp_path)
        others._number = 1  # they were members of the first view, too
        others.take([{"run": run, "process": dataclasses.asdict(other)}], 1, (5,))

    _train(tmp_path, kit.a_callback(on_epoch_begin=leave_out), epochs=3, keep=1)
    assert _saved(tmp_path) == [1]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    said = capsys.readouterr().err
    lost = (
        f"was not completed. Training continues. Rank 0: {tmp_path} belongs to view 1 of this run"
    )
    assert said.count(lost) == 2
    assert [path.name for path in (tmp_path / "owner").iterdir()] == ["000002.json"]


def test_the_manifest_names_run_and_view_and_old_ones_are_read(tmp_path):
    from tf_gossip_pga.checkpoint import files as files_lib

    _train(tmp_path, epochs=1)
    store = files_lib.CheckpointFiles(tmp_path, keep=1)
    manifest = store.read(1)
    assert re.fullmatch("[0-9a-f]{16}", manifest.pop("run"))
    assert manifest.pop("view") == 0
    (store.folder(1) / "manifest.json").write_bytes(files_lib._manifest(manifest))
    assert _restore(tmp_path) == 1


def test_who_has_left_fit_by_an_exception_may_go_on_in_the_same_process(tmp_path):
    def leave(epoch, logs=None):
        if epoch == 1:
            raise kit.LeftError

    with pytest.raises(kit.LeftError):
        _train(tmp_path, kit.a_callback(on_epoch_begin=leave))
    _train(tmp_path)
    assert _saved(tmp_path) == [1, 1, 2]


def test_the_weights_are_plain_keras(tmp_path):
    model, _ = _train(tmp_path, epochs=1)
    other = kit.a_model(1)
    other.optimizer.build(other.trainable_variables)  # else Keras warns that it is left out
    other.load_weights(tmp_path / "checkpoint-000001" / "model.weights.h5")
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        if "count" not in ours.path:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "mixed_float16", "float64"])
def test_every_type_of_number_comes_back(tmp_path, policy):
    import keras

    import tf_gossip_pga as pga

    keras.config.set_dtype_policy(policy)
    try:
        model, _ = _train(tmp_path, epochs=1)
        other = kit.a_model(1)
        assert pga.Checkpoint(kit.a_gossip(), tmp_path).restore(other) == 1
    finally:
        keras.config.set_dtype_policy("float32")
    assert list(kit.digests(other).values()) == list(kit.digests(model).values())


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gossip": "gossip"}, "gossip must be a GossipPGA, received 'gossip'"),
        ({"every": 0}, "every must be a whole number of epochs >= 1, received 0"),
        ({"every": True}, "every must be a whole number of epochs >= 1, received True"),
        ({"keep": 1.5}, r"keep must be a whole number of checkpoints >= 1, received 1\.5"),
        ({"directory": "/proc/none"}, "directory must be writable .* received '/proc/none'"),
        ({"directory": None}, "directory must be writable .* received None"),
    ],
)
def test_bad_arguments_are_errors(tmp_path, arguments, message):
    import tf_gossip_pga as pga

    with pytest.raises(ValueError, match=message):
        pga.Checkpoint(**{"gossip": kit.a_gossip(), "directory": tmp_path, **arguments})


@pytest.mark.parametrize("others", ["none", "after"])
def test_its_gossip_must_come_before_it(tmp_path, others):
    import tf_gossip_pga as pga

    gossip = kit.a_gossip()
    callbacks = [pga.Checkpoint(gossip, tmp_path), *([gossip] if others == "after" else [])]
    with pytest.raises(
        ValueError, match=r"must come before it in .*: callbacks=\[gossip, checkpoint\]"
    ):
        kit.a_model(0).fit(*kit.data(0), callbacks=callbacks, verbose=0)


def _restore(folder, model=None, **gossip):
    import tf_gossip_pga as pga

    return pga.Checkpoint(kit.a_gossip(**gossip), folder).restore(model or kit.a_model(0))


def test_without_a_checkpoint_training_begins_with_the_first_epoch(tmp_path):
    assert _restore(tmp_path / "new") == 0


@pytest.mark.parametrize("name", ["model.weights.h5", "rank-0.npz", "manifest.json"])
def test_a_damaged_one_is_passed_over_with_a_word_and_no_other_is_an_error(folder, name, capsys):
    path = folder / "checkpoint-000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert _restore(folder) == 1
    said = capsys.readouterr().err
    assert re.search(rf"Skipped a checkpoint\. Rank 0: {path} is damaged: ", said)
    assert f"Resuming from {folder}/checkpoint-000001, after step 5." in said
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
    there = r"variable 1 .* is .*/kernel \[4, 8\] .* in the checkpoint, but .*\[4, 7\].* here"
    with pytest.raises(ValueError, match=there):
        _restore(folder, other)
    with pytest.raises(ValueError, match=r"another model or optimizer: variable \d+ .* sgd/"):
        _restore(folder, kit.a_model(0, "momentum"))
    with pytest.raises(ValueError, match=r"belongs to a run with another kind of H: state must be"):
        _restore(folder, H=pga.AdaptivePeriod())
    other.compile(None, "mse")
    with pytest.raises(ValueError, match=r"Rank 0 cannot restore .* Pass an optimizer"):
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
    from tf_gossip_pga.checkpoint import files as files_lib

    store = files_lib.CheckpointFiles(folder, keep=9)
    content = store.read(number)
    content["files"][name] = store.write(number, name, lambda path: path.write_bytes(data))
    (store.folder(number) / "manifest.json").write_bytes(files_lib._manifest(content))


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


@hypothesis.settings(max_examples=150)
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


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    strategies.dictionaries(
        strategies.sampled_from(["epoch", "state", "variables", "files", "format"]),
        ANYTHING,
        min_size=1,
    )
)
def test_no_forged_manifest_is_worse_than_an_error(generated, content):
    from tf_gossip_pga.checkpoint import files as files_lib

    folder, _, model = generated
    path = folder / "checkpoint-000001" / "manifest.json"
    intact = path.read_bytes()
    manifest = {**files_lib.CheckpointFiles(folder, keep=1).read(1), **content}
    path.write_bytes(files_lib._manifest(manifest))
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
    return folder, {name: (one / name).read_bytes() for name in NAMES}, kit.a_model(0)
