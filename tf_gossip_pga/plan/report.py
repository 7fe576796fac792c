"""Show a prediction as text and as a picture."""

from __future__ import annotations

import pathlib
from typing import Any

_COLOR, _CHOSEN_COLOR = "#2563a8", "#d9722b"


def table(plan: dict[str, Any]) -> str:
    """Return a prediction as text.

    Args:
      plan: what `predict` returned.

    Returns:
      Several lines: the settings, one row for each algorithm, and the recommendation.
    """
    rows, recommendation = plan["rows"], plan["recommendation"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        *_description(plan["settings"]),
        "",
        f"{'':{width}}  ms a step  speed-up    beta   transient: iid   non-iid",
        *(_line(row, width) for row in rows),
        "",
        f"Recommended: {recommendation['name']}",
        *(f"  - {reason}" for reason in recommendation["reasons"]),
        "Transient stages are orders without their constants, and not all of their forms could be",
        "checked against the paper's text: compare them only with one another.",
    ]
    return "\n".join(lines)


def _description(settings: dict[str, Any]) -> list[str]:
    during = " during the next step's computation" if settings["overlap"] else ""
    lines = [
        "{nodes} workers, {parameters:,} parameters, {wire_dtype} gossips{during}",
        "computation {compute_ms:.4g} ms a step, standard deviation {straggler_ms:.4g} ms",
        "links of {mbit:.4g} Mbit/s, latency {latency_ms:.3g} ms, overhead {overhead_ms:.3g} ms: "
        "a message takes {message_ms:.4g} ms, a global average {average_ms:.4g} ms",
    ]
    return [line.format(**settings, during=during) for line in lines]


def _line(row: dict[str, Any], width: int) -> str:
    forms = {"beta": ".4f", "transient_iid": ".1e", "transient_non_iid": ".1e"}
    beta, iid, non_iid = (
        "-" if row[name] is None else f"{row[name]:{form}}" for name, form in forms.items()
    )
    return (
        f"{row['name']:{width}}  {row['step_ms']:9.1f}  {row['speedup']:7.2f}x  {beta:>6}  "
        f"{iid:>15}  {non_iid:>8}"
    )


def draw(plan: dict[str, Any], path: str | pathlib.Path) -> None:
    """Write a picture of a prediction.

    Args:
      plan: what `predict` returned.
      path: the file to write; its suffix sets the format.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows, settings = plan["rows"], plan["settings"]
    chosen = plan["recommendation"]["name"]
    figure = Figure(figsize=(13, 1.6 + 0.3 * len(rows)), dpi=110, layout="constrained")
    figure.suptitle(
        f"{settings['nodes']} workers, {settings['parameters']:,} parameters, "
        f"{settings['mbit']:.4g} Mbit/s. Recommended: {chosen}",
        fontweight="bold",
    )
    times, orders = figure.subplots(1, 2, sharey=True)
    _draw_times(times, rows, chosen, settings["compute_ms"])
    _draw_orders(orders, rows)
    times.invert_yaxis()
    for axes in (times, orders):
        axes.legend(frameon=False)
        axes.grid(axis="x", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_times(axes: Any, rows: list[dict[str, Any]], chosen: str, compute_ms: float) -> None:
    names = [row["name"] for row in rows]
    colors = [_CHOSEN_COLOR if name == chosen else _COLOR for name in names]
    axes.barh(range(len(rows)), [row["step_ms"] for row in rows], color=colors)
    axes.axvline(compute_ms, color="#777777", ls="--", label="computation")
    axes.set(title="Time of a step", xlabel="milliseconds", yticks=range(len(rows)))
    axes.set_yticklabels(names)


def _draw_orders(axes: Any, rows: list[dict[str, Any]]) -> None:
    fields = {"transient_iid": ("o", "iid data"), "transient_non_iid": ("s", "non-iid data")}
    for field, (marker, label) in fields.items():
        known = [(row[field], place) for place, row in enumerate(rows) if row[field]]
        axes.plot(*zip(*known, strict=True), marker, label=label)
    axes.set(title="Transient stage, in order of size", xscale="log", xlabel="no unit")
