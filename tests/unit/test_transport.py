"""The choice between gRPC and NCCL, as tables; the messages that it leads to, without exchanges."""

import ctypes
import dataclasses
import math
import types

import pytest
import tensorflow as tf

from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.cluster import gpus
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange import buckets, group_ops, message_plan, wire
from tf_gossip_pga.exchange import transport as transport_lib
from tf_gossip_pga.exchange.message_plan import ALL, PAIR, RECEIVE, SEND
from tf_gossip_pga.exchange.mixing import Mixer
from tf_gossip_pga.exchange.transport import NCCL, RING, Offer

FULL = wire.BY_NAME["float32"]
FIRST, SECOND = Offer("a", "0"), Offer("a", "1")
ELSEWHERE, NO_GPU = Offer("b", "0"), Offer("a", "")


@pytest.mark.parametrize(
    ("communication", "offers", "expected", "reason"),
    [
        ("auto", [FIRST, SECOND], NCCL, ""),
        ("auto", [FIRST, ELSEWHERE], NCCL, ""),
        ("nccl", [FIRST, SECOND], NCCL, ""),
        ("ring", [FIRST, SECOND], RING, ""),
        ("auto", [NO_GPU, NO_GPU], RING, ""),  # there is no GPU to wonder about
        ("auto", [FIRST, NO_GPU], RING, "because rank 1 has no GPU that NCCL can use"),
        ("auto", [SECOND, FIRST, FIRST], RING, "because rank 1 and rank 2 share GPU 0 of a"),
        ("ring", [FIRST, FIRST], RING, ""),
    ],
)
def test_all_workers_use_nccl_where_each_has_a_gpu_of_its_own(
    communication, offers, expected, reason
):
    choice = transport_lib.choose(communication, offers)
    assert choice.transport is expected
    assert choice.reason == (f"NCCL cannot be used, {reason}" if reason else "")


@pytest.mark.parametrize(
    ("offers", "obstacle"),
    [
        ([FIRST, NO_GPU], "rank 1 has no GPU that NCCL can use"),
        ([NO_GPU, NO_GPU], "rank 0 has no GPU that NCCL can use"),
        ([FIRST, ELSEWHERE, FIRST], "rank 0 and rank 2 share GPU 0 of a"),
    ],
)
def test_a_request_for_nccl_that_cannot_be_met_is_an_error(offers, obstacle):
    with pytest.raises(ValueError, match=f"communication is 'nccl', but {obstacle}. Over NCCL, "):
        transport_lib.choose("nccl", offers)


def test_two_machines_may_have_the_same_name():
    offers = [Offer("localhost", "0", "8f"), Offer("localhost", "0", "9a")]
    assert transport_lib.choose("auto", offers).transport is NCCL
    assert not transport_lib.shares_gpu(0, offers)


@pytest.mark.parametrize(
    ("hint", "communication", "gpu"),
    [("nccl", "auto", "0"), ("nccl", "nccl", "0"), ("ring", "auto", ""), ("ring", "ring", "0")],
)
def test_a_joining_worker_uses_the_transport_of_the_members(hint, communication, gpu):
    assert transport_lib.of_members(hint, 2, communication, gpu).hint == hint


@pytest.mark.parametrize(
    ("hint", "communication", "gpu", "text"),
    [
        ("nccl", "auto", "", "NCCL between GPUs, but this worker has no GPU that NCCL can use. "),
        ("nccl", "ring", "0", "NCCL between GPUs, but this worker requests 'ring'. Request 'nccl'"),
        ("ring", "nccl", "0", "gRPC between CPUs, but this worker requests 'nccl'. Request 'ring'"),
    ],
)
def test_a_joining_worker_that_cannot_use_it_gets_the_reason(hint, communication, gpu, text):
    text = f"Rank 2 cannot join: the other workers exchange over {text}"
    with pytest.raises(ValueError, match=text):
        transport_lib.of_members(hint, 2, communication, gpu)


def test_who_shares_a_gpu():
    offers = [FIRST, FIRST, SECOND, NO_GPU, NO_GPU]
    assert [transport_lib.shares_gpu(rank, offers) for rank in range(5)] == [
        *(True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [(None, None, "auto"), (None, " NCCL ", "nccl"), ("ring", "nccl", "ring"), (None, "", "auto")],
)
def test_the_argument_takes_precedence_over_the_variable(monkeypatch, argument, variable, expected):
    monkeypatch.delenv(transport_lib.COMMUNICATION, raising=False)
    if variable is not None:
        monkeypatch.setenv(transport_lib.COMMUNICATION, variable)
    assert transport_lib.requested(argument) == expected


def test_another_transport_is_an_error_that_names_its_source(monkeypatch):
    accepted = "must be one of 'auto', 'nccl', 'ring'; received"
    with pytest.raises(ValueError, match=f"communication {accepted} 'mpi'"):
        transport_lib.requested("mpi")
    monkeypatch.setenv(transport_lib.COMMUNICATION, "gloo")
    with pytest.raises(ValueError, match=f"{transport_lib.COMMUNICATION} {accepted} 'gloo'"):
        transport_lib.requested(None)


class Driver:
    """CUDA's driver on a machine with two GPUs, of which one function may fail."""

    def __init__(self, fails=""):
        self._fails = fails

    def cuInit(self, flags):  # noqa: N802
        return int(self._fails == "cuInit")

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = 10 + index
        return int(self._fails == "cuDeviceGet")

    def cuDeviceGetPCIBusId(self, text, size, device):  # noqa: N802
        text.value = [b"0000:3b:00.0", b"0000:5e:00.0"][device.value - 10]
        assert len(text) == size
        return int(self._fails == "cuDeviceGetPCIBusId")


@pytest.fixture
def machine(monkeypatch):
    """Stand for a machine with two GPUs, of which `machine(index)` makes one visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NCCL_HOSTID", raising=False)
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver())
    present = [types.SimpleNamespace(name=f"/physical_device:GPU:{index}") for index in range(2)]

    class Machine:
        setenv, setattr, delattr = monkeypatch.setenv, monkeypatch.setattr, monkeypatch.delattr

        def __call__(self, index, is_cuda_build=True):
            monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: present)
            monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [present[index]])
            built = {"is_cuda_build": is_cuda_build}
            monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: built)

    return Machine()


@pytest.mark.parametrize(
    ("index", "chosen", "name"),
    [(0, None, "0"), (1, None, "1"), (1, "3, 5", "5"), (0, "GPU-8f", "GPU-8f"), (0, "", "0")],
)
def test_without_a_bus_id_a_gpu_has_the_name_by_which_it_was_made_visible(
    machine, index, chosen, name
):
    machine(index)
    if chosen is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", chosen)
    for fails in ("cuInit", "cuDeviceGet", "cuDeviceGetPCIBusId"):
        machine.setattr(gpus.ctypes, "CDLL", lambda _, fails=fails: Driver(fails))
        assert gpus.own_gpu() == name
    machine.delattr(Driver, "cuInit")
    assert gpus.own_gpu() == name
    machine.setattr(gpus, "_DRIVER", "no such library")
    machine.setattr(gpus.ctypes, "CDLL", ctypes.CDLL)
    assert gpus.own_gpu() == name


@pytest.mark.parametrize(("index", "name"), [(0, "0000:3b:00.0"), (1, "0000:5e:00.0")])
def test_a_gpu_is_named_by_its_bus_id_as_in_nccl(machine, index, name):
    machine(index)
    machine.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f,GPU-9a")
    assert gpus.own_gpu() == name
    machine.setenv("NCCL_HOSTID", "host7")
    assert gpus.own_gpu() == f"{name} (NCCL_HOSTID=host7)"


def test_without_a_gpu_that_nccl_can_use_there_is_no_name(machine):
    machine(0, is_cuda_build=False)
    assert gpus.own_gpu() == ""
    machine.setattr(tf.config, "get_visible_devices", lambda kind: [])
    assert gpus.own_gpu() == ""


def _layout(shapes, transport, dtype=tf.float32):
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    return buckets.Bucket(specs, transport.message_bytes).layout


def _bert_base():
    """Shapes of BERT-base's parameters: 109 million."""
    shapes = [(30522, 768), (512, 768), (2, 768), (768,), (768,), (768, 768), (768,)]
    for _ in range(12):
        shapes += [(768, 768), (768,)] * 4 + [(768,)] * 4
        shapes += [(768, 3072), (3072,), (3072, 768), (768,)]
    return shapes


def _resnet50():
    import keras

    return [each.shape for each in keras.applications.ResNet50(weights=None).trainable_variables]


@pytest.mark.parametrize(
    ("shapes", "messages"),
    [
        ([(2_500_000,)] * 10, 1),  # 100 MB
        ([(125_000,)] * 200, 1),
        ([(25_000_000,)], 1),
        (_resnet50, 1),
        (_bert_base, 3),  # 438 MB; the word embeddings, 94 MB, travel alone
    ],
)
def test_over_nccl_a_model_is_one_message_or_a_few(shapes, messages):
    shapes = shapes() if callable(shapes) else shapes
    layout, size = _layout(shapes, NCCL), 4 * sum(map(math.prod, shapes))
    directed, pairs = topology.one_peer_exponential(8), topology.hypercube(8)
    gossip = message_plan.of_gossip(layout, directed, 0, 3, NCCL, FULL)
    assert [each.operation for each in gossip] == [SEND, RECEIVE] * messages
    paired = message_plan.of_gossip(layout, pairs, 0, 3, NCCL, FULL)
    assert [each.operation for each in paired] == [PAIR] * messages
    mean = message_plan.of_mean(layout, NCCL)
    assert {each.operation for each in mean} == {ALL}
    assert len(mean) <= messages
    for plan in (gossip[::2], paired, mean):
        assert sum(each.size for each in plan) == size
        assert max(each.size for each in plan) <= NCCL.message_bytes


def test_the_plan_of_a_model_of_100_mb_in_words():
    layout = _layout([(2_500_000,)] * 10, NCCL)
    graphs = {"directed": topology.one_peer_exponential(8), "pairs": topology.hypercube(8)}
    plans = {
        name: message_plan.of_gossip(layout, graphs[name], 0, 3, NCCL, FULL) for name in graphs
    }
    plans["global average"] = message_plan.of_mean([*layout, (4, tf.int64)], NCCL)
    said = [f"{name}: {message_plan.described(plan)}" for name, plan in plans.items()]
    print("\n".join(said))
    assert said == [
        "directed: 1 x send of 100 MB, 1 x receive of 100 MB",
        "pairs: 1 x all-reduce of a pair of 100 MB",
        "global average: 1 x all-reduce of 100 MB, 1 x all-reduce of 32 bytes",
    ]


def test_over_grpc_messages_are_chunks_of_at_most_4_mib():
    layout = _layout([(25_000_000,)], RING)
    plan = message_plan.of_gossip(layout, topology.hypercube(2), 0, 0, RING, FULL)
    assert len(plan) == 2 * 24  # 100 MB / 4 MiB, each sent and received
    assert [each.size for each in message_plan.of_mean(layout, RING)] == [
        4 * length for length, _ in layout
    ]


def test_statistics_share_the_message_of_the_parameters_over_nccl_alone():
    layout = [(1000, tf.float32), (20, tf.float32), (3, tf.int64)]
    assert message_plan.groups_of_mean(layout, NCCL) == [[0, 1], [2]]
    assert message_plan.groups_of_mean(layout, RING) == [[0], [1], [2]]
    small = dataclasses.replace(NCCL, message_bytes=4000)
    assert message_plan.groups_of_mean(layout, small) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (topology.hypercube(8), [True] * 3),
        (topology.one_peer_exponential(4), [False, True]),  # 0 and 2, 1 and 3 are two hops apart
        (topology.one_peer_exponential(2), [True]),
        (topology.ring(2), [True]),
        (topology.ring(4), [False]),
        (topology.disconnected(3), [True]),
        (topology.from_matrix([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]), [True]),
    ],
)
def test_which_rounds_are_matchings(graph, expected):
    assert [graph.is_matching(round) for round in range(graph.rounds)] == expected


@pytest.mark.parametrize(
    ("dtype", "encoding", "paired"),
    [
        (tf.float32, "float32", True),
        (tf.float64, "float32", True),
        (tf.float16, "float32", False),
        (tf.float32, "bfloat16", False),
        (tf.float32, "int8", False),
    ],
)
def test_pairs_that_would_round_twice_keep_their_broadcasts(dtype, encoding, paired):
    layout, graph = [(8, dtype)], topology.hypercube(4)
    assert message_plan.is_paired(layout, graph, 0, NCCL, wire.resolve(encoding)) is paired


def _gossip_graph(place, graph, variables, encoding="float32"):
    """The operations of a gossip over NCCL; building a graph needs no GPU."""
    view = View(0, tuple(range(graph.size)))
    ops = group_ops.GroupOps(view, place, graph.size, dataclasses.replace(NCCL, device=""))
    ops.transport = NCCL
    bucket = buckets.Bucket(variables, NCCL.message_bytes)
    mixer = Mixer(ops, graph, bucket, wire.resolve(encoding), 7)

    @tf.function(autograph=False)
    def gossip():
        return mixer.changes(0, *bucket.pack())

    return [
        op
        for op in gossip.get_concrete_function().graph.get_operations()
        if "Collective" in op.type
    ]


def test_a_pair_is_one_all_reduce_on_the_gpu_in_a_group_of_its_own():
    variables = [tf.Variable(tf.zeros([5])) for _ in range(3)]
    graph = topology.hypercube(4)
    keys = []
    for place in range(4):
        (operation,) = _gossip_graph(place, graph, variables)
        assert operation.type == "CollectiveReduceV2"
        assert operation.get_attr("communication_hint") == b"nccl"
        assert operation.device.endswith("GPU:0")
        assert int(tf.get_static_value(operation.inputs[1])) == 2
        keys.append(int(tf.get_static_value(operation.inputs[2])))
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_a_directed_gossip_over_nccl_is_a_send_and_a_receive_one_after_the_other():
    variables = [tf.Variable(tf.zeros([5])) for _ in range(3)]
    for place in range(4):
        first, second = _gossip_graph(place, topology.one_peer_exponential(4), variables)
        assert {first.type, second.type} == {"CollectiveBcastSendV2", "CollectiveBcastRecvV2"}
        assert {first.device, second.device} == {"/device:GPU:0"}
        before, todo = set(), [second]
        while todo:
            op = todo.pop()
            before.add(op.name)
            todo += [*op.control_inputs, *(each.op for each in op.inputs)]
        assert first.name in before


def test_numbers_that_nccl_cannot_sum_travel_as_float32():
    view = View(0, (0, 1))
    ops = group_ops.GroupOps(view, 0, 2, dataclasses.replace(NCCL, device=""))
    function = tf.function(lambda: ops.mean([tf.zeros([3], tf.bfloat16)], 1), autograph=False)
    graph = function.get_concrete_function()
    (operation,) = [op for op in graph.graph.get_operations() if op.type == "CollectiveReduceV2"]
    assert operation.get_attr("T") == tf.float32
    assert graph.output_dtypes == [tf.bfloat16]
