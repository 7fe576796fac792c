"""train.py with its workers: whole runs, and what its flags ask for."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

import train
from job.flags import ALGORITHMS, FLAGS
from job.spec import find_job
from models import inputs, recipes
from tests.support import deadlines, nursery, workers
from tests.support.fields import FIELDS
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess

TRAIN = pathlib.Path(train.__file__)


def _run(*arguments) -> subprocess.CompletedProcess:
    """`python train.py` as a user calls it; asked to stop, with its workers, when time is up."""
    command = [sys.executable, str(TRAIN), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=deadlines.long())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate()
            pytest.fail(f"{command} had not ended in time:\n{out}\n{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _train(*flags) -> str:
    """What `train.py` prints with these flags on two workers, which `TF_CONFIG` names."""
    output = []
    deadline_s = deadlines.long()
    with nursery.forks():
        launch.launch(
            [sys.executable, str(TRAIN), *flags], 2, deadline_s=deadline_s, write=output.append
        )
    return "".join(output)


def test_a_whole_run_reports_what_it_did(tmp_path):
    output = tmp_path / "new" / "output"
    flags = ["--workers=2", "--epochs=2", "--steps_per_epoch=4", "--H=4", "--batch_size=16"]
    flags += ["--label_smoothing=0.1"]  # the reported loss has none, as _check_model's
    ended = _run(*flags, f"--output_dir={output}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    files = {"results.json", "curves.png", "report.html", "model.keras"}
    assert {path.name for path in output.iterdir()} == files
    page = (output / "report.html").read_text()
    assert "Training finished after 2 epochs." in page
    assert "val_accuracy" in page

    written = json.loads((output / "results.json").read_text())
    assert set(written) == FIELDS
    _check_counts(written)
    _check_model(output / "model.keras", inputs.find("digits"), written)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"validation accuracy  {written['val_accuracy']:.4f}" in ended.stdout


@pytest.mark.slow  # checkpoints: test_checkpoint
def test_a_run_resumes_from_its_checkpoints(tmp_path):
    flags = ["--model=mlp", "--steps_per_epoch=4", "--checkpoint_every=1"]
    flags += [f"--output_dir={tmp_path}", "--resume"]
    for epochs in (1, 3):
        said = _train(*flags, f"--epochs={epochs}")
    assert f"Resuming from {tmp_path}/checkpoints/checkpoint-000001, after step 4." in said
    assert " s for 8 steps" in said
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["epochs"], written["steps"]) == (3, 12)
    assert len(written["history"]["loss"]) == 2
    with pytest.raises(
        launch.LaunchError, match=r"of epoch 3, and --epochs=3 has no epoch after it\. Give"
    ):
        _train(*flags, "--epochs=3")


def _check_counts(written: dict):
    assert written["workers"] == written["epochs"] == 2
    # 2 epochs of 4 steps; steps 4 and 8 average globally.
    assert (written["steps"], written["gossip_steps"], written["global_steps"]) == (8, 6, 2)
    # As for 32 x 32 x 3 images (test_models.py), less 9 * 2 * 16 weights for two missing colors.
    assert written["parameters"] == 269_434
    # A gossip sends all parameters once; so does, in a ring of two, a global average, along with
    # 1 376 moving statistics and the 7 + 2 * 3 numbers that ranks tell: steps 4 and 8 and the end.
    # Rank 0 alone broadcasts all at the start, with the momentum, the rate and the count of steps:
    # half of that a worker.
    start = 4 * (2 * 269_434 + 1_376 + 2)
    assert written["bytes_sent_per_worker"] == 4 * (9 * 269_434 + 3 * 1_389) + start / 2
    # The last step was a global one: what counts is the distance before it.
    assert written["consensus_distance"] > 0
    parts = written["compute_seconds"], written["communication_seconds"]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(written["seconds"])
    assert {"loss", "val_loss", "val_accuracy", "consensus_distance"} <= set(written["history"])
    assert {len(values) for values in written["history"].values()} == {2}


def _check_model(path: pathlib.Path, data: inputs.Data, written: dict):
    import keras

    model = keras.models.load_model(path, compile=False)
    model.compile(loss=written_loss(data), weighted_metrics=["accuracy"])
    val_loss, val_accuracy = model.evaluate(data.validation(0, 1, 100), verbose=0)
    assert val_accuracy == pytest.approx(written["val_accuracy"], abs=1e-6)
    # Batches of another size, of which Keras takes the mean: exact for images alone.
    assert val_loss == pytest.approx(written["val_loss"], rel=1e-4)


def written_loss(data: inputs.Data):
    """The loss that train.py validates with."""
    return recipes.loss(recipes.RECIPES["resnet20"], data.kind)


@pytest.mark.slow
def test_a_masked_language_model_trains_and_can_be_trained_on(tmp_path):
    flags = ["--model=bert_tiny", "--epochs=2", "--steps_per_epoch=3"]
    flags += ["--batch_size=8", f"--data_dir={tmp_path}"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert inputs.find("python_docs", data_dir=str(tmp_path)).vocabulary  # made once, for both
    said = _train(*flags, f"--output_dir={first}")
    written = json.loads((first / "results.json").read_text())
    data = inputs.find("python_docs", vocabulary=str(first / "vocabulary.txt"))
    _check_model(first / "model.keras", data, written)
    assert written["unigram_cross_entropy"] == data.unigram_cross_entropy()
    assert f"unigram              {data.unigram_cross_entropy():.4f} nats" in said

    initial = f"--initial_model={first / 'model.keras'}"
    _train(*flags, initial, f"--output_dir={second}")
    resumed = json.loads((second / "results.json").read_text())
    assert resumed["history"]["loss"][0] < written["history"]["loss"][0] - 0.5


def _every_algorithm(cluster, folder):
    """What train.py's worker does, for one algorithm after the other."""
    for algorithm in ALGORITHMS:
        arguments = [
            "--model=mlp",
            "--epochs=2",
            "--steps_per_epoch=10",
            f"--algorithm={algorithm}",
        ]
        FLAGS(["train.py", *arguments, f"--output_dir={folder}/{algorithm}"])
        pathlib.Path(folder, algorithm).mkdir(exist_ok=True)
        train.worker()


@pytest.mark.slow
def test_every_algorithm_fills_every_field(pools, tmp_path):
    pools.run(_every_algorithm, 4, folder=str(tmp_path))
    everything = {}
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        assert {path.name for path in folder.iterdir()} >= {"curves.png", "model.keras"}
        everything[algorithm] = json.loads((folder / "results.json").read_text())
    steps = {name: each["global_steps"] for name, each in everything.items()}
    # H=6, H=6 and H=1 in 20 steps. AGA averages at 4, warming up to 2: from then on it adapts.
    assert (steps["pga"], steps["local"], steps["parallel"], steps["gossip"]) == (3, 3, 20, 0)
    assert 1 < steps["aga"] <= 5
    assert [everything[name]["H"] for name in ALGORITHMS] == [6, 4, "auto", None, 6, 1]
    assert len(everything["aga"]["history"]["H"]) == 2
    assert len({each["seconds"] for each in everything.values()}) == len(ALGORITHMS)
    # While auto warms up, it trains exactly as pga.
    for name in ("train_loss", "val_loss", "consensus_distance"):
        assert len({everything[each][name] for each in ALGORITHMS if each != "auto"}) == 5, name
    for each in everything.values():
        assert set(each) == FIELDS
        assert each["gossip_steps"] + each["global_steps"] == each["steps"] == 20
        assert each["parameters"] == 8 * 8 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
        assert {name for name, value in each.items() if value is None} == {
            *(["H"] if each["algorithm"] == "gossip" else []),
            *(["gossip_every"] if each["algorithm"] == "auto" else []),
            *("outer_optimizer", "unigram_cross_entropy"),
        }
    sent = {name: each["bytes_sent_per_worker"] for name, each in everything.items()}
    # A gossip is half an exchange of all, a local step none.
    assert sent["local"] < sent["gossip"] < sent["pga"] < sent["parallel"]


def _arguments(cluster, folder):
    """What a run with many flags asks of data, optimizer and callback, on this rank."""
    asked = {}

    def recorded(owner, name, keep):
        function = getattr(owner, name)

        def wrapper(*args):
            asked[name] = keep(args)
            return function(*args)

        setattr(owner, name, wrapper)

    recorded(inputs.Data, "training", lambda args: args[1:])
    recorded(inputs.Data, "validation", lambda args: args[1:])
    recorded(recipes, "optimizer", lambda args: args[2:])
    flags = ["--model=mlp", "--epochs=2", "--steps_per_epoch=3", "--classes_per_worker=3"]
    flags += ["--augment", "--batch_size=8", "--optimizer_state=average", "--algorithm=aga"]
    flags += ["--outer_learning_rate=0.5", "--outer_momentum=0.25", "--noouter_nesterov"]
    flags += ["--H=100", "--precision=mixed_bfloat16", "--overlap", "--wire_dtype=int8"]
    FLAGS(["train.py", *flags, f"--output_dir={folder}"])
    job = find_job(cluster.size)
    gossip = train.gossip_callback(job)
    run = train.train(cluster, job, [gossip])
    asked["state"] = [gossip.run.settings.optimizer_state, str(gossip.run.schedule)]
    asked["outer"] = str(gossip.run.settings.outer_optimizer)
    asked["exchange"] = [gossip._settings.overlap, gossip._settings.wire_dtype]
    asked["precision"] = run.model.layers[-2].compute_dtype
    try:
        train.check_vocabularies(cluster, _text_with(["a", "b"]))
        train.check_vocabularies(cluster, _text_with(["a", str(cluster.rank)]))
    except ValueError as error:
        asked["error"] = str(error)
    return {**asked, "epochs": len(run.history["val_loss"])}


def _text_with(vocabulary: list[str]) -> inputs.Text:
    """A data set of text of which only the tokens are known."""
    return inputs.Text("it", None, types.SimpleNamespace(kind="text", vocabulary=vocabulary))


def test_the_flags_reach_data_optimizer_and_callback(tmp_path):
    ranks = workers.run(_arguments, 2, folder=str(tmp_path))
    for rank, asked in enumerate(ranks):
        assert asked["training"] == [rank, 2, 8, 3, True]
        assert asked["validation"] == [rank, 2, 8]
        assert asked["optimizer"] == [6, 16, 2]  # steps, global batch, workers
        assert asked["state"][0] == "average"
        # Longer than AdaptivePeriod's own longest of 64.
        assert "initial=100, warmup_steps=2, exponent=1.0, maximum=100" in asked["state"][1]
        assert asked["precision"] == "bfloat16"
        assert asked["exchange"] == [True, "int8"]
        assert asked["outer"] == "Outer(learning_rate=0.5, momentum=0.25, nesterov=False)"
        assert asked["error"].startswith("The vocabulary of rank 1 differs from rank 0's")
        assert asked["epochs"] == 2
