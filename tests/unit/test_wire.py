"""What low precision loses, and what it must not lose."""

import numpy as np
import pytest
import tensorflow as tf

from tf_gossip_pga.exchange import wire


def _sent(name: str, values) -> np.ndarray:
    """`values` after a journey."""
    values = tf.constant(values)
    form = wire.resolve(name)
    message = form.encode(values)
    assert len(message) * message.dtype.size == form.encoded_bytes(len(values), values.dtype.size)
    return form.decode(message, len(values)).numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_full_precision_changes_nothing(dtype):
    values = tf.cast(np.random.default_rng(0).normal(size=1000), dtype)
    np.testing.assert_array_equal(_sent("float32", values), values)


def test_bfloat16_keeps_eight_bits():
    # 1 + 2^-7 has eight significant bits, 1 + 2^-8 lies between two and is rounded to even.
    values = np.float32([1 + 2**-7, 1 + 2**-8, -3e38, 1e-38, 0])
    expected = np.float32([1 + 2**-7, 1, -3e38, 1e-38, 0])
    np.testing.assert_allclose(_sent("bfloat16", values), expected, rtol=2**-8)
    assert _sent("bfloat16", values)[:2].tolist() == [1.0078125, 1]


def test_int8_scales_each_block_by_its_largest():
    # Two blocks of 256; the second is a thousandth of the first, and is as precise.
    block = np.linspace(-127, 127, 256).astype(np.float32)
    values = np.concatenate([block, block / 1000])
    sent = _sent("int8", values)
    # The scales are 1 and 0.001.
    np.testing.assert_allclose(sent[:256], np.round(block), atol=1e-5)
    np.testing.assert_allclose(sent[256:], np.round(block) / 1000, atol=1e-8)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000])
def test_int8_is_within_half_a_step_at_any_length(length):
    values = np.random.default_rng(length).normal(size=length).astype(np.float32)
    sent = _sent("int8", values)
    assert sent.shape == (length,)
    for start in range(0, length, 256):
        block = values[start : start + 256]
        half_a_step = np.abs(block).max() / 127 / 2
        assert np.abs(sent[start : start + 256] - block).max() <= half_a_step * 1.0001


def test_int8_of_zeros_is_zeros():
    assert not _sent("int8", np.zeros(300, np.float32)).any()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_what_is_no_number_does_not_become_one(name, odd):
    values = np.ones(300, np.float32)
    values[7] = odd
    sent = _sent(name, values)
    # With int8 its whole block, whose scale it is; other blocks do not suffer.
    suffers = np.isin(np.arange(300), range(256) if name == "int8" else [7])
    assert not np.isfinite(sent[suffers]).any()
    assert (sent[~suffers] == 1).all()


def test_int8_moves_a_quarter_of_the_bytes():
    # 1000 numbers are 4 blocks of 256 bytes and a scale.
    assert wire.resolve("int8").encoded_bytes(1000, 4) == 4 * (256 + 4)
    assert wire.resolve("bfloat16").encoded_bytes(1000, 4) == 2000
    assert wire.resolve("float32").encoded_bytes(1000, 8) == 8000


@pytest.mark.parametrize("name", ["int4", "", None, "float16"])
def test_unknown_names_are_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match="one of 'float32', 'bfloat16', 'int8'; received"):
        wire.resolve(name)
