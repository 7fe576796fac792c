"""train.py from outside: bad flags, and one whole run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import types
import zipfile

import pytest

import train
from job import figure, report
from job.flags import ALGORITHMS, FLAGS
from job.spec import find_job
from models import inputs, recipes
from tests.support import workers

TRAIN = pathlib.Path(train.__file__)

FIELDS = {
    *("algorithm", "model", "dataset", "H", "topology", "workers", "epochs", "steps"),
    *("gossip_steps", "global_steps", "parameters", "train_loss", "val_loss", "val_accuracy"),
    *("seconds", "compute_seconds", "communication_seconds", "bytes_sent_per_worker"),
    *("consensus_distance", "history", "optimizer_state", "unigram_cross_entropy"),
    *("overlap", "wire_dtype"),
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
        ("--algorithm=pgaa", "value should be one of <pga|aga|gossip|local|parallel>"),
        ("--resume", "--resume goes on writing checkpoints. Give --checkpoint_every=1 too"),
        ("--algorithm=gossip --H=4", "--algorithm=gossip has no H, received --H=4"),
        (
            "--algorithm=gossip --optimizer_state=reset",
            "--algorithm=gossip has optimizer_state=local, received --optimizer_state=reset",
        ),
        (
            "--algorithm=local --overlap",
            "--algorithm=local has no overlap, received --overlap=True",
        ),
        (
            "--algorithm=parallel --wire_dtype=int8",
            "--algorithm=parallel has wire_dtype=float32, received --wire_dtype=int8",
        ),
        ("--wire_dtype=int4", "value should be one of <float32|bfloat16|int8>"),
        ("--algorithm=parallel --H=4", "--algorithm=parallel has H=1, received --H=4"),
        (
            "--algorithm=local --topology=ring",
            "--algorithm=local has topology=disconnected, received --topology=ring",
        ),
        ("--topology=rings", "Unknown topology 'rings'. Known names: complete, "),
        ("--topology=hypercube --workers=3", "hypercube needs a power of two of ranks"),
        ("--batch_size=360", "359 of the 1437 training examples of digits, with 4 workers"),
        ("--workers=1500 --topology=ring", "1500 workers, more than the 1437 training examples"),
        ("--workers=361 --topology=ring", "361 workers, more than the 360 validation examples"),
        ("--classes_per_worker=5 --batch_size=361", "than a worker has: 357 of the 1437"),
        (
            "--classes_per_worker=2",
            "--classes_per_worker=2 with 4 workers leaves classes that nobody trains on: digits",
        ),
        ("--classes_per_worker=11", "classes_per_worker must be from 1 to 10"),
        ("--learning_rate=0", "--learning_rate=0.0: must be a finite number > 0"),
        ("--epochs=0", "--epochs=0: must be an integer > 0"),
        ("--warmup=1", "--warmup=1.0: must be a share of all steps"),
        ("--optimizer=adam", "value should be one of <sgd|adamw|lamb>"),
        ("--optimizer_state=mean", "value should be one of <local|average|reset>"),
        ("--model=resnet19", "Unknown model 'resnet19'. Known models: "),
        ("--dataset=digit", "Unknown dataset 'digit'. Close: digits"),
        (
            "--dataset=python_docs",
            "--model=resnet20 is for images, but --dataset=python_docs holds",
        ),
        ("--model=bert_tiny --dataset=digits", "one of the models mlp, resnet20, resnet50."),
        ("--vocabulary=here.txt", "digits has images, received vocabulary='here.txt'"),
        ("--model=bert_tiny --vocabulary=/no/file", "vocabulary /no/file cannot be read (No such"),
        ("--model=bert_tiny --sequence_length=4", "sequence_length must be from 8 to 512 tokens"),
        ("--model=bert_tiny --augment", "--augment is for images"),
        ("--initial_model=README.md", "--initial_model=README.md is not a Keras model"),
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


@pytest.mark.parametrize("program", ["train.py", "benchmarks/compare.py"])
def test_help_lists_the_flags(program, without_tensorflow):
    ended = subprocess.run(
        [sys.executable, str(TRAIN.parent / program), "--help"],
        env={**os.environ, **without_tensorflow},
        capture_output=True,
        text=True,
        timeout=60,
    )
    for flag in ("--topology", "--classes_per_worker", "--learning_rate", "--precision"):
        assert flag in ended.stdout


def test_a_run_that_diverged_says_so(tmp_path):
    nan = float("nan")
    run = dict.fromkeys(FIELDS, nan)
    run |= {"algorithm": "pga", "model": "mlp", "dataset": "digits", "topology": "ring", "H": 6}
    run |= {"workers": 2, "epochs": 1, "steps": 3, "gossip_steps": 3, "global_steps": 0}
    run |= {"overlap": False, "wire_dtype": "float32"}
    run |= {"unigram_cross_entropy": None, "seconds": 1.0, "communication_seconds": 0.5}
    run["history"] = {"loss": [nan], "val_loss": [nan], "val_accuracy": [0.1]}
    assert "diverged             the loss is no longer a number" in report.table(run)
    figure.draw(tmp_path / "curves.png", "it", run, [(3, nan)])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        report.write(path, fail)
    assert path.read_text() == "old"


@pytest.mark.multiprocess
def test_a_whole_run_reports_what_it_did(tmp_path):
    output = tmp_path / "new" / "output"
    flags = ["--workers=2", "--epochs=2", "--steps_per_epoch=4", "--H=4", "--batch_size=16"]
    flags += ["--label_smoothing=0.1"]  # the reported loss has none, as _check_model's
    ended = _run(*flags, f"--output_dir={output}", timeout_s=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.name for path in output.iterdir()} == {"results.json", "curves.png", "model.keras"}

    written = json.loads((output / "results.json").read_text())
    assert set(written) == FIELDS
    _check_counts(written)
    _check_model(output / "model.keras", inputs.find("digits"), written)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"validation accuracy  {written['val_accuracy']:.4f}" in ended.stdout


@pytest.mark.multiprocess
def test_a_run_resumes_from_its_checkpoints(tmp_path):
    flags = ["--model=mlp", "--workers=2", "--steps_per_epoch=4", "--checkpoint_every=1"]
    flags += [f"--output_dir={tmp_path}"]
    for epochs in (1, 3):
        ended = _run(*flags, f"--epochs={epochs}", "--resume", timeout_s=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Goes on from {tmp_path}/checkpoints/checkpoint-000001, after step 4." in ended.stdout
    assert " s for 8 steps" in ended.stdout
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["epochs"], written["steps"]) == (3, 12)
    assert len(written["history"]["loss"]) == 2
    ended = _run(*flags, "--epochs=3", "--resume", timeout_s=300)
    assert "The checkpoint is of epoch 3: nothing is left of --epochs=3. Give more" in ended.stderr


def _check_counts(written: dict):
    assert written["workers"] == written["epochs"] == 2
    # 2 epochs of 4 steps; steps 4 and 8 average globally.
    assert (written["steps"], written["gossip_steps"], written["global_steps"]) == (8, 6, 2)
    # As for 32 x 32 x 3 images (test_models.py), less 9 * 2 * 16 weights for two missing colours.
    assert written["parameters"] == 269_434
    # A gossip sends all parameters once; so does, in a ring of two, a global average, along with
    # 1 376 moving statistics and the vote to stop: steps 4 and 8 and the end. Rank 0 alone
    # broadcasts all at the start, with the momentum, the rate and the count of steps: half of that
    # a worker.
    start = 4 * (2 * 269_434 + 1_377 + 2)
    assert written["bytes_sent_per_worker"] == 4 * (9 * 269_434 + 3 * 1_377) + start / 2
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


@pytest.mark.multiprocess
def test_a_masked_language_model_trains_and_can_be_trained_on(tmp_path):
    flags = ["--model=bert_tiny", "--workers=2", "--epochs=2", "--steps_per_epoch=3"]
    flags += ["--batch_size=8", f"--data_dir={tmp_path}"]
    first, second = tmp_path / "first", tmp_path / "second"
    ended = _run(*flags, f"--output_dir={first}", timeout_s=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    written = json.loads((first / "results.json").read_text())
    data = inputs.find("python_docs", vocabulary=str(first / "vocabulary.txt"))
    _check_model(first / "model.keras", data, written)
    assert written["unigram_cross_entropy"] == data.unigram_cross_entropy()
    assert f"unigram              {data.unigram_cross_entropy():.4f} nats" in ended.stdout

    initial = f"--initial_model={first / 'model.keras'}"
    ended = _run(*flags, initial, f"--output_dir={second}", timeout_s=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    resumed = json.loads((second / "results.json").read_text())
    assert resumed["history"]["loss"][0] < written["history"]["loss"][0] - 0.5


def test_a_vocabulary_that_is_not_the_models_is_refused(tmp_path, without_tensorflow):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps({"config": {"name": "bert_tiny"}}))
    own, other = tmp_path / "vocabulary.txt", tmp_path / "other.txt"
    own.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    other.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nb\na\n")
    flags = ["--model=bert_tiny", f"--initial_model={tmp_path / 'model.keras'}"]
    ended = _run(*flags, f"--vocabulary={other}", **without_tensorflow)
    assert f"--vocabulary={other} is not the one that --initial_model=" in ended.stderr
    assert f"trained with, {own}. Leave --vocabulary out" in ended.stderr
    assert ended.returncode == 1


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


@pytest.mark.multiprocess
def test_every_algorithm_fills_every_field(tmp_path):
    workers.run(_every_algorithm, 4, folder=str(tmp_path))
    everything = {}
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        assert {path.name for path in folder.iterdir()} >= {"curves.png", "model.keras"}
        everything[algorithm] = json.loads((folder / "results.json").read_text())
    steps = {name: each["global_steps"] for name, each in everything.items()}
    # H=6, H=6 and H=1 in 20 steps. AGA averages at 4, warming up to 2: from then on it adapts.
    assert (steps["pga"], steps["local"], steps["parallel"], steps["gossip"]) == (3, 3, 20, 0)
    assert 1 < steps["aga"] <= 5
    assert [everything[name]["H"] for name in ALGORITHMS] == [6, 4, None, 6, 1]
    assert len(everything["aga"]["history"]["H"]) == 2
    for name in ("train_loss", "val_loss", "consensus_distance", "seconds", "compute_seconds"):
        assert len({each[name] for each in everything.values()}) == 5, name
    for each in everything.values():
        assert set(each) == FIELDS
        assert each["gossip_steps"] + each["global_steps"] == each["steps"] == 20
        assert each["parameters"] == 8 * 8 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
        assert [name for name, value in each.items() if value is None] == (
            ["H"] * (each["algorithm"] == "gossip") + ["unigram_cross_entropy"]
        )
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
    flags += ["--H=100", "--precision=mixed_bfloat16", "--overlap", "--wire_dtype=int8"]
    FLAGS(["train.py", *flags, f"--output_dir={folder}"])
    job = find_job(cluster.size)
    gossip = train.gossip_callback(job)
    run = train.train(cluster, job, [gossip])
    asked["state"] = [gossip._optimizer_state, str(gossip._schedule)]
    asked["exchange"] = [gossip._overlap, gossip._wire_dtype]
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


@pytest.mark.multiprocess
def test_the_flags_reach_data_optimizer_and_callback(tmp_path):
    ranks = workers.run(_arguments, 2, folder=str(tmp_path))
    for rank, asked in enumerate(ranks):
        assert asked["training"] == [rank, 2, 8, 3, True]
        assert asked["validation"] == [rank, 2, 8]
        assert asked["optimizer"] == [6, 16]  # steps, global batch
        assert asked["state"][0] == "average"
        # Longer than AdaptivePeriod's own longest of 64.
        assert "initial=100, warmup_steps=2, exponent=1.0, maximum=100" in asked["state"][1]
        assert asked["precision"] == "bfloat16"
        assert asked["exchange"] == [True, "int8"]
        assert asked["error"].startswith("The vocabulary of rank 1 is not rank 0's")
        assert asked["epochs"] == 2


def _stub(path: pathlib.Path, name: str, **layers):
    """What `check` reads of a saved model."""
    found = [{"name": layer, "config": config} for layer, config in layers.items()]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps({"config": {"name": name, "layers": found}}))


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ([None, 32, 32, 3], 10, "has input_shape=[32, 32, 3], but digits needs (8, 8, 1)"),
        ([None, 8, 8, 1], 100, "has classes=100, but digits needs 10"),
    ],
)
def test_a_model_of_other_data_is_no_start(shape, classes, message, tmp_path, without_tensorflow):
    path = tmp_path / "model.keras"
    _stub(path, "mlp", images={"batch_shape": shape}, logits={"units": classes})
    ended = _run("--model=mlp", f"--initial_model={path}", **without_tensorflow)
    assert f"--initial_model={path} {message}" in ended.stderr


def test_a_model_of_more_tokens_than_the_vocabulary_beside_it_is_no_start(
    tmp_path, without_tensorflow
):
    path = tmp_path / "model.keras"
    _stub(path, "bert_tiny", masked_lm_head={"vocabulary_size": 4096})
    (tmp_path / "vocabulary.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    ended = _run("--model=bert_tiny", f"--initial_model={path}", **without_tensorflow)
    assert "has vocabulary_size=4096, but python_docs needs 7" in ended.stderr


def test_a_model_of_another_kind_is_no_start(tmp_path, without_tensorflow):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps({"config": {"name": "bert_tiny"}}))
    initial = f"--initial_model={tmp_path / 'model.keras'}"
    ended = _run(initial, **without_tensorflow)
    assert "model.keras is a bert_tiny, but --model=resnet20." in ended.stderr
    ended = _run(initial, "--model=bert_tiny", **without_tensorflow)
    assert f"beside it, but there is no {tmp_path / 'vocabulary.txt'}" in ended.stderr
