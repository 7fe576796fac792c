"""Numbers that users pass: which are accepted, and what the message says of others."""

import fractions
import math

import numpy as np
import pytest

from tf_gossip_pga import _validate


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_a_whole_number_of_any_kind_is_an_int(value):
    assert type(_validate.whole(value, 1)) is int
    assert _validate.check_whole("steps", value, 2, at_most=2) == 2


@pytest.mark.parametrize("value", [0, 4, True, np.True_, 2.0, "2", None, [2]])
def test_what_is_no_whole_number_in_the_range(value):
    assert _validate.whole(value, 1, 3) is None
    with pytest.raises(ValueError, match=r"^steps must be a whole number from 1 to 3, received "):
        _validate.check_whole("steps", value, 1, 3)


def test_the_message_names_the_unit():
    with pytest.raises(ValueError, match=r"^every must be a whole number of epochs >= 1, "):
        _validate.check_whole("every", 0, 1, unit="epochs")


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2), fractions.Fraction(2)])
def test_a_number_of_any_kind_is_a_float(value):
    assert _validate.number(value) == 2.0
    assert type(_validate.number(value)) is float


@pytest.mark.parametrize(
    "value", [True, np.True_, "2", None, math.nan, math.inf, np.float32("inf")]
)
def test_what_is_no_finite_number(value):
    assert _validate.number(value) is None
