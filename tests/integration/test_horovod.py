"""Scripts of the shape of Horovod's examples run on two workers, with only the import changed."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.support import deadlines

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]  # the API: tests/unit/test_horovod.py

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = pathlib.Path(__file__).parent / "horovod_scripts"
WORKERS = 2
IMPORT = re.compile(r"^import horovod\.(tensorflow\.)?keras as hvd$", re.MULTILINE)


def _run(name: str, folder: pathlib.Path, *arguments: str) -> str:
    """Run a script in a folder after changing its import, and return what it printed."""
    text = (SCRIPTS / f"{name}.py").read_text()
    text, changed = IMPORT.subn("import tf_gossip_pga.horovod as hvd", text)
    assert changed == 1
    assert "horovod" not in re.sub(r'"""[^"]*"""|import tf_gossip_pga\.horovod', "", text)
    (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "tf_gossip_pga.launch", f"--workers={WORKERS}"]
    done = subprocess.run(
        [*command, f"{name}.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _arrays(file: pathlib.Path) -> list[np.ndarray]:
    with np.load(file) as arrays:
        return [arrays[name] for name in arrays]


def _check_replicas(folder: pathlib.Path):
    first, *others = [_arrays(folder / f"weights-{rank}.npz") for rank in range(WORKERS)]
    assert first
    for other in others:
        for weight, same in zip(first, other, strict=True):
            assert np.all(np.isfinite(weight))
            np.testing.assert_array_equal(weight, same)


def test_keras_mnist(tmp_path):
    said = _run("basic", tmp_path)
    _check_replicas(tmp_path)
    assert "With Adadelta the result is not the same." in said
    assert sorted(each.name for each in tmp_path.glob("*.keras")) == [
        "checkpoint-1.keras",
        "checkpoint-2.keras",
    ]


def test_keras_mnist_advanced(tmp_path):
    said = _run("advanced", tmp_path)
    _check_replicas(tmp_path)
    assert "With SGD the result is the same." in said
    assert "after the warm-up" in said
    logs = [np.load(tmp_path / f"logs-{rank}.npz") for rank in range(WORKERS)]
    np.testing.assert_array_equal(logs[0]["loss"], logs[1]["loss"])  # means over ranks
    np.testing.assert_allclose(logs[0]["lr"], [0.03, 0.04, 0.04, 0.04], rtol=1e-6)


def test_tensorflow2_keras_mnist(tmp_path):
    said = _run("tf_data", tmp_path)
    _check_replicas(tmp_path)
    assert said.count("With Adam the steps are shorter: multiply the learning rate by sqrt(2)") == 1


def test_keras_imagenet_resnet50(tmp_path):
    _run("resuming", tmp_path, "--epochs=2")
    _check_replicas(tmp_path)
    said = _run("resuming", tmp_path, "--epochs=4", "--fp16-allreduce")
    _check_replicas(tmp_path)
    assert "Epoch 3/4" in said and "Epoch 2/4" not in said
    assert "Compression.fp16 has no effect." in said
    logs = [np.load(tmp_path / f"logs-{rank}.npz") for rank in range(WORKERS)]
    np.testing.assert_array_equal(logs[0]["score"], logs[1]["score"])
    np.testing.assert_allclose(logs[0]["lr"], [0.0025, 0.00025], rtol=1e-6)


def test_synthetic_benchmark(tmp_path):
    said = _run("benchmark", tmp_path, "--fp16-allreduce", "--no-cuda")
    _check_replicas(tmp_path)
    assert re.search(r"Total img/sec on 2 CPU\(s\): \d", said)


def test_values_and_weights_of_synchronous_sgd(tmp_path):
    _run("values", tmp_path)
    _check_replicas(tmp_path)
    found = _arrays(tmp_path / "weights-0.npz")
    different = _arrays(tmp_path / "initial-1.npz")
    for weight, expected in zip(found, _sgd(_arrays(tmp_path / "initial-0.npz")), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-5)
    assert not np.allclose(different[0], _arrays(tmp_path / "initial-0.npz")[0])


def _sgd(initial: list[np.ndarray]) -> list[np.ndarray]:
    """Return the weights of one process that trains on the batches of both workers together.

    It is softmax regression on 640 digits in order: 3 epochs of 10 batches, of 64 digits each.
    """
    x, labels = load_digits(return_X_y=True)
    x, targets = x[:640] / 16, np.eye(10)[labels[:640]]
    w, b = (each.astype(np.float64) for each in initial)
    of_w, of_b = np.zeros_like(w), np.zeros_like(b)  # momentum
    for _ in range(3):
        for first in range(0, 640, 64):
            inputs, truth = x[first : first + 64], targets[first : first + 64]
            scores = np.exp(inputs @ w + b)
            errors = (scores / scores.sum(1, keepdims=True) - truth) / 64
            of_w = 0.9 * of_w - 0.2 * inputs.T @ errors
            of_b = 0.9 * of_b - 0.2 * errors.sum(0)
            w, b = w + of_w, b + of_b
    return [w, b]
