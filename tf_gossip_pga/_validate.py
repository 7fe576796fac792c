"""Convert and check user-supplied numbers."""

import math
import numbers
import operator


def whole(value: object, at_least: int, at_most: int | None = None) -> int | None:
    """Return `value` as an `int`, or None if it is not a whole number in the given range.

    A boolean does not count as a whole number, but a NumPy integer does.
    """
    try:
        result = at_least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return result if result >= at_least and (at_most is None or result <= at_most) else None


def number(value: object) -> float | None:
    """Return `value` as a `float`, or None if it is not a finite real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        result = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return result if math.isfinite(result) else None


def check_whole(
    name: str, value: object, at_least: int, at_most: int | None = None, unit: str = ""
) -> int:
    """Return `value` as an `int`, or raise an error that states the accepted range.

    Args:
      name: name of the argument, for the error message.
      value: the argument that the user passed.
      at_least: smallest number accepted.
      at_most: largest number accepted; None for no limit.
      unit: what the number counts, e.g. `"epochs"`, for the error message.

    Returns:
      `value` as an `int`.

    Raises:
      ValueError: `value` is not a whole number from `at_least` to `at_most`.
    """
    result = whole(value, at_least, at_most)
    if result is None:
        accepted = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        of = f" of {unit}" if unit else ""
        raise ValueError(f"{name} must be a whole number{of} {accepted}, received {value!r}.")
    return result
