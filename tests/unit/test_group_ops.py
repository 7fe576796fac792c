"""The graph of exchanges: order, messages in flight, keys; no process is started."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange import gather, group_ops
from tf_gossip_pga.exchange.transport import RING, Transport

ALL = View(0, (0, 1, 2))


def _transport(in_flight: int = 4) -> Transport:
    return dataclasses.replace(RING, messages_in_flight=in_flight)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_no_more_messages_are_under_way_than_allowed(limit):
    ops = group_ops.GroupOps(ALL, 0, 3, _transport(limit))
    with tf.Graph().as_default() as graph:
        ops.exchange([tf.zeros([3]) for _ in range(4)], topology.ring(3).colors(0), 1)
    messages = [op for op in graph.get_operations() if "CollectiveBcast" in op.type]
    assert len(messages) == 4 * 4  # 4 chunks, sent to two and received from two

    @functools.cache
    def before(op) -> set:
        direct = {*op.control_inputs, *(tensor.op for tensor in op.inputs)}
        return direct.union(*(before(each) for each in direct))

    for place, message in enumerate(messages):
        # Message k waits for message k - limit, and so for k - 2 limit, …
        assert len(before(message) & set(messages)) == place // limit


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_no_more_global_averages_are_under_way_than_allowed(limit):
    ops = group_ops.GroupOps(ALL, 0, 3, _transport(limit))
    function = tf.function(lambda: ops.mean([tf.zeros([3])] * 5, 1), autograph=False)
    operations = function.get_concrete_function().graph.get_operations()
    reductions = [op for op in operations if op.type == "CollectiveReduceV2"]
    # Number k waits for number k - limit: TensorFlow orders what shares a token.
    waits = [[reductions.index(op) for op in each.control_inputs] for each in reductions]
    assert waits == [[k - limit] if k >= limit else [] for k in range(5)]


def _group_keys(view: View, rank: int) -> set[int]:
    """The group keys of a ring's edges at this rank, of the mean and of the gather."""
    ops = group_ops.GroupOps(view, rank, 4, _transport())
    colors = topology.ring(len(view.members)).colors(0)

    @tf.function(autograph=False)
    def everything():
        chunks = [tf.zeros([3])]
        sent = [op for _, _, ops_ in ops.exchange(chunks, colors, 1) for op in ops_]
        return sent, ops.mean(chunks, 2), ops.gather(tf.zeros([2], tf.int32))

    graph = everything.get_concrete_function().graph
    found = [op for op in graph.get_operations() if "Collective" in op.type]
    assert found
    # A receive has no input before the size and the key of its group.
    places = [1 if op.type == "CollectiveBcastRecvV2" else 2 for op in found]
    keys = [op.inputs[place] for op, place in zip(found, places, strict=True)]
    return {int(tf.get_static_value(key)) for key in keys}


def test_group_keys_differ_from_view_to_view_and_lie_above_those_of_strategies():
    first, second = _group_keys(View(0, (0, 1, 2, 3)), 1), _group_keys(View(1, (0, 1, 3)), 1)
    assert not first & second
    assert min(first | second) >= 1 << 20


def test_both_ends_of_an_edge_use_one_group_key_in_both_directions():
    left, right = _group_keys(ALL, 0), _group_keys(ALL, 1)
    # The edges between 0 and 1, the mean and the gather are common to both.
    assert len(left & right) == 3
    assert len(left) == len(right) == 4


def test_two_members_use_the_group_of_all():
    assert len(_group_keys(View(0, (0, 1)), 0)) == 2  # that one, and the one of gathers


def test_a_lone_member_exchanges_with_nobody():
    ops = group_ops.for_view(View(3, (2,)), 2, 4, _transport())
    assert (ops.size, ops.place) == (1, 0)
    chunks = [tf.constant([1.0, 2.0])]
    assert ops.mean(chunks, 1) is chunks
    assert ops.broadcast(chunks, 1) is chunks
    assert ops.exchange(chunks, (), 1, encode=lambda chunk: -chunk)[0][1:] == ({}, [])
    assert gather.Gatherer(ops, 2)({"alone": "ä"}) == [{"alone": "ä"}]


def test_places_follow_the_members():
    places = [group_ops.GroupOps(View(1, (0, 2, 3)), rank, 4, _transport()) for rank in (0, 2, 3)]
    assert [ops.place for ops in places] == [0, 1, 2]


def test_types_of_one_byte_travel_by_fours():
    ops = group_ops.GroupOps(ALL, 0, 3, _transport())
    with tf.Graph().as_default() as graph:
        received = ops.broadcast([tf.zeros([5], tf.int8)], 1)
    (sent,) = [op for op in graph.get_operations() if op.type == "CollectiveBcastSendV2"]
    assert (sent.inputs[0].dtype, sent.inputs[0].shape) == (tf.int32, [2])
    assert (received[0].dtype, received[0].shape) == (tf.int8, [5])


def test_more_than_ten_ranks_come_in_rank_order():
    by_name = sorted(range(12), key=str)  # as TensorFlow orders its devices: 0, 1, 10, 11, 2, …
    rows = [gather.encode(rank, {"of": rank}) for rank in by_name]
    messages = np.zeros([12, 64], np.int32)
    for message, row in zip(messages, rows, strict=True):
        message[: len(row)] = row
    assert gather.decode(messages) == [{"of": rank} for rank in range(12)]
