"""The one validator of numbers."""

import math

import numpy as np
import pytest

from tf_gossip_pga import _validate


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "expected"),
    [
        (1, 1, None, 1),
        (0, 1, None, None),
        (5, 1, 5, 5),
        (6, 1, 5, None),
        (np.int64(3), 1, None, 3),
        (True, 0, None, None),
        (2.0, 1, None, None),
        ("2", 1, None, None),
        (None, 1, None, None),
    ],
)
def test_whole_numbers(value, at_least, at_most, expected):
    result = _validate.whole(value, at_least, at_most)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("value", [1, 2.5, np.float32(0.5), np.int64(3)])
def test_finite_numbers(value):
    result = _validate.number(value)
    assert result == value
    assert type(result) is float


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 1j, [1], 10**400])
def test_what_is_no_finite_number(value):
    assert _validate.number(value) is None


def test_the_message_says_what_was_received_and_what_is_accepted():
    assert _validate.check_whole("every", 2, 1, unit="epochs") == 2
    with pytest.raises(
        ValueError, match=r"^every must be a whole number of epochs >= 1, received 0\.$"
    ):
        _validate.check_whole("every", 0, 1, unit="epochs")
    with pytest.raises(
        ValueError, match=r"^min_workers must be a whole number from 1 to 4, received 5\.$"
    ):
        _validate.check_whole("min_workers", 5, 1, 4)
