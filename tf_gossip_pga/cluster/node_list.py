"""Expand Slurm's compressed lists of nodes, such as `"a[08-10,12],login"`."""

from __future__ import annotations

import itertools
import re

# A name with any number of bracketed parts, up to a comma outside brackets: "rack1n[01-03,7]-ib".
_NAME = re.compile(r"(?:[A-Za-z0-9_.-]|\[[0-9,-]+\])+")
_LIST = re.compile(f"{_NAME.pattern}(?:,{_NAME.pattern})*")
_PART = re.compile(r"\[([0-9,-]+)\]")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")

_MOST = 100_000  # a list with this many nodes is an error


def expanded(text: str) -> list[str]:
    """Return the names of all nodes in a list.

    Raises:
      ValueError: the text is not a list of nodes, or has too many nodes.

    Example:
      >>> expanded("a[08-10,12],login")
      ['a08', 'a09', 'a10', 'a12', 'login']
    """
    nodes: list[str] = []
    if not _LIST.fullmatch(text):
        raise ValueError(
            f"the list of nodes {text[:100]!r} has an unknown form (expected one such as "
            "'a[08-10,12],login')"
        )
    for match in _NAME.finditer(text):
        # Names and brackets alternate: ["a", "08-10,12", ""].
        pieces = _PART.split(match[0])
        choices = [_numbers(each) if place % 2 else [each] for place, each in enumerate(pieces)]
        nodes += map("".join, itertools.islice(itertools.product(*choices), _MOST))
        if len(nodes) >= _MOST:
            raise ValueError(f"the list of nodes {text[:100]!r} has too many nodes")
    return nodes


def _numbers(text: str) -> list[str]:
    """Return the numbers of `"08-10,12"` with their leading zeros."""
    numbers: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise ValueError(
                f"the range {part!r} in a list of nodes has an unknown form (expected one such as "
                "'08-10' or '12')"
            )
        last = min(int(match[2] or match[1]), int(match[1]) + _MOST)
        numbers += [str(each).zfill(len(match[1])) for each in range(int(match[1]), last + 1)]
    return numbers
