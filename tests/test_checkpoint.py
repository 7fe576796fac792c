"""Checkpoints in real processes: a resumed run is the run that was never interrupted."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import workers

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
        H = pga.AdaptivePeriod(initial=2, warmup_steps=2, maximum=8)  # noqa: N806
    # Of two ranks a gossip makes both equal, with these weights it does not.
    uneven = pga.topology.from_matrix([[0.75, 0.25], [0.25, 0.75]])
    two = pga.initialize().size == 2
    return pga.GossipPGA(H, uneven if two else "ring", **arguments)


def _digests(model) -> dict[str, str]:
    """Of every variable, so that a test that fails says which."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{place} {v.path}": hashlib.sha256(np.asarray(v.value).tobytes()).hexdigest()[:16]
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
