"""Format a comparison of methods as text."""

from __future__ import annotations

import math
from typing import Any

from tf_gossip_pga.simulate import curves


def table(content: dict[str, Any]) -> str:
    """Return a table with one line per method, and an explanation of its columns.

    Args:
      content: the content of the JSON file that `python -m tf_gossip_pga.simulate` writes.

    Returns:
      Text with three columns: the distance from the minimum, f - f*, after the last step with its
      standard error; the transient stage in steps; and the number of global averages.
    """
    methods, steps, trials = content["methods"], content["evaluated_at"], content["trials"]
    lines = [f"{'':14}{'f - f* at the end':>24}{'transient stage':>20}{'global averages':>18}"]
    has_diverged = False
    for name, each in methods.items():
        end, error = each["mean"][-1], each["standard_error"][-1]
        result = f"{end:.3e}" + f" ± {error:.0e}" * (trials > 1)
        if not math.isfinite(end):
            has_diverged, result = True, "diverged"
        stage = "-" if name == "parallel" else _stage(each["transient"], steps)
        lines.append(f"{name:14}{result:>24}{stage:>20}{each['global_averages']:>18.0f}")
    lines += ["", *_notes(content["transient_factor"], steps, trials)]
    if has_diverged:
        lines.append(f"Try a smaller --step_size than {content['step_size']:g}.")
    return "\n".join(lines)


def _stage(transient: int | None, steps: list[int]) -> str:
    """Return a transient stage as text."""
    if transient is None or not curves.is_reached(transient, steps[-1]):
        return "not reached"
    at_first = transient == steps[0] > 1  # it may have ended before the first measurement
    return f"at most {transient}" if at_first else str(transient)


def _notes(factor: float, steps: list[int], trials: int) -> list[str]:
    """Explain what the columns of the table show, and what they do not."""
    every = "step" if steps[0] == 1 else f"{steps[0]} steps"
    notes = [
        f"Transient stage: the first step from which f - f* stays within {factor:g} times that of",
        f'Parallel SGD, measured every {every}; "not reached" if that does not hold for the last',
        "tenth of the run.",
    ]
    if trials > 1:
        return [f"f - f*: mean over {trials} trials ± its standard error.", *notes]
    return [
        *notes,
        "One trial has no standard error: the differences may be chance. Use --trials=10 to rank",
        "the methods.",
    ]
