"""Horovod's API with one worker: places, values, arguments, learning rates, missing names."""

import collections
import importlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_gossip_pga as pga
import tf_gossip_pga.horovod as hvd
from tf_gossip_pga.cluster.place import Place
from tf_gossip_pga.horovod import callbacks, collectives, optimizer, processes, values
from tf_gossip_pga.training import driver


@pytest.fixture(autouse=True)
def _initialized():
    hvd.init()
    yield
    hvd.shutdown()


@pytest.fixture
def two_workers(monkeypatch):
    """Let Horovod's API believe that this process is rank 0 of two."""
    monkeypatch.setattr(processes, "_cluster", pga.Cluster(rank=0, size=2))
    monkeypatch.setattr(processes, "workers", lambda: 2)


# ---- Names --------------------------------------------------------------------------------------


def test_names_resolve():
    assert set(dir(hvd)) == set(hvd.__all__) == {"callbacks", *hvd._ROOM_OF}
    for name, room in hvd._ROOM_OF.items():
        module = importlib.import_module(f"tf_gossip_pga.horovod.{room}")
        assert getattr(hvd, name) is getattr(module, name)
    assert hvd.callbacks is callbacks


@pytest.mark.parametrize("name", sorted(hvd._INSTEAD))
def test_what_is_missing_says_what_to_use(name):
    with pytest.raises(AttributeError, match=rf"has no '{name}'\. [A-Z].*\. See docs/guides/from"):
        getattr(hvd, name)
    assert name not in hvd._ROOM_OF


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(
        AttributeError, match=r"module 'tf_gossip_pga\.horovod' has no .* 'nothing'"
    ):
        hvd.nothing  # noqa: B018


# ---- Places -------------------------------------------------------------------------------------


def test_alone():
    assert (hvd.rank(), hvd.size(), hvd.is_initialized()) == (0, 1, True)
    assert (hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size()) == (0, 1, 0, 1)


def test_the_layout_of_uneven_hosts():
    # Hosts:  a  b  a  a  c  b
    hosts = ["a", "b", "a", "a", "c", "b"]
    found = [processes.layout(hosts, rank) for rank in range(6)]
    assert [each.local_rank for each in found] == [0, 0, 1, 2, 0, 1]
    assert [each.local_size for each in found] == [3, 2, 3, 3, 1, 2]
    assert [each.cross_rank for each in found] == [0, 1, 0, 0, 2, 1]
    assert [each.cross_size for each in found] == [3, 3, 2, 1, 3, 2]


def test_the_local_rank_is_known_before_the_workers_are_connected():
    addresses = ("host0:1", "host1:1", "[::1]:2", "[::1]:3", "host0:2")
    for rank, expected in enumerate([0, 0, 0, 1, 1]):
        place = Place(rank, 5, "TF_CONFIG", addresses)
        assert processes.local_rank_before(place, {}) == expected
    place = Place(3, 4, "Open MPI's variables")
    assert processes.local_rank_before(place, {"OMPI_COMM_WORLD_LOCAL_RANK": "2"}) == 2
    assert processes.local_rank_before(place, {"LOCAL_RANK": "1"}) == 1
    assert processes.local_rank_before(place, {}) == 0
    assert processes.local_rank_before(Place(), {"LOCAL_RANK": "1"}) == 0


def test_before_init_everything_raises():
    hvd.shutdown()
    for function in (hvd.rank, hvd.size, hvd.local_rank, hvd.cross_size):
        with pytest.raises(RuntimeError, match=r"Call hvd\.init\(\) at the top of the script"):
            function()
    with pytest.raises(RuntimeError, match=r"Call hvd\.init"):
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    with pytest.raises(RuntimeError, match=r"Call hvd\.init"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(0)


def test_init_accepts_no_subsets():
    with pytest.raises(ValueError, match="neither comm nor process_sets"):
        hvd.init([0, 1])


class FakeGpus:
    """Stands for the functions of `tf.config` on a machine with several GPUs."""

    def __init__(self, count, chosen=None):
        self.gpus = [f"GPU:{index}" for index in range(count)]
        self.visible = chosen or self.gpus
        self.growing = []

    def patch(self, monkeypatch):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: self.gpus)
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        monkeypatch.setattr(
            tf.config, "get_logical_device_configuration", lambda gpu: gpu == "GPU:2"
        )
        monkeypatch.setattr(
            tf.config.experimental, "set_memory_growth", lambda gpu, grows: self.growing.append(gpu)
        )

        def choose(gpu, kind):
            self.visible = [gpu]

        monkeypatch.setattr(tf.config, "set_visible_devices", choose)


def test_init_pins_the_gpu_that_a_script_of_horovod_pins(monkeypatch):
    gpus = FakeGpus(3)
    gpus.patch(monkeypatch)
    processes._pin_gpu(1)
    assert gpus.visible == ["GPU:1"]
    assert gpus.growing == ["GPU:0", "GPU:1"]  # GPU:2 is split into logical devices
    processes._pin_gpu(2)
    assert gpus.visible == ["GPU:1"]  # chosen already


def test_a_worker_that_sees_only_its_own_gpu_uses_it(monkeypatch):
    gpus = FakeGpus(1)
    gpus.patch(monkeypatch)
    processes._pin_gpu(3)
    assert gpus.visible == ["GPU:0"]


# ---- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, "text", b"\x00\xff", [1, [2]], (1, ("a",)), {"a": {1: (2,)}, 3: None}],
)
def test_objects_are_restored(value):
    restored = values.decoded(values.encoded(value))
    assert restored == value and type(restored) is type(value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.bool_, np.complex64])
def test_arrays_are_restored(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    restored = values.decoded(values.encoded([array.T, array[:0]]))
    assert restored[0].dtype == dtype
    np.testing.assert_array_equal(restored[0], array.T)
    assert restored[1].shape == (0, 3)
    restored[0][0] = 0  # writable


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_both_byte_orders_are_restored(order):
    array = np.array([1.5, -2], f"{order}f4")
    assert values.decoded(values.encoded(array)).tolist() == [1.5, -2]


def test_numbers_of_numpy_are_restored():
    value = {np.int64(3): np.float32(1.5)}
    restored = values.decoded(values.encoded(value))
    assert restored == value
    assert [type(each) for each in (*restored, *restored.values())] == [np.int64, np.float32]


def test_bfloat16_is_restored():
    tensor = tf.constant([1.5, -2], tf.bfloat16)
    assert values.decoded(values.encoded(tensor)).tolist() == [1.5, -2]


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match=r"Cannot send a set .* Accepted are numbers, strings"):
        hvd.broadcast_object([{1, 2}])
    with pytest.raises(TypeError, match="Cannot send a Pair to other workers"):
        hvd.broadcast_object(collections.namedtuple("Pair", "a b")(1, 2))
    with pytest.raises(TypeError, match="Expected numbers, received an array of dtype object"):
        hvd.allreduce("text")


def test_values_of_one_worker():
    assert float(hvd.allreduce(2.5)) == 2.5
    assert hvd.allreduce(2.5).dtype == tf.float32
    assert hvd.allreduce([1, 2], op=hvd.Sum).dtype == tf.int32
    assert hvd.allreduce([1, 2]).dtype == tf.float64
    assert float(hvd.allreduce(2.0, prescale_factor=3, postscale_factor=0.5)) == 3
    assert hvd.allgather(3).numpy().tolist() == [3]
    assert int(hvd.broadcast(3, 0)) == 3
    assert f"{hvd.broadcast(3, 0)}" == "3"
    with pytest.raises(ValueError, match=r"one of the ranks \[0\], received 1"):
        hvd.broadcast(3, 1)
    with pytest.raises(TypeError, match=r"must be hvd\.Average, .*received 'Adasum'"):
        hvd.allreduce(3, op="Adasum")
    with pytest.raises(ValueError, match="either average or op"):
        hvd.allreduce(3, average=True, op=hvd.Sum)


def test_values_are_not_exchanged_in_a_tf_function():
    with pytest.raises(RuntimeError, match=r"cannot be called in a tf\.function"):
        tf.function(hvd.allreduce, autograph=False)(tf.constant(1.0))


@pytest.fixture
def other_worker(monkeypatch):
    """Let another worker, of rank 1, exchange the values that a test appends."""
    others = []

    def exchange(value, doing, timeout_s):
        return [value, others.pop(0)]

    cluster = pga.Cluster(rank=0, size=2, exchange_values=exchange)
    monkeypatch.setattr(processes, "_cluster", cluster)
    return others


def test_values_of_two_workers(other_worker):
    other_worker.append([1, '{"array": ["int32", [], "AwAAAA=="]}'])  # 3
    assert float(hvd.allreduce(2)) == 2.5
    other_worker.append([2, '{"tuple": [1, "ab'])  # in two pieces
    other_worker.append('c"]}')
    assert hvd.allgather_object(7) == [7, (1, "abc")]


def test_values_that_do_not_match(other_worker):
    other_worker.append([1, '{"array": ["int32", [], "AwAAAA=="]}'])
    with pytest.raises(ValueError, match=r"float32 of shape \[\]; int32 of shape \[\]"):
        hvd.allreduce(2.0)


def test_a_long_value_travels_in_pieces(other_worker, monkeypatch):
    monkeypatch.setattr(collectives, "_PIECE", 8)
    other_worker += [[1, '"short"'], "", ""]
    assert hvd.allgather_object("long" * 4) == ["long" * 4, "short"]
    assert not other_worker


# ---- Optimizers ---------------------------------------------------------------------------------


def test_the_optimizer_keeps_its_class_and_settings():
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    config = sgd.get_config()
    marked = hvd.DistributedOptimizer(sgd, "name", sparse_as_dense=True, num_groups=2)
    assert marked is sgd and type(marked) is keras.optimizers.SGD
    assert hvd.DistributedOptimizer(marked) is sgd
    assert marked.get_config() == config


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"op": collectives.Sum}, ValueError, r"learning rate that is hvd\.size\(\) times as high"),
        ({"compression": "fp16"}, ValueError, r"hvd\.Compression\.none or .* received 'fp16'"),
        ({"process_set": [0]}, ValueError, "not support 'process_set'. All workers train together"),
        ({"scale_local_gradients": False}, ValueError, r"GossipPGA\(H=1, local="),
        ({"unknown": 1}, TypeError, "no argument 'unknown'"),
        ({"backward_passes_per_step": 4}, ValueError, "average_aggregated_gradients=True too"),
    ],
)
def test_arguments_without_an_equivalent_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), **arguments)


def test_only_optimizers_of_keras_are_accepted():
    with pytest.raises(TypeError, match=r"needs an optimizer of Keras 3, .* received 'sgd'"):
        hvd.DistributedOptimizer("sgd")


def test_accumulated_gradients():
    arguments = {"backward_passes_per_step": 4, "average_aggregated_gradients": True}
    sgd = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), **arguments)
    assert sgd.gradient_accumulation_steps == 4
    sgd.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="an optimizer that is not built"):
        hvd.DistributedOptimizer(sgd, **arguments)


def _model(optimizer):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


DATA = (np.ones((6, 4), np.float32), np.ones((6, 1), np.float32))


def test_training_without_a_callback_that_averages_is_an_error(two_workers):
    model = _model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="no callback averages the models of the workers"):
        model.fit(*DATA, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    gossip = pga.GossipPGA(H=6)  # that of a single worker
    model.fit(*DATA, verbose=0, callbacks=[gossip])
    with pytest.raises(RuntimeError, match="no callback averages the models of the workers"):
        model.fit(*DATA, verbose=0)  # the step is not traced again


def test_an_optimizer_that_scales_the_loss_may_hold_the_marked_one(two_workers):
    def scaled():
        inner = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
        return _model(keras.optimizers.LossScaleOptimizer(inner))

    with pytest.raises(RuntimeError, match="no callback averages"):
        scaled().fit(*DATA, verbose=0)
    scaled().fit(*DATA, verbose=0, callbacks=[pga.GossipPGA(H=6)])


def test_after_shutdown_the_workers_still_train_together(two_workers):
    model = _model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    hvd.shutdown()
    with pytest.raises(RuntimeError, match="no callback averages"):
        model.fit(*DATA, verbose=0)


def test_one_worker_needs_no_callback():
    model = _model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    model.fit(*DATA, verbose=0)


def test_a_driver_averages_only_in_fit_and_only_its_own_model():
    seen = []

    def look(batch, logs):
        seen.append([driver.is_averaging(each.optimizer) for each in (model, other)])

    model, other = _model("sgd"), _model("sgd")
    assert driver.of(model) is None
    look = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    gossip = pga.GossipPGA(H=1)
    model.fit(*DATA, verbose=0, callbacks=[gossip, look])
    assert seen == [[True, False]]
    assert driver.of(model) is gossip
    assert not driver.is_averaging(model.optimizer)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
def test_a_saved_model_is_loaded_with_a_marked_optimizer(tmp_path, two_workers):
    class Own(keras.optimizers.SGD):
        pass

    model = _model(hvd.DistributedOptimizer(Own(0.25)))
    model.save(tmp_path / "model.keras")
    loaded = hvd.load_model(tmp_path / "model.keras", custom_optimizers=[Own])
    assert type(loaded.optimizer) is Own
    with pytest.raises(RuntimeError, match="no callback averages"):
        loaded.fit(*DATA, verbose=0)
    with pytest.raises(ValueError, match="legacy_opts must be False"):
        hvd.load_model(tmp_path / "model.keras", legacy_opts=True)


@pytest.mark.parametrize(
    ("opt", "text"),
    [
        (keras.optimizers.SGD(0.1, momentum=0.9), r"With SGD the result is the same\.$"),
        (keras.optimizers.SGD(0.1, clipnorm=1), "SGD clips each worker's own gradient"),
        (keras.optimizers.AdamW(0.1), r"With AdamW .* multiply .* by sqrt\(4\) = 2\.00\. See"),
        (keras.optimizers.Adagrad(0.1), "With Adagrad the result is not the same. See docs/guides"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), "skips its step alone"),
        (keras.optimizers.SGD(0.1, use_ema=True), "SGD keeps the moving average of each worker's"),
    ],
)
def test_the_line_says_how_the_optimizer_differs(opt, text):
    line = optimizer.explanation(opt, 4)
    assert "4 workers average parameters, not gradients, after every step" in line
    assert re.search(text, line)
    assert "\n" not in line


def test_the_line_says_that_compression_has_no_effect():
    sgd = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), compression=hvd.Compression.fp16)
    assert optimizer.explanation(sgd, 2).endswith("Compression.fp16 has no effect.")


# ---- Callbacks ----------------------------------------------------------------------------------


def test_the_callback_is_parallel_sgd():
    gossip = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model = _model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    model.fit(*DATA, batch_size=2, verbose=0, callbacks=[gossip])
    assert (gossip.step, gossip.global_steps) == (3, 3)


def test_arguments_of_callbacks_without_an_equivalent_are_refused():
    with pytest.raises(ValueError, match=r"must be 0, because all ranks take .* received 1"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(1)
    with pytest.raises(ValueError, match=r"does not support local_variables\. Pass pga\.GossipPGA"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[])
    with pytest.raises(ValueError, match="needs initial_lr"):
        hvd.callbacks.LearningRateWarmupCallback(None)


def test_metrics_need_a_callback_that_averages(two_workers):
    model = _model("sgd")
    metrics = hvd.callbacks.MetricAverageCallback()
    with pytest.raises(RuntimeError, match="MetricAverageCallback needs a callback that averages"):
        model.fit(*DATA, verbose=0, callbacks=[metrics])
    model.fit(*DATA, verbose=0, callbacks=[metrics, pga.GossipPGA(H=6)])


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(each[:2] for each in DATA)


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        (tf.data.Dataset.from_tensor_slices(DATA).batch(2), None),
        (Batches(), None),
    ],
    ids=["arrays", "tf.data", "PyDataset"],
)
def test_a_model_is_built_from_the_data_of_fit(data):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    built = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: built.append(model.built)
    )
    gossip = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model.fit(*data, verbose=0, shuffle=False, callbacks=[look, gossip])
    assert built == [True]
    assert model.layers[0].kernel.shape == (4, 1)


def test_a_model_with_several_inputs_is_built():
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs["a"]) + inputs["b"]

    model = Sum()
    model.compile("sgd", "mse")
    data = {"a": DATA[0], "b": DATA[1]}
    gossip = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model.fit(data, DATA[1], verbose=0, callbacks=[gossip])
    assert gossip.step == 1


def test_a_model_for_unknown_data_is_not_built():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for data in (None, iter([DATA]), [1.0, 2.0], tf.data.Dataset.range(3)):
        callbacks.build(model, data)
        assert not model.built


def _rates(*schedules, epochs):
    """Learning rate of each batch; two batches in an epoch. Before, it is 1."""
    model = _model(keras.optimizers.SGD(1.0))
    seen = []

    def look(batch, logs):
        seen.append(float(model.optimizer.learning_rate))

    look = keras.callbacks.LambdaCallback(on_train_batch_begin=look)
    history = model.fit(
        *DATA, batch_size=3, epochs=epochs, verbose=0, callbacks=[*schedules, look]
    ).history
    return seen, history


def test_schedules_of_learning_rates():
    seen, history = _rates(
        hvd.callbacks.LearningRateScheduleCallback(0.5, 0.1, start_epoch=1, end_epoch=3),
        hvd.callbacks.LearningRateScheduleCallback(
            0.5, lambda epoch: epoch, start_epoch=3, staircase=False
        ),
        epochs=4,
    )
    np.testing.assert_allclose(seen, [1, 1, 0.05, 0.05, 0.05, 0.05, 1.5, 1.75])
    np.testing.assert_allclose(history["lr"], [1, 0.05, 0.05, 1.75])


def test_warm_up(two_workers, capsys):
    # From 0.4 / 2 over two epochs of two batches: 0.2 * (1 + 1/4), 0.2 * (1 + 2/4), …
    seen, _ = _rates(hvd.callbacks.LearningRateWarmupCallback(0.4, 2, verbose=1), epochs=3)
    np.testing.assert_allclose(seen, [0.25, 0.3, 0.35, 0.4, 0.4, 0.4], rtol=1e-6)
    assert "Epoch 2: the learning rate is now 0.4, after the warm-up." in capsys.readouterr().out


def test_a_warm_up_that_ends_within_an_epoch(two_workers):
    seen, _ = _rates(hvd.callbacks.LearningRateWarmupCallback(0.4, 0.5), epochs=2)
    np.testing.assert_allclose(seen, [0.4, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize(("is_corrected", "slot"), [(True, 0.125), (False, 1)])
def test_momentum_is_corrected(is_corrected, slot):
    model = _model(keras.optimizers.SGD(1.0, momentum=0.5))
    model.optimizer.build(model.trainable_variables)
    for each in model.optimizer.momentums:
        each.assign(keras.ops.ones_like(each))
    schedule = hvd.callbacks.LearningRateScheduleCallback(
        0.5, 0.25, momentum_correction=is_corrected
    )
    schedule.set_model(model)
    schedule.on_epoch_begin(1)
    schedule.on_train_batch_begin(0)
    assert float(model.optimizer.learning_rate) == 0.125  # it was 1
    for each in model.optimizer.momentums:
        np.testing.assert_array_equal(each, np.full(each.shape, slot))


def test_a_schedule_within_epochs_needs_the_number_of_batches():
    schedule = hvd.callbacks.LearningRateWarmupCallback(0.5)
    model = _model("sgd")
    data = tf.data.Dataset.from_generator(
        lambda: iter([DATA]), output_signature=tuple(tf.TensorSpec(each.shape) for each in DATA)
    )
    with pytest.raises(ValueError, match=r"LearningRateWarmupCallback needs .* steps_per_epoch"):
        model.fit(data, verbose=0, shuffle=False, callbacks=[schedule])
