"""Bad input across processes: the same clear error on every rank, and nobody hangs."""

import contextlib
import re
from unittest import mock

import numpy as np
import pytest

from tests.support import nursery, workers

pytestmark = pytest.mark.multiprocess


def _pga():
    import tf_gossip_pga as pga

    return pga


# ---- One process --------------------------------------------------------------------------------


def _model(**compile_arguments):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **compile_arguments)
    return model


DATA = (np.ones((8, 4), np.float32), np.ones((8, 1), np.float32))


@pytest.mark.parametrize("index", [0, 1])  # rank 1 must not wait for rank 0, which is not there
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import tensorflow as tf; tf.constant(1)\nimport tf_gossip_pga\n"
            "tf_gossip_pga.initialize()",
            r"initialize\(\) was called too late.*<string>:3 to the top",
        ),
        (
            "import tf_gossip_pga\ntf_gossip_pga.GossipPGA()",
            r"is one of 2 workers \(found by TF_CONFIG\), but it is not connected.*initialize\(\)",
        ),
        (
            "import tf_gossip_pga, os\nos.environ['TF_CONFIG'] = '{'\ntf_gossip_pga.initialize()",
            r"TF_CONFIG is not JSON.*received: \{.*example",
        ),
    ],
)
def test_a_process_that_starts_wrongly_says_what_to_change(program, message, index):
    config = (
        '{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]},'
        f' "task": {{"type": "worker", "index": {index}}}}}'
    )
    run = nursery.run(["-c", program], TF_CONFIG=config)
    assert run.returncode == 1
    assert re.search(message, run.stderr, re.DOTALL), run.stderr


# ---- Two processes that do not fit together -----------------------------------------------------


def _cases():
    """Name -> what rank 1 does differently, as arguments of `_fit_error`."""
    return {
        "H": {"H": 4},
        "adaptive H": {"H": _pga().AdaptivePeriod(initial=3)},
        "optimizer_state": {"optimizer_state": "average"},
        "outer_optimizer": {"outer_optimizer": _pga().Outer()},
        "topology": {"topology": "disconnected"},
        "steps": {"rows": 6},
        "epochs": {"epochs": 2},
        "empty": {"rows": 0},
        "unknown length": {"unknown": True},
        "shape": {"units": 5},
        "layers": {"layers": 2},
        "frozen": {"trainable": False},
        "optimizer": {"optimizer": "adam"},
        "unbuilt": {"built": False},
        "steps_per_execution": {"steps_per_execution": 2},
        "two callbacks": {"callbacks": 2},
        "overlap": {"overlap": True},
        "wire_dtype": {"wire_dtype": "int8"},
        "timeout": {"timeout_s": 60},
        "slots": {"momentum": 0.9},
        "TensorFlow": {"version_of": "tensorflow.__version__"},
        "Keras": {"version_of": "keras.__version__"},
        "this package": {"version_of": "tf_gossip_pga.training.preflight.__version__"},
        "no optimizer": {"optimizer": None},
    }


def _fit_error(
    H=3,  # noqa: N803
    topology="ring",
    rows=8,
    epochs=1,
    unknown=False,
    units=3,
    layers=1,
    trainable=True,
    optimizer="sgd",
    built=True,
    steps_per_execution=1,
    callbacks=1,
    momentum=0.0,
    version_of=None,
    **settings,
) -> str:
    import keras
    import tensorflow as tf

    import tf_gossip_pga as pga

    model = keras.Sequential([keras.Input((4,))] if built else [])
    for _ in range(layers):
        model.add(keras.layers.Dense(units, trainable=trainable))
    model.add(keras.layers.Dense(1, name="last"))
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=momentum)
    model.compile(optimizer, "mse", steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices((np.ones((rows, 4)), np.ones((rows, 1)))).batch(2)
    if unknown:
        data = data.filter(lambda x, y: True)
    gossip = [pga.GossipPGA(H=H, topology=topology, **settings) for _ in range(callbacks)]
    other_version = mock.patch(version_of, "0.0.1") if version_of else contextlib.nullcontext()
    try:
        with other_version:
            model.fit(data, epochs=epochs, callbacks=gossip, shuffle=False, verbose=0)
    except ValueError as error:
        return str(error)
    return "trained"


def _all_cases(cluster):
    errors = {
        name: _fit_error(**(odd if cluster.rank == 1 else {})) for name, odd in _cases().items()
    }
    return {**errors, "none": _fit_error()}


@pytest.fixture(scope="module")
def errors(pools):
    return pools.run(_all_cases, 2)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("H", r"differ in H: rank 0 has 3, rank 1 has 4"),
        ("adaptive H", r"differ in H: rank 0 has 3, rank 1 has AdaptivePeriod\(initial=3, "),
        ("optimizer_state", r"optimizer_state: rank 0 has local, rank 1 has average"),
        ("outer_optimizer", r"outer_optimizer: rank 0 has None, rank 1 has Outer\(learning_rate=0"),
        ("topology", r"differ in topology: rank 0 has ring, 2 ranks.*rank 1 has disconnected"),
        ("steps", r"differ in steps per epoch: rank 0 has 4, rank 1 has 3.*cluster\.shard"),
        ("epochs", r"differ in epochs: rank 0 has 1, rank 1 has 2"),
        (
            "shape",
            r"variable 1 of the model and its optimizer: rank 0 has sequential/dense/kernel "
            r"\[4, 3\] float32 trainable, rank 1 has sequential/dense/kernel \[4, 5\]",
        ),
        ("layers", r"variable 3 of .*rank 0 has .*last/kernel \[3, 1\].*rank 1 has .*dense/kernel"),
        ("frozen", r"variable 1 of .*float32 trainable, rank 1 has .*float32 frozen"),
        ("optimizer", r"differ in the optimizer: rank 0 has SGD, rank 1 has Adam"),
        (
            "slots",
            r"variable \d+ of .*rank 0 has none, rank 1 has sgd/.*_momentum \[4, 3\] float32 opt",
        ),
        ("overlap", r"differ in overlap: rank 0 has False, rank 1 has True"),
        ("wire_dtype", r"differ in wire_dtype: rank 0 has float32, rank 1 has int8"),
        ("timeout", r"differ in timeout_s: rank 0 has 300.0, rank 1 has 60.0"),
        ("TensorFlow", r"differ in the version of TensorFlow: rank 0 has .*, rank 1 has 0\.0\.1\."),
        ("Keras", r"differ in the version of Keras: rank 0 has .*, rank 1 has 0\.0\.1\."),
        ("this package", r"the version of tf_gossip_pga: rank 0 has .*, rank 1 has 0\.0\.1\."),
    ],
)
def test_ranks_that_differ_all_get_the_same_explanation(errors, case, message):
    assert errors[0][case] == errors[1][case]
    assert re.search(message, errors[0][case]), errors[0][case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "dataset of this rank is empty"),
        ("unknown length", "dataset is unknown. Pass steps_per_epoch"),
        ("unbuilt", "is not built, or has no trainable variables"),
        ("steps_per_execution", "must see every batch"),
        ("two callbacks", "two GossipPGA callbacks"),
        ("no optimizer", "compiled without an optimizer"),
    ],
)
def test_a_rank_that_cannot_train_is_named_on_the_others(errors, case, message):
    assert message in errors[1][case]
    assert errors[0][case] == f"Rank 1 cannot start training: {errors[1][case]}"


def test_after_all_these_errors_the_same_processes_still_train(errors):
    assert [rank["none"] for rank in errors] == ["trained", "trained"]


# ---- Ranks that part on the way -----------------------------------------------------------------


def _different_ways(cluster, how):
    import tf_gossip_pga as pga

    x, y = np.ones((8, 4)), np.ones((8, 1))
    more = {}
    odd = cluster.rank == 1
    if how == "validation on one rank" and odd:
        more["validation_data"] = (x, y)
    if how == "resumes one epoch later" and odd:
        more["initial_epoch"] = 1
    try:
        _model().fit(
            x, y, batch_size=2, epochs=2, callbacks=[pga.GossipPGA(H=3)], verbose=0, **more
        )
    except RuntimeError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "validation on one rank",
            "rank 0 is at the end of epoch 1, step 4; "
            "rank 1 is at the validation after step 4, step 4",
        ),
        (
            "resumes one epoch later",
            "replace the backup of rank 1 with a copy of rank 0's",
        ),
    ],
)
def test_ranks_that_part_between_batches_all_say_where_each_is(how, message):
    first, second = workers.run(_different_ways, 2, how=how)
    assert first == second
    assert message in first


def _data_ends_early(cluster):
    import tensorflow as tf

    import tf_gossip_pga as pga

    rows = 8 if cluster.rank == 0 else 4
    data = tf.data.Dataset.from_tensor_slices((np.ones((rows, 4)), np.ones((rows, 1)))).batch(2)
    _model().fit(
        data,
        steps_per_epoch=4,
        validation_data=data,  # which Keras would go through first
        callbacks=[pga.GossipPGA()],
        shuffle=False,
        verbose=0,
    )


def test_a_rank_whose_data_ends_early_says_so_and_ends_all():
    from tf_gossip_pga import launch

    with pytest.raises(launch.LaunchError, match="Rank 1 failed first") as error:
        workers.run(_data_ends_early, 2)
    assert "Rank 1 left epoch 1 after 2 of 4 batches: its dataset ran out of data" in str(
        error.value
    )
