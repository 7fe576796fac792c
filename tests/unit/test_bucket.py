"""Buckets: variables into chunks and back."""

import numpy as np
import pytest
import tensorflow as tf

from tf_gossip_pga.exchange import buckets


def _variables():
    """Three types, an empty one, a scalar, and sizes that no chunk divides."""
    values = [
        tf.reshape(tf.range(10.0), [2, 5]),
        tf.constant([100, 101, 102], tf.int64),
        tf.zeros([0, 3]),
        tf.constant(-1.0),
        tf.cast(tf.range(7), tf.float16),
    ]
    return [tf.Variable(value) for value in values]


def test_chunks_hold_one_type_each_and_no_more_than_their_limit():
    bucket = buckets.Bucket(_variables(), chunk_bytes=16)
    chunks = [(chunk.dtype.name, chunk.numpy().tolist()) for chunk in bucket.pack()]
    # 16 bytes are 4 float32, 2 int64 or 8 float16; all variables reach a quarter of that.
    assert chunks == [
        ("float32", [0, 1, 2, 3]),
        ("float32", [4, 5, 6, 7]),
        ("float32", [8, 9]),
        ("float32", [-1]),
        ("int64", [100, 101]),
        ("int64", [102]),
        ("float16", [0, 1, 2, 3, 4, 5, 6]),
    ]
    assert len(bucket) == 7
    assert bucket.bytes == 11 * 4 + 3 * 8 + 7 * 2


def test_small_variables_share_chunks_and_large_ones_are_cut_where_slices_are_free():
    # Chunks of 400 elements. 90 + 90 + 90 + 90 fit in one, the fifth does not; 900 elements need 3
    # parts of 300, which are rounded up to a multiple of 64: 320, 320, 260.
    sizes = [90, 90, 900, 90, 90, 90]
    bucket = buckets.Bucket([tf.Variable(tf.zeros([size])) for size in sizes], 1600)
    assert [len(chunk) for chunk in bucket.pack()] == [360, 320, 320, 260, 90]


@pytest.mark.parametrize("chunk_bytes", [1, 8, 20, 24, 1 << 20])
def test_assign_puts_every_element_where_pack_took_it(chunk_bytes):
    variables = _variables()
    before = [variable.numpy() for variable in variables]
    bucket = buckets.Bucket(variables, chunk_bytes)
    bucket.assign([chunk + tf.cast(1, chunk.dtype) for chunk in bucket.pack()])
    for variable, old in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old + 1)


def test_complex_numbers_travel_as_pairs_and_booleans_as_bytes():
    values = [
        tf.constant([[1 + 2j, 3 - 4j]], tf.complex64),
        tf.constant([5.0]),
        tf.constant([True, False, True]),
        tf.constant(6 - 7j, tf.complex128),
    ]
    variables = [tf.Variable(value) for value in values]
    bucket = buckets.Bucket(variables)
    chunks = [(chunk.dtype.name, chunk.numpy().tolist()) for chunk in bucket.pack()]
    assert chunks == [("float32", [1, 2, 3, -4, 5]), ("uint8", [1, 0, 1]), ("float64", [6, -7])]
    assert bucket.bytes == 2 * 8 + 4 + 3 + 16
    doubled = [2 * bucket.pack()[0], 1 - bucket.pack()[1], -bucket.pack()[2]]
    bucket.assign(doubled)
    assert variables[0].numpy().tolist() == [[2 + 4j, 6 - 8j]]
    assert variables[2].numpy().tolist() == [False, True, False]
    assert variables[3].numpy() == -6 + 7j


def test_changes_are_added_to_complex_numbers():
    variables = [tf.Variable([1 + 2j, 3 - 4j])]
    bucket = buckets.Bucket(variables)
    bucket.add([tf.constant([0, 1, 10, 0], tf.float64)])
    assert variables[0].numpy().tolist() == [1 + 3j, 13 - 4j]


def test_no_variables_make_no_chunks():
    assert buckets.Bucket([]).pack() == []
    assert buckets.Bucket([tf.Variable(tf.zeros([0]))]).pack() == []
