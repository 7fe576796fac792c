"""`TF_CONFIG` in all its forms, equal shards of every kind of dataset, values of all workers."""

import itertools
import json
import math
import re

import numpy as np
import pytest

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.tf_config import from_tf_config, to_tf_config

A, B, C = "10.0.0.1:2222", "host-b:2222", "[::1]:65535"


def config(cluster, kind="worker", index=0, **more):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}, **more})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Cluster(0, 1, ())),
        ("", Cluster(0, 1, ())),
        (" \n", Cluster(0, 1, ())),
        (config({"worker": [A]}), Cluster(0, 1, (A,))),
        (config({"worker": [A, B, C]}, index=0), Cluster(0, 3, (A, B, C))),
        (config({"worker": [A, B, C]}, index=2), Cluster(2, 3, (A, B, C))),
        # The chief is rank 0 wherever the text puts it, and the workers follow.
        (config({"worker": [B, C], "chief": [A]}, "chief", 0), Cluster(0, 3, (A, B, C))),
        (config({"worker": [B, C], "chief": [A]}, "worker", 0), Cluster(1, 3, (A, B, C))),
        (config({"chief": [A], "worker": [B, C]}, "worker", 1), Cluster(2, 3, (A, B, C))),
        (config({"chief": [A]}, "chief", 0), Cluster(0, 1, (A,))),
        # `master` is an older name of the chief.
        (config({"worker": [B, C], "master": [A]}, "master", 0), Cluster(0, 3, (A, B, C))),
        (config({"worker": [B, C], "master": [A]}, "worker", 1), Cluster(2, 3, (A, B, C))),
        (config({"worker": [A, B]}, index="1"), Cluster(1, 2, (A, B))),
        # Managed platforms add keys of their own.
        (config({"worker": [A, B]}, index=1, environment="cloud"), Cluster(1, 2, (A, B))),
        (
            json.dumps(
                {
                    "cluster": {"worker": [A, B]},
                    "task": {"type": "worker", "index": 1, "trial": "3", "cloud": "x"},
                    "job": {"scale_tier": "BASIC"},
                }
            ),
            Cluster(1, 2, (A, B)),
        ),
    ],
)
def test_from_tf_config(text, expected):
    cluster = from_tf_config(text)
    assert cluster == expected
    assert cluster.is_chief == (expected.rank == 0)


def no_task(**fields):
    return json.dumps({"cluster": {"worker": [A]}, "task": fields})


BAD_ADDRESSES = [
    *("", "a", "a:", ":1", "a:b", "a:-1", "a:1.5", "a:0", "a:65536"),
    *("a b:1", " a:1", "a:1\n", "a:\N{SUPERSCRIPT TWO}", "a:\N{ARABIC-INDIC DIGIT THREE}"),
    *("::1", "fe80::1:2222", "http://a:1", "a:01"),  # 01 would hide that an address is there twice
    *(1, None, ["a:1"]),
]
REFUSED = [
    ("{'cluster'", "is not JSON (Expecting property name"),
    ('{"cluster": ', "is not JSON (Expecting value"),
    ("worker", "is not JSON"),
    ('["cluster", "task"]', "must be a JSON object, received list"),
    ('"cluster"', "must be a JSON object, received str"),
    ("3", "must be a JSON object, received int"),
    ("null", "must be a JSON object, received NoneType"),
    ("{}", 'has no "cluster"'),
    ('{"task": {"type": "worker", "index": 0}}', 'has no "cluster"'),
    ('{"cluster": {"worker": ["a:1"]}}', 'has no "task"'),
    ('{"cluster": ["a:1"], "task": {}}', "needs \"cluster\" to be an object, received ['a:1']"),
    ('{"cluster": {"worker": ["a:1"]}, "task": 0}', 'needs "task" to be an object, received 0'),
    (no_task(index=0), 'has no "type" in "task"'),
    (no_task(type="worker"), 'has no "index" in "task"'),
    (no_task(type=0, index=0), 'needs "type" to be a string, received 0'),
    (no_task(type="worker", index="x"), "needs \"index\" to be a whole number, received 'x'"),
    (no_task(type="worker", index="-1"), "needs \"index\" to be a whole number, received '-1'"),
    (config({"worker": [A]}, index="1"), "has the task index 1, but 'worker' has 1 addresses"),
    (no_task(type="worker", index=True), 'needs "index" to be a whole number, received True'),
    (no_task(type="worker", index=0.0), 'needs "index" to be a whole number, received 0.0'),
    (no_task(type="worker", index=None), 'needs "index" to be a whole number, received None'),
    (
        config({"worker": [A, B]}, index=2),
        "has the task index 2, but 'worker' has 2 addresses, so the index must be from 0 to 1",
    ),
    (config({"worker": [A, B]}, index=-1), "has the task index -1, but 'worker' has 2 addresses"),
    (
        config({"chief": [A], "worker": [B]}, "chief", 1),
        "has the task index 1, but 'chief' has 1 addresses, so the index must be from 0 to 0",
    ),
    (
        config({"worker": [A]}, "chief"),
        "names the task type 'chief', but its \"cluster\" has 'worker'",
    ),
    (
        config({"chief": [A], "worker": [B]}, "evaluator"),
        "names the task type 'evaluator', which does not train. Remove the evaluator from this job",
    ),
    (config({"worker": [A], "ps": [B]}), "has the role 'ps'"),
    (config({"worker": [A], "evaluator": [B]}, "evaluator"), "has the role 'evaluator'"),
    (config({}), 'has an empty "cluster"'),
    (config({"worker": []}), "needs a list of \"host:port\" for 'worker', received []"),
    (
        config({"worker": [A], "chief": []}),
        "needs a list of \"host:port\" for 'chief', received []",
    ),
    (config({"worker": A}), f"needs a list of \"host:port\" for 'worker', received '{A}'"),
    (config({"worker": {"0": A}}), "needs a list of \"host:port\" for 'worker', received {'0'"),
    (config({"chief": [A, B]}, "chief"), "has 2 chiefs; there can be only one"),
    (config({"chief": [A], "master": [B]}, "chief"), "has 2 chiefs; there can be only one"),
    (config({"worker": [A, B, A]}), f"has the address '{A}' twice"),
    (config({"chief": [A], "worker": [A]}), f"has the address '{A}' twice"),
    *(
        (config({"worker": [A, bad]}), f'has the address {bad!r}, which is not "host:port"')
        for bad in BAD_ADDRESSES
    ),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_from_tf_config_says_what_is_wrong(text, problem):
    with pytest.raises(ValueError, match=rf"^TF_CONFIG {re.escape(problem)}") as caught:
        from_tf_config(text)
    assert f"\n  received: {text}\n" in str(caught.value)
    # The example that is shown must itself be right.
    example = re.search("example: (.*)", str(caught.value))[1]
    assert from_tf_config(example) == Cluster(0, 2, ("host0:2222", "host1:2222"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "is not JSON"),
        # Python converts no text of more than 4300 digits to an integer.
        (no_task(type="worker", index=0).replace("0}", "1" * 5000 + "}"), "is not JSON"),
        (config({"worker": ["a:" + "1" * 5000]}), 'is not "host:port"'),
        (f'"{"x" * 600}"', "must be a JSON object, received str"),
    ],
    ids=["nested", "index", "port", "text"],
)
def test_long_texts_are_quoted_in_part(text, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        from_tf_config(text)
    assert f"received: {text[:500]} …\n" in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_to_tf_config_and_back(rank):
    for addresses in ([A, B, C], (A, B, C)):
        assert from_tf_config(to_tf_config(addresses, rank)) == Cluster(rank, 3, (A, B, C))


def shards(dataset, size):
    """What each rank reads, as NumPy."""
    return [list(Cluster(rank, size).shard(dataset).as_numpy_iterator()) for rank in range(size)]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (8, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (10, [[0, 4], [1, 5], [2, 6], [3, 7]]),  # 8 and 9 would make the shards unequal
        (4, [[0], [1], [2], [3]]),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_shards_are_equal_and_disjoint(elements, expected, known):
    import tensorflow as tf

    dataset = tf.data.Dataset.range(elements)
    dataset = dataset if known else dataset.filter(lambda x: x >= 0)
    assert (dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY) != known
    assert shards(dataset, 4) == expected
    if known:  # so that Keras can still show a progress bar
        assert Cluster(3, 4).shard(dataset).cardinality() == elements // 4


STRUCTURES = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, -x),
    "1-tuple": lambda x: (x,),
    "dict": lambda x: {"image": x, "label": -x},
    "nested": lambda x: ({"ids": x, "masks": (x, x)}, -x),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_shards_keep_the_structure_of_elements(structure, known):
    import tensorflow as tf

    dataset = tf.data.Dataset.range(7).map(STRUCTURES[structure])
    dataset = dataset if known else dataset.filter(lambda *_: True)
    whole = list(dataset.as_numpy_iterator())
    assert shards(dataset, 3) == [whole[rank:6:3] for rank in range(3)]
    assert Cluster(1, 3).shard(dataset).element_spec == dataset.element_spec


def test_shards_of_unknown_length_keep_shapes_that_vary():
    import tensorflow as tf

    def grow(x):
        ragged = tf.RaggedTensor.from_row_lengths(tf.range(x), [x])
        return tf.range(x), ragged, tf.sparse.from_dense([0, x])

    dataset = tf.data.Dataset.range(5).map(grow).filter(lambda *_: True)
    # Two workers: rank 1 reads elements 1 and 3, element 4 is dropped.
    shard = Cluster(1, 2).shard(dataset)
    assert shard.element_spec == dataset.element_spec
    one, three = shard
    assert one[0].numpy().tolist() == [0]
    assert three[0].numpy().tolist() == [0, 1, 2]
    assert three[1].to_list() == [[0, 1, 2]]
    assert tf.sparse.to_dense(three[2]).numpy().tolist() == [0, 3]


def test_shards_of_batches_of_unequal_size():
    import tensorflow as tf

    # Batches [0 1 2], [3 4 5], [6]: whole batches are dealt, the last is dropped.
    dataset = tf.data.Dataset.range(7).batch(3)
    for batches in (dataset, dataset.filter(lambda _: True)):
        first, second = shards(batches, 2)
        assert np.array_equal(first, [[0, 1, 2]])
        assert np.array_equal(second, [[3, 4, 5]])


@pytest.mark.parametrize("known", [True, False])
def test_infinite_datasets_stay_infinite(known):
    import tensorflow as tf

    dataset = tf.data.Dataset.range(3).repeat()
    dataset = dataset if known else dataset.filter(lambda x: x >= 0)
    # 0 1 2 0 1 2 0 1 … dealt to two
    for rank, expected in [(0, [0, 2, 1, 0]), (1, [1, 0, 2, 1])]:
        shard = Cluster(rank, 2).shard(dataset)
        assert list(itertools.islice(shard.as_numpy_iterator(), 4)) == expected


def test_a_dataset_of_unknown_length_is_read_once():
    import tensorflow as tf

    asked = []

    def numbers():
        for number in range(7):
            asked.append(number)
            yield number

    dataset = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), tf.int64))
    assert list(Cluster(1, 3).shard(dataset).as_numpy_iterator()) == [1, 4]
    assert asked == list(range(7))


@pytest.mark.parametrize("elements", [0, 3])
def test_fewer_elements_than_workers(elements):
    import tensorflow as tf

    dataset = tf.data.Dataset.range(elements)
    message = rf"The dataset has {elements} elements, fewer than the 4 workers.*shard before batch"
    with pytest.raises(ValueError, match=message):
        Cluster(0, 4).shard(dataset)
    # The length is not known before it is read: no rank trains, rather than some.
    assert shards(dataset.filter(lambda x: x >= 0), 4) == [[], [], [], []]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("data", "kind"), [([1, 2], "list"), (np.zeros(4), "ndarray"), (None, "NoneType")]
)
def test_shard_needs_a_dataset(data, kind, size):
    message = rf"needs a tf\.data\.Dataset, received {kind}\. Wrap arrays.*from_tensor_slices"
    with pytest.raises(TypeError, match=message):
        Cluster(0, size).shard(data)


def test_a_single_worker_reads_everything():
    import tensorflow as tf

    for dataset in (tf.data.Dataset.range(3), tf.data.Dataset.range(0)):
        assert Cluster().shard(dataset) is dataset


# ---- gather and barrier -------------------------------------------------------------------------


def _recorder(calls):
    """An exchange with one other worker, which passes the text "other"."""

    def exchange(value, doing, timeout_s):
        calls.append((value, doing, timeout_s))
        return [value, "other"]

    return exchange


def test_gather_and_barrier_exchange_what_they_are_given():
    calls = []
    cluster = Cluster(0, 2, exchange_values=_recorder(calls))
    assert cluster.gather({"loss": [0.5, None, "x", True]}) == [
        {"loss": [0.5, None, "x", True]},
        "other",
    ]
    assert cluster.gather(7, timeout_s=np.float32(2)) == [7, "other"]
    assert cluster.barrier() is None
    assert cluster.barrier(1) is None
    assert calls == [
        ({"loss": [0.5, None, "x", True]}, "cluster.gather", 300.0),
        (7, "cluster.gather", 2.0),
        (None, "cluster.barrier", 300.0),
        (None, "cluster.barrier", 1.0),
    ]


@pytest.mark.parametrize("cluster", [Cluster(), Cluster(1, 2, (A, B))], ids=["one", "by hand"])
def test_without_an_exchange_a_worker_has_its_own_value(cluster):
    assert cluster.gather([1, "a"]) == [[1, "a"]]
    assert cluster.barrier() is None
    [nan] = cluster.gather(math.nan)
    assert math.isnan(nan)


def test_one_worker_gets_what_several_would():
    # As it comes out of JSON: else a program would work with one worker and fail with two.
    assert Cluster().gather({1: (2, 3)}) == [{"1": [2, 3]}]


def _endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float32(1), "float32"),
        (np.zeros(2), "ndarray"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        ({"a": object()}, "dict"),
        ({(1, 2): 3}, "dict"),
        (_endless(), "list"),
    ],
)
@pytest.mark.parametrize("exchange_values", [None, _recorder([])], ids=["one", "two"])
def test_gather_refuses_what_json_cannot_hold(value, kind, exchange_values):
    message = rf"needs a value that JSON can hold .*, received {kind}: .* float\(…\) or \.tolist"
    with pytest.raises(TypeError, match=message):
        Cluster(exchange_values=exchange_values).gather(value)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, "1", None, True])
def test_the_time_to_wait_must_be_a_positive_number(timeout_s):
    for doing in ("gather", "barrier"):
        arguments = [1] if doing == "gather" else []
        message = rf"timeout_s of cluster\.{doing} must be a number .* > 0, received {timeout_s!r}"
        with pytest.raises(ValueError, match=message):
            getattr(Cluster(), doing)(*arguments, timeout_s=timeout_s)


def test_what_a_cluster_holds_is_no_part_of_its_place():
    assert Cluster(0, 2, exchange_values=_recorder([]), strategy=1) == Cluster(0, 2)
    assert "exchange" not in repr(Cluster(0, 2, exchange_values=_recorder([])))
