"""Checkpoints in real processes: a resumed run is the run that was never interrupted."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import pytest

from tests.support import checkpoints as kit
from tests.support import workers

# Keras' own, where it saves weights under NumPy 2.
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

# What is kept besides weights differs between these: slots of every rank, or one for all; the
# period; the reference of rounded messages; a gossip under way when the epoch ends; the state of an
# outer optimizer in the middle of a period.
CASES = {
    "adam, local": {"optimizer": "adam", "optimizer_state": "local"},
    "adam, average": {"optimizer": "adam", "optimizer_state": "average"},
    "adaptive, overlap": {"H": "adaptive", "overlap": True},
    "no global average, int8": {"H": None, "wire_dtype": "int8", "optimizer": "scaled"},
    "reset": {"optimizer": "momentum", "optimizer_state": "reset"},
    "outer": {"optimizer": "momentum", "outer": [0.7, 0.9, True]},
}


def _fit(cluster, folder, resume=False, crash_in=None, optimizer="adam", epochs=4, **settings):
    """A run with a checkpoint after every second epoch."""
    import keras

    import tf_gossip_pga as pga

    model, gossip = kit.a_model(cluster.rank, optimizer), kit.a_gossip(**settings)
    checkpoint = pga.Checkpoint(gossip, folder, every=2)

    def crash(batch, logs=None):
        if gossip.step == crash_in:
            raise kit.LeftError

    x, y = kit.data(cluster.rank)
    losses = []
    own_loss = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]), on_train_batch_begin=crash
    )
    start = checkpoint.restore(model) if resume else 0
    with contextlib.suppress(kit.LeftError):
        model.fit(
            x,
            y,
            batch_size=kit.BATCH,
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
        "variables": kit.digests(model),
        "outer": kit.digests_of_outer(gossip),
        "state": gossip.state,
        "bytes": gossip.bytes_sent,
        "preempted": checkpoint.preempted,
    }


# ---- Resumed and uninterrupted ------------------------------------------------------------------


def _runs(cluster, cases, folder, **more):
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    return {name: _fit(cluster, f"{folder}/{name}", **CASES[name], **more) for name in cases}


_FEW = ["adam, average", "adaptive, overlap", "no global average, int8", "outer"]
_REST = [name for name in CASES if name not in _FEW]


@pytest.fixture(
    scope="module",
    params=[_FEW, pytest.param(_REST, marks=pytest.mark.slow)],
    ids=["few", "rest"],
)
def runs(request, tmp_path_factory):
    """For each way to run, what each rank has for each case; in processes of their own."""
    whole, broken = (str(tmp_path_factory.mktemp(name)) for name in ("whole", "broken"))
    return {
        "whole": workers.run(_runs, 2, cases=request.param, folder=whole),
        "broken": workers.run(
            _runs, 2, cases=request.param, folder=broken, crash_in=3 * kit.STEPS + 2
        ),
        "resumed": workers.run(_runs, 2, cases=request.param, folder=broken, resume=True),
    }


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs):
    for case in runs["whole"][0]:
        _check_resumed(runs, case)


def _check_resumed(runs, case):
    for rank in (0, 1):
        whole, broken, resumed = (runs[how][rank][case] for how in ("whole", "broken", "resumed"))
        assert whole["start"] == 0
        assert resumed["start"] == 2
        assert resumed["losses"] == whole["losses"][2:]
        assert resumed["variables"] == whole["variables"]
        assert resumed["outer"] == whole["outer"] == runs["whole"][0][case]["outer"]
        assert resumed["state"] == whole["state"]
        assert broken["state"]["step"] == 3 * kit.STEPS + 2
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
    """A run that continues from what lies in the folder, and the model it began with."""
    import keras

    import tf_gossip_pga as pga

    own = f"{folder}/{cluster.rank}" if disks else folder
    model, gossip = kit.a_model(10 + cluster.rank), kit.a_gossip()
    checkpoint = pga.Checkpoint(gossip, own, keep=2)
    start = checkpoint.restore(model)
    begun = {}
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: begun or begun.update(kit.digests(model))
    )
    model.fit(
        *kit.data(cluster.rank),
        batch_size=kit.BATCH,
        epochs=epochs,
        initial_epoch=start,
        shuffle=False,
        callbacks=[gossip, checkpoint, look],
        verbose=0,
    )
    return {
        "start": start,
        "step": gossip.step,
        "begun": begun,
        "ended": kit.digests(model),
        "addresses": cluster.addresses,
    }


def _parts(digests: dict[str, str]) -> dict[str, list[str]]:
    """The digests of the weights, the optimizer's variables, and what is each rank's for ever."""
    parts = {"weights": [], "optimizer": [], "own": []}
    for name, digest in digests.items():
        kind = "optimizer" if "adam" in name else "weights"
        parts["own" if "seed" in name or "count" in name else kind].append(digest)
    return parts


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_workers_goes_on(pools, tmp_path, size, capfd):
    saved = pools.run(_continued, 2, folder=str(tmp_path), epochs=2)
    resumed = pools.run(_continued, size, folder=str(tmp_path))
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
    assert f"Resuming from {tmp_path}/checkpoint-000002, after step 10." in said
    lost = f"Rank 2 has no rank-2.npz in {tmp_path}/checkpoint-000002. It uses the optimizer"
    assert (lost in said) == (size == 3)


@pytest.mark.slow
def test_each_rank_may_have_a_disk_of_its_own_and_lose_it(pools, tmp_path, capfd):
    saved = pools.run(_continued, 2, folder=str(tmp_path), disks=True, epochs=3)
    names = [[path.name for path in (tmp_path / f"{rank}").rglob("*")] for rank in (0, 1)]
    folders = [f"checkpoint-{number:06d}" for number in (1, 2, 3)]
    written = ["manifest.json", "model.weights.h5", "rank-0.npz"]
    claim = ["owner", "000001.json"]
    assert sorted(names[0]) == sorted([*claim, "cluster.json", *folders[1:], *written, *written])
    addresses = json.loads((tmp_path / "0" / "cluster.json").read_text())["addresses"]
    assert addresses == saved[1]["addresses"]
    late = [*folders, *["rank-1.npz"] * 3]  # one checkpoint late
    assert sorted(names[1]) == sorted([*claim, *late])
    shutil.rmtree(tmp_path / "1" / folders[2])
    _, resumed = pools.run(_continued, 2, folder=str(tmp_path), disks=True)
    assert resumed["start"] == 3
    assert _parts(resumed["begun"])["optimizer"] == _parts(saved[0]["ended"])["optimizer"]
    assert "Rank 1 has no rank-1.npz in" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "0")
    fresh = pools.run(_continued, 2, folder=str(tmp_path), disks=True, epochs=1)
    assert [rank["start"] for rank in fresh] == [0, 0]
    assert "Rank 0 has no checkpoint in" in capfd.readouterr().out


def _odd_directories(cluster, folder):
    """What happens where the second rank's directory fails, or belongs to another job."""
    import dataclasses

    import tf_gossip_pga as pga
    from tf_gossip_pga.checkpoint import ownership

    def fit(name, *more, **arguments):
        model, gossip = kit.a_model(cluster.rank), kit.a_gossip(**arguments)
        checkpoint = pga.Checkpoint(gossip, f"{folder}/{name}")
        try:
            model.fit(
                *kit.data(cluster.rank),
                batch_size=kit.BATCH,
                epochs=3,
                callbacks=[gossip, checkpoint, *more],
                verbose=0,
            )
        except ValueError as error:
            return str(error)
        return gossip.step

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    def deny(epoch, logs=None):
        if epoch == 1 and cluster.rank == 1:
            os.listdir = denied

    listdir = os.listdir
    try:
        found = {"unlisted": fit("unlisted", kit.a_callback(on_epoch_begin=deny))}
        os.listdir = listdir
        survives = {"on_worker_lost": "continue"}
        denier = kit.a_callback(on_epoch_begin=deny)
        found["unlisted, survives"] = fit("unlisted too", denier, **survives)
        found["members"] = list(cluster.members)
    finally:
        os.listdir = listdir
    own, holder = f"in use/{cluster.rank}", os.getppid()
    if cluster.rank == 1:  # by a process that lives
        process = dataclasses.replace(
            ownership.Process.this(0), pid=holder, started=ownership._started(holder)
        )
        offer = {"run": "another", "process": dataclasses.asdict(process)}
        ownership.Ownership(pathlib.Path(folder, own)).take([offer], 0, (0,))
        ownership._runs.clear()
    found["in use"] = fit(own)
    claims = pathlib.Path(folder, own, "owner").iterdir()
    claimed = [[each.name, each.stat().st_mtime > 0] for each in claims]
    return {**found, "holder": holder, "claims": claimed}


def test_a_directory_that_fails_on_one_rank_ends_no_training_and_a_second_job_is_refused(
    pools, tmp_path, capfd
):
    first, second = pools.run(_odd_directories, 2, folder=str(tmp_path))
    assert first["unlisted"] == second["unlisted"] == 3 * kit.STEPS
    assert first["unlisted, survives"] == second["unlisted, survives"] == 3 * kit.STEPS
    assert first["members"] == second["members"] == [0, 1]
    said = capfd.readouterr().out
    failed = "was not completed. Training continues. Rank 1: [Errno 13] Permission denied."
    assert said.count(failed) == 4
    assert first["in use"] == second["in use"]
    assert (
        f"Rank 1: {tmp_path}/in use/1 is in use by another job: process {second['holder']} on"
        in first["in use"]
    )
    assert first["claims"] == [["000001.json", False]]  # released again
    assert second["claims"] == [["000001.json", True]]


# ---- SIGTERM ------------------------------------------------------------------------------------


def _preempted(cluster, folder):
    """SIGTERM on the last rank in the seventh step, the second of the second epoch; for each H."""
    import keras

    import tf_gossip_pga as pga

    found = {}
    for name, H in (("H=4", 4), ("H=None", None)):  # noqa: N806
        ends = []
        for attempt in range(2):
            model, gossip = kit.a_model(cluster.rank), kit.a_gossip(H)
            checkpoint = pga.Checkpoint(gossip, f"{folder}/{name}", every=10)
            start = checkpoint.restore(model)
            before = signal.getsignal(signal.SIGTERM)

            def kill(batch, logs=None, gossip=gossip, attempt=attempt):
                if gossip.step == 6 and cluster.rank == cluster.size - 1 and attempt == 0:
                    os.kill(os.getpid(), signal.SIGTERM)

            killer = keras.callbacks.LambdaCallback(on_train_batch_begin=kill)
            model.fit(
                *kit.data(cluster.rank),
                batch_size=kit.BATCH,
                epochs=3,
                initial_epoch=start,
                callbacks=[killer, gossip, checkpoint],
                verbose=0,
            )
            assert signal.getsignal(signal.SIGTERM) == before
            ends.append([start, gossip.step, checkpoint.preempted])
        found[name] = [*ends, next(iter(kit.digests(model).values()))]
    return found


@pytest.mark.slow
def test_sigterm_on_one_rank_stops_all_who_save_and_go_on_later(tmp_path, capfd):
    first, second = workers.run(_preempted, 2, folder=str(tmp_path))
    assert first == second
    # At the next global average, of step 8: the second epoch is repeated, with its 5 steps.
    assert first["H=4"][:2] == [[0, 8, True], [1, 8 + 2 * kit.STEPS, False]]
    # At the end of the second epoch.
    assert first["H=None"][:2] == [[0, 10, True], [2, 10 + kit.STEPS, False]]
    said = capfd.readouterr().out
    assert said.count("Rank 1 received SIGTERM. All ranks will stop and save a checkpoint.") == 2
    assert "Rank 0 has received" not in said


def _preempted_at_random(cluster, folder):
    """SIGTERM on one rank or the other at any moment of a run, several times over."""
    import threading

    import tf_gossip_pga as pga

    signal.signal(signal.SIGTERM, lambda number, frame: None)  # those that come after fit
    random = np.random.default_rng(0)
    model, ends = kit.a_model(cluster.rank), []
    for attempt in range(6):
        gossip = kit.a_gossip(4, overlap=attempt % 2 == 1)
        checkpoint = pga.Checkpoint(gossip, f"{folder}/{attempt}", every=2)
        victim, step = random.integers(2), random.integers(50)
        timer = threading.Timer(random.uniform(0, 0.02), kit.terminate)

        def soon(batch, logs=None, gossip=gossip, timer=timer, when=(victim, step)):
            if (cluster.rank, gossip.step) == when:
                timer.start()

        x, y = kit.data(cluster.rank)
        model.fit(
            *(x, y),
            batch_size=kit.BATCH,
            epochs=12,
            validation_data=(x, y),
            callbacks=[kit.a_callback(on_train_batch_begin=soon), gossip, checkpoint],
            verbose=0,
        )
        timer.cancel()
        resumed = pga.Checkpoint(kit.a_gossip(4, overlap=attempt % 2 == 1), f"{folder}/{attempt}")
        ends.append([gossip.step, checkpoint.preempted, resumed.restore(model)])
    return ends


@pytest.mark.slow
def test_sigterm_at_any_moment_stops_all_at_one_step_with_a_checkpoint(tmp_path):
    first, second = workers.run(_preempted_at_random, 2, folder=str(tmp_path))
    assert first == second
    for step, preempted, epoch in first:
        # At a global average or at the end of an epoch; an interrupted epoch is repeated.
        assert step % 4 == 0 or step % kit.STEPS == 0
        assert epoch == step // kit.STEPS
        assert preempted or step == 12 * kit.STEPS
    assert sum(preempted for _, preempted, _ in first) > 2


def test_sigterm_stops_a_single_worker_at_once(tmp_path):
    (alone,) = workers.run(_preempted, 1, folder=str(tmp_path))
    for name in ("H=4", "H=None"):
        assert alone[name][:2] == [[0, 7, True], [1, 7 + 2 * kit.STEPS, False]]


# ---- Damaged and foreign checkpoints ------------------------------------------------------------


def _odd_ranks(cluster, folder):
    """What happens where the second rank, or its disk, differs."""
    import keras

    import tf_gossip_pga as pga

    def fit(name, *more, **arguments):
        model, gossip = kit.a_model(cluster.rank), kit.a_gossip()
        checkpoint = pga.Checkpoint(gossip, f"{folder}/{name}")
        callbacks = [gossip, *([] if arguments.get("without") else [checkpoint]), *more]
        if arguments.get("restore"):
            arguments["initial_epoch"] = checkpoint.restore(model)
        if arguments.get("full") and cluster.rank == 1:
            checkpoint._files.write = full
        more = {name: arguments[name] for name in ("initial_epoch",) if name in arguments}
        model.fit(
            *kit.data(cluster.rank),
            batch_size=kit.BATCH,
            epochs=2,
            callbacks=callbacks,
            verbose=0,
            **more,
        )
        return kit.digests(model)

    def full(*_):
        raise OSError(28, "No space left on device")

    odd = cluster.rank == 1
    found = {}

    # Keras' own callbacks next to ours: after a Checkpoint all ranks have the averaged model.
    kept = keras.callbacks.ModelCheckpoint(f"{folder}/kept.weights.h5", save_weights_only=True)
    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup/{cluster.rank}")
    digests = fit("saved", *([] if odd else [kept]), backup)
    if not odd:
        model = kit.a_model(0)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(f"{folder}/kept.weights.h5")
        names = [name for name in digests if "dense" in name or "normalization" in name]
        own = list(kit.digests(model).values())
        found["kept"] = [[digests[name], own[int(name.split()[0])]] for name in names]

    # Keras' own on one rank alone: it would resume, and the others not.
    lone = [] if odd else [keras.callbacks.BackupAndRestore(f"{folder}/lone")]
    try:
        fit("lone", *lone)
    except ValueError as error:
        found["only one backs up"] = str(error)

    fit("full", full=True)
    if odd:
        path = pathlib.Path(folder, "saved", "checkpoint-000002", "rank-1.npz")
        path.write_bytes(path.read_bytes()[:-1])
    checkpoint = pga.Checkpoint(kit.a_gossip(), f"{folder}/saved")
    found["damaged"] = checkpoint.restore(kit.a_model(0))
    for name, arguments in {
        "only one restores": {"restore": not odd},
        "only one saves": {"without": odd},
    }.items():
        try:
            found[name] = fit(name, **arguments)
        except (ValueError, RuntimeError) as error:
            found[name] = str(error)
    return found


def test_ranks_that_differ_are_told_apart(tmp_path, capfd):
    first, second = workers.run(_odd_ranks, 2, folder=str(tmp_path))
    said = capfd.readouterr().out
    for saved, loaded in first["kept"]:
        assert saved == loaded
    assert said.count("Training continues. Rank 1: [Errno 28] No space left on device.") == 2
    assert first["damaged"] == second["damaged"] == 1
    assert re.search(r"Skipped a checkpoint\. Rank 1: .*rank-1.npz is damaged: ", said)
    assert "Rank 1 cannot restore a checkpoint: it has called fit" in first["only one restores"]
    assert "Rank 0 cannot start training: it has called checkp" in second["only one restores"]
    assert first["only one backs up"] == second["only one backs up"]
    assert "rank 1 has no BackupAndRestore" in first["only one backs up"]
    assert first["only one saves"] == second["only one saves"]
    assert "rank 0 is at the claim of the checkpoint directory" in first["only one saves"]
