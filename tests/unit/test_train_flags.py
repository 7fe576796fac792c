"""train.py from outside: bad flags are answered before TensorFlow is imported."""

import json
import pathlib
import zipfile

import pytest

import train
from tests.support import nursery

TRAIN = pathlib.Path(train.__file__)


def _run(*arguments, **environment):
    """`python train.py` as a user calls it, where importing TensorFlow or Keras is an error."""
    return nursery.run([TRAIN, *arguments], nursery.LIGHT, **environment)


TWO_WORKERS = json.dumps(
    {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--H=0", "flag --H=0: 0 is not a positive integer"),
        ("--algorithm=pgaa", "value should be one of <pga|aga|auto|gossip|local|parallel>"),
        ("--resume", "--resume requires --checkpoint_every, because"),
        ("--algorithm=gossip --H=4", "--algorithm=gossip has no H, received --H=4"),
        (
            "--algorithm=gossip --optimizer_state=reset",
            "--algorithm=gossip has optimizer_state=local, received --optimizer_state=reset",
        ),
        (
            "--algorithm=gossip --outer_learning_rate=0.7",
            "--algorithm=gossip has no outer_learning_rate, received --outer_learning_rate=0.7",
        ),
        ("--outer_learning_rate=-1", "learning_rate of Outer must be a number > 0, received -1.0"),
        ("--outer_momentum=0.5", "--outer_momentum requires --outer_learning_rate. Give"),
        (
            "--outer_learning_rate=1 --outer_momentum=1",
            "momentum of Outer must be a number >= 0 and < 1, received 1.0",
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
        ("--topology=rings", "Unknown topology 'rings'. Known names: base_2, "),
        ("--topology=hypercube --workers=3", "a number of ranks that is a power of two"),
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
        ("--dataset=digit", "Unknown dataset 'digit'. Similar names: digits"),
        (
            "--dataset=python_docs",
            "--model=resnet20 is for images, but --dataset=python_docs holds",
        ),
        ("--model=bert_tiny --dataset=digits", "one of the models mlp, resnet20, resnet50."),
        ("--vocabulary=here.txt", "received vocabulary='here.txt'"),
        ("--model=bert_tiny --vocabulary=/no/file", "vocabulary /no/file cannot be read (No such"),
        ("--model=bert_tiny --sequence_length=4", "sequence_length must be from 8 to 512 tokens"),
        ("--model=bert_tiny --augment", "--augment is for images"),
        ("--initial_model=README.md", "--initial_model=README.md is not a Keras model"),
        ("--output_dir=/dev/null/here", "--output_dir=/dev/null/here cannot be created (Not a dir"),
        ("epochs=3", "unexpected argument 'epochs=3'"),
    ],
)
def test_bad_flags_are_answered_before_tensorflow_is_imported(arguments, message):
    ended = _run(*arguments.split())
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (ended.returncode, ended.stdout) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (
            "--workers=3",
            TWO_WORKERS,
            "--workers=3, but this process is one of 2 workers (found by TF_CONFIG)",
        ),
        ("--batch_size=719", TWO_WORKERS, "718 of the 1437 training examples"),
        ("", "{", "TF_CONFIG is not JSON"),
    ],
)
def test_flags_are_held_against_tf_config(arguments, config, message):
    ended = _run(*arguments.split(), TF_CONFIG=config)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1


@pytest.mark.parametrize(
    "program", ["train.py", "benchmarks/compare.py", "benchmarks/time_to_loss.py"]
)
def test_help_lists_the_flags(program):
    ended = nursery.run([TRAIN.parent / program, "--help"], nursery.LIGHT)
    for flag in ("--topology", "--classes_per_worker", "--learning_rate", "--precision"):
        assert flag in ended.stdout


def test_a_vocabulary_that_is_not_the_models_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps({"config": {"name": "bert_tiny"}}))
    own, other = tmp_path / "vocabulary.txt", tmp_path / "other.txt"
    own.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    other.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nb\na\n")
    flags = ["--model=bert_tiny", f"--initial_model={tmp_path / 'model.keras'}"]
    ended = _run(*flags, f"--vocabulary={other}")
    assert f"--vocabulary={other} differs from the one that --initial_model=" in ended.stderr
    assert f"trained with, {own}. Leave --vocabulary out" in ended.stderr
    assert ended.returncode == 1


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
def test_a_model_of_other_data_is_no_start(shape, classes, message, tmp_path):
    path = tmp_path / "model.keras"
    _stub(path, "mlp", images={"batch_shape": shape}, logits={"units": classes})
    ended = _run("--model=mlp", f"--initial_model={path}")
    assert f"--initial_model={path} {message}" in ended.stderr


def test_a_model_of_more_tokens_than_the_vocabulary_beside_it_is_no_start(tmp_path):
    path = tmp_path / "model.keras"
    _stub(path, "bert_tiny", masked_lm_head={"vocabulary_size": 4096})
    (tmp_path / "vocabulary.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    ended = _run("--model=bert_tiny", f"--initial_model={path}")
    assert "has vocabulary_size=4096, but python_docs needs 7" in ended.stderr


def test_a_model_of_another_kind_is_no_start(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps({"config": {"name": "bert_tiny"}}))
    initial = f"--initial_model={tmp_path / 'model.keras'}"
    ended = _run(initial)
    assert "model.keras is a bert_tiny, but --model=resnet20." in ended.stderr
    ended = _run(initial, "--model=bert_tiny")
    assert f"trained with, but there is no {tmp_path / 'vocabulary.txt'}" in ended.stderr
