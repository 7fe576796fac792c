"""Which devices a worker's strategy uses, without processes."""

import collections

import pytest


def _model(rank: int, optimizer="adam", norm=None, **arguments):
    import keras

    keras.utils.set_random_seed(rank)
    layers = [keras.Input((4,)), keras.layers.Dense(3, "tanh"), norm, keras.layers.Dense(1)]
    model = keras.Sequential([layer for layer in layers if layer is not None])
    model.compile(optimizer, "mse", **arguments)
    return model


# ---- Which devices, without processes -----------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "cpus", "devices", "summing"),
    [
        ([], [None], None, None),
        ([], [[None]], None, None),
        ([None], [None], None, None),
        ([None], [[None, None]], None, None),
        ([], [[None, None]], ["CPU:0", "CPU:1"], "ReductionToOneDevice"),
        ([None, None], [None], ["GPU:0", "GPU:1"], "NcclAllReduce"),
        ([[None, None]], [None], ["GPU:0", "GPU:1"], "ReductionToOneDevice"),
        ([[None], [None, None]], [None], ["GPU:0", "GPU:1", "GPU:2"], "ReductionToOneDevice"),
    ],
)
def test_the_strategy_follows_the_devices(monkeypatch, gpus, cpus, devices, summing):
    """`gpus` and `cpus`: each physical device's logical ones, None where nobody has split it."""
    import tensorflow as tf

    from tf_gossip_pga.cluster.devices import local_strategy

    machine = {"GPU": gpus, "CPU": cpus}
    monkeypatch.setattr(
        tf.config,
        "get_visible_devices",
        lambda kind: [(kind, index) for index, _ in enumerate(machine[kind])],
    )
    monkeypatch.setattr(
        tf.config,
        "get_logical_device_configuration",
        lambda device: machine[device[0]][device[1]],
    )
    monkeypatch.setattr(
        tf.distribute, "MirroredStrategy", lambda devices, ops: (devices, type(ops).__name__)
    )
    expected = (devices, summing) if devices else tf.distribute.get_strategy()
    assert local_strategy() == expected


def test_the_memory_of_gpus_grows_except_of_those_that_the_script_has_split(monkeypatch):
    import tensorflow as tf

    from tf_gossip_pga.cluster.devices import grow_memory

    split = {"GPU:0": [], "GPU:1": [None, None], "GPU:2": None}
    grown = []

    def grow(device, enable):
        assert enable and not split[device]  # as TensorFlow, which raises ValueError
        grown.append(device)

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: list(split))
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", split.get)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    grow_memory()
    assert grown == ["GPU:0", "GPU:2"]


@pytest.mark.parametrize("synchronized", [False, True])
def test_a_step_on_several_gpus_has_no_collective_that_other_workers_would_see(synchronized):
    """The graph alone: it is built where there are no GPUs, and never run."""
    import keras
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["GPU:0", "GPU:1"], tf.distribute.NcclAllReduce())
    with strategy.scope():
        model = _model(0, "sgd", keras.layers.BatchNormalization(synchronized=synchronized))
        model.optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step(x):
        return strategy.run(lambda x: model.train_step((x, x[:, :1])), args=(tf.identity(x),))

    graph = step.get_concrete_function(tf.TensorSpec([4, 4])).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    kinds = collections.Counter(node.op for node in nodes)
    assert kinds["NcclAllReduce"] >= 2
    assert not [kind for kind in kinds if "Collective" in kind]
