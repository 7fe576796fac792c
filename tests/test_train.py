"""train.py from outside: bad flags, and one whole run."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import train
from models import inputs

TRAIN = pathlib.Path(train.__file__)

FIELDS = {
    *("algorithm", "model", "dataset", "H", "topology", "workers", "epochs", "steps"),
    *("gossip_steps", "global_steps", "parameters", "train_loss", "val_loss", "val_accuracy"),
    *("seconds", "compute_seconds", "communication_seconds", "bytes_sent_per_worker"),
    *("consensus_distance", "history"),
}


def _run(*arguments, timeout_s: float = 60, **environment) -> subprocess.CompletedProcess:
    """`python train.py` as a user calls it; asked to stop, with its workers, when time is up."""
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    command = [sys.executable, str(TRAIN), *arguments]
    with subprocess.Popen(
        command,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate()
            pytest.fail(f"{command} had not ended after {timeout_s} s:\n{out}\n{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def without_tensorflow(tmp_path):
    """An environment in which importing TensorFlow or Keras fails."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text("raise ImportError('must not be imported here')")
    return {"PYTHONPATH": str(folder)}


TWO_WORKERS = json.dumps(
    {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--H=0", "flag --H=0: 0 is not a positive integer"),
        ("--algorithm=pgaa", "value should be one of <pga|gossip|local|parallel>"),
        ("--algorithm=gossip --H=4", "--algorithm=gossip has no H, received --H=4"),
        ("--algorithm=parallel --H=4", "--algorithm=parallel has H=1, received --H=4"),
        (
            "--algorithm=local --topology=ring",
            "--algorithm=local has topology=disconnected, received --topology=ring",
        ),
        ("--topology=rings", "Unknown topology 'rings'. Known names: complete, "),
        ("--topology=hypercube --workers=3", "hypercube needs a power of two of ranks"),
        ("--batch_size=360", "359 of the 1437 training examples of digits, with 4 workers"),
        ("--learning_rate=0", "--learning_rate must be > 0, received 0.0"),
        ("--model=resnet19", "Unknown model 'resnet19'. Known models: "),
        ("--dataset=digit", "Unknown dataset 'digit'. Known datasets: "),
        ("--output_dir=/dev/null/here", "--output_dir=/dev/null/here cannot be made (Not a dir"),
        ("epochs=3", "unexpected argument 'epochs=3'"),
    ],
)
def test_bad_flags_are_answered_before_tensorflow_is_imported(
    arguments, message, without_tensorflow
):
    ended = _run(*arguments.split(), **without_tensorflow)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (ended.returncode, ended.stdout) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ("--workers=3", TWO_WORKERS, "--workers=3, but TF_CONFIG names 2 workers"),
        ("--batch_size=719", TWO_WORKERS, "718 of the 1437 training examples"),
        ("", "{", "TF_CONFIG is not JSON"),
    ],
)
def test_flags_are_held_against_tf_config(arguments, config, message, without_tensorflow):
    ended = _run(*arguments.split(), TF_CONFIG=config, **without_tensorflow)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train.write(path, fail)
    assert path.read_text() == "old"


@pytest.mark.multiprocess
def test_a_whole_run_reports_what_it_did(tmp_path):
    output = tmp_path / "new" / "output"
    flags = ["--workers=2", "--epochs=2", "--steps_per_epoch=4", "--H=4", "--batch_size=16"]
    ended = _run(*flags, f"--output_dir={output}", timeout_s=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.name for path in output.iterdir()} == {"results.json", "curves.png", "model.keras"}

    results = json.loads((output / "results.json").read_text())
    assert set(results) == FIELDS
    _check_counts(results)
    _check_model(output / "model.keras", results)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"validation accuracy  {results['val_accuracy']:.4f}" in ended.stdout


def _check_counts(results: dict):
    assert results["workers"] == results["epochs"] == 2
    # 2 epochs of 4 steps; steps 4 and 8 average globally.
    assert (results["steps"], results["gossip_steps"], results["global_steps"]) == (8, 6, 2)
    # As for 32 x 32 x 3 images (test_models.py), less 9 * 2 * 16 weights for two missing colours.
    assert results["parameters"] == 269_434
    # A gossip sends all parameters once; so does, in a ring of two, a global average, along with
    # 1 376 moving statistics. Rank 0's broadcast and the average at the end come on top.
    assert results["bytes_sent_per_worker"] > 4 * (8 * 269_434 + 2 * 1_376)
    # The last step was a global one: what counts is the distance before it.
    assert results["consensus_distance"] > 0
    parts = results["compute_seconds"], results["communication_seconds"]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(results["seconds"])
    assert {"loss", "val_loss", "val_accuracy", "consensus_distance"} <= set(results["history"])
    assert {len(values) for values in results["history"].values()} == {2}


def _check_model(path: pathlib.Path, results: dict):
    import keras

    model = keras.models.load_model(path)
    _, validation = inputs.find("digits").load()
    val_loss, val_accuracy = model.evaluate(validation.batch(100), verbose=0)
    assert val_accuracy == pytest.approx(results["val_accuracy"], abs=1e-6)
    assert val_loss == pytest.approx(results["val_loss"], rel=1e-4)
