"""Check messages from other processes, field by field, against declared types.

A message is a JSON object. The names and types of its fields are declared once, by dataclass
annotations or by keyword arguments::

    rank = checked(request, size, rank=Rank)["rank"]
    standing = parse(Standing, answer, size)

If a message does not match its declaration, both functions raise `ValueError` and never another
exception.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Set
from typing import Annotated, Any, TypeVar

from tf_gossip_pga import _validate
from tf_gossip_pga.coordination.status import Absence

Message = dict[str, Any]

Rank = Annotated[int, "rank"]  # 0 … size - 1
Port = Annotated[int, "port"]  # 1 … 65535

_Result = TypeVar("_Result")
_Check = Callable[[Any, int], Any]  # (value, number of workers) -> checked value

_LARGEST = 2**53  # the largest integer that every JSON parser preserves exactly


def checked(message: Mapping[str, Any], size: int, **declared: Any) -> Message:
    """Return the fields of a message, each checked against its type.

    Args:
      message: the message from another process.
      size: number of workers at the start. Every rank is below this number.
      **declared: the type of each field: `Rank`, `Port`, `int` (0 … 2**53), `float` (finite, >= 0),
        `bool`, `str`, `Any`, `X | None`, `list[X]`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`,
        `dict[Rank, X]`, whose keys are decimal strings in JSON, or a dataclass of such fields.

    Raises:
      ValueError: a field is missing, unknown, or of the wrong type.
    """
    checks = {name: _check(each) for name, each in declared.items()}
    return _checked(message, checks, checks.keys(), size)


def parse(kind: type[_Result], message: Mapping[str, Any], size: int) -> _Result:
    """Return a message as an instance of a dataclass, whose annotations declare the fields.

    Fields with a default may be missing.

    Args:
      kind: the dataclass.
      message: as in `checked`.
      size: as in `checked`.

    Raises:
      ValueError: as in `checked`.
    """
    return kind(**_checked(message, *_declared(kind), size))


def parse_answer(
    kind: type[_Result], answer: Mapping[str, Any] | Absence, size: int
) -> _Result | Absence:
    """Parse an answer as `parse` does, but return `Absence.SUSPECTED` if the answer is invalid.

    If `answer` is an `Absence`, because the worker did not answer, return it unchanged.
    """
    if isinstance(answer, Absence):
        return answer
    try:
        return parse(kind, answer, size)
    except ValueError:
        return Absence.SUSPECTED


def _checked(
    message: Mapping[str, Any], checks: Mapping[str, _Check], required: Set[str], size: int
) -> Message:
    if not required <= message.keys() <= checks.keys():
        raise ValueError(f"expected the fields {sorted(checks)}, received {sorted(message)}")
    return {name: checks[name](value, size) for name, value in message.items()}


@functools.cache
def _declared(kind: type) -> tuple[dict[str, _Check], Set[str]]:
    """Return the check of each field of a dataclass, and the fields without a default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    checks = {name: _check(each) for name, each in hints.items()}
    required = {
        each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING
    }
    return checks, required


# ---- One value ----------------------------------------------------------------------------------


def _whole(least: int, most: int, value: Any, size: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, received {value!r}")
    return value


def _rank(value: Any, size: int) -> int:
    if type(value) is int and 0 <= value < size:  # fast path: most checked values are ranks
        return value
    return _whole(0, size - 1, value, size)


def _number(value: Any, size: int) -> float:
    found = _validate.number(value)
    if found is None or found < 0:
        raise ValueError(f"expected a finite number >= 0, received {value!r}")
    return found


def _instance(kind: type, value: Any, size: int) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, received {value!r}")
    return value


def _parsed(kind: type[Any], value: Any, size: int) -> Any:
    return parse(kind, _instance(dict, value, size), size)


_PLAIN: dict[Any, _Check] = {
    Rank: _rank,
    Port: functools.partial(_whole, 1, 65535),
    int: functools.partial(_whole, 0, _LARGEST),
    float: _number,
    bool: functools.partial(_instance, bool),
    str: functools.partial(_instance, str),
    Any: lambda value, size: value,
}


@functools.cache
def _check(declared: Any) -> _Check:
    if declared in _PLAIN:
        return _PLAIN[declared]
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return functools.partial(_parsed, declared)
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return functools.partial(_fixed, tuple(map(_check, arguments)))
    if origin is list or origin is tuple:
        return functools.partial(_items, origin, _check(arguments[0]))
    if origin is dict:
        key, value = arguments
        return functools.partial(_entries, key is Rank, _check(value))
    if origin is typing.Union or origin is types.UnionType:
        (inner,) = (each for each in arguments if each is not type(None))
        return functools.partial(_optional, _check(inner))
    raise TypeError(f"a message cannot have a field of type {declared}")


def _items(kind: type, check: _Check, value: Any, size: int) -> Any:
    return kind([check(each, size) for each in _list(value)])


def _fixed(checks: tuple[_Check, ...], value: Any, size: int) -> tuple[Any, ...]:
    items = _list(value)
    if len(items) != len(checks):
        raise ValueError(f"expected a list of {len(checks)}, received {value!r}")
    return tuple(check(each, size) for check, each in zip(checks, items, strict=True))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, received {value!r}")
    return typing.cast("list[Any]", value)


def _entries(by_rank: bool, check: _Check, value: Any, size: int) -> dict[Any, Any]:
    entries: dict[Any, Any] = _instance(dict, value, size)
    if by_rank:
        entries = {_rank_in(text, size): each for text, each in entries.items()}
    return {key: check(each, size) for key, each in entries.items()}


def _rank_in(text: str, size: int) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"expected a rank in decimal digits, received {text!r}")
    return _rank(int(text), size)


def _optional(check: _Check, value: Any, size: int) -> Any:
    return None if value is None else check(value, size)
