"""Request a timeline from all workers of a job, by two environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tf_gossip_pga import _validate

FILE = "TF_GOSSIP_PGA_TIMELINE"
STEPS = "TF_GOSSIP_PGA_TIMELINE_STEPS"

DEFAULT_STEPS = (100, 120)

# All ranks hold the spans of these steps, and write all of them at the end of each epoch.
_MOST_STEPS = 10_000


def variables(path: str, steps: tuple[int, int]) -> dict[str, str]:
    """Return the environment variables that request a timeline.

    Args:
      path: the file to write. A relative path is relative to the current directory of this process.
      steps: first and last step.
    """
    first, last = steps
    return {FILE: os.path.abspath(path), STEPS: f"{first}:{last}"}


def requested(environment: Mapping[str, str]) -> tuple[str, tuple[int, int]] | None:
    """Return the file and the steps that environment variables request, or None if they do not.

    Args:
      environment: the variables.

    Raises:
      ValueError: the steps are invalid.
    """
    path = environment.get(FILE)
    if not path:
        return None
    text = environment.get(STEPS)
    return path, parsed(STEPS, text) if text else DEFAULT_STEPS


def parsed(name: str, text: str) -> tuple[int, int]:
    """Return the first and the last step that a text such as `"100:120"` contains.

    Args:
      name: what contains the text, for the error message.
      text: the two steps.

    Raises:
      ValueError: the text has a different form, or the steps are out of range.

    Example:
      >>> parsed("--timeline-steps", "100:120")
      (100, 120)
    """
    first, _, last = text.partition(":")
    try:
        steps: object = int(first), int(last)
    except ValueError:
        steps = None
    if steps is None or "_" in text:
        raise ValueError(
            f"{name} must be FIRST:LAST, two whole numbers such as 100:120; received {text!r}."
        )
    return check_steps(name, steps)


def check_steps(name: str, steps: object) -> tuple[int, int]:
    """Return the first and the last step, or raise an error that states what is accepted.

    Args:
      name: name of the argument, for the error message.
      steps: a pair of steps, counted from 1.

    Raises:
      ValueError: `steps` is not a pair of whole numbers with 1 <= first <= last, or contains more
        than 10,000 steps.
    """
    if isinstance(steps, tuple | list) and len(steps) == 2:
        first, last = (_validate.whole(each, 1) for each in steps)
        if first is not None and last is not None and first <= last:
            count = last - first + 1
            if count <= _MOST_STEPS:
                return first, last
            raise ValueError(
                f"{name} must be at most {_MOST_STEPS:,} steps, received {steps!r}, which are "
                f"{count:,}. Choose fewer: 20 are enough to see a pattern, such as (100, 120)."
            )
    raise ValueError(
        f"{name} must be the first and the last step to record, two whole numbers with "
        f"1 <= first <= last, such as (100, 120); received {steps!r}. Steps are counted from 1 "
        "over all epochs."
    )
