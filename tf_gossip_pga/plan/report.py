"""Show a prediction of `plan.predict` as text and as a picture."""

from __future__ import annotations

import pathlib
from typing import Any

from tf_gossip_pga.plan import recommendation

_COLOR, _CHOSEN_COLOR = "#2563a8", "#d9722b"


def table(plan: dict[str, Any]) -> str:
    """Return a prediction as text.

    Args:
      plan: the result of `plan.predict`.

    Returns:
      Several lines: the settings, one row per algorithm, and the recommendation.
    """
    rows, settings, advice = plan["rows"], plan["settings"], plan["recommendation"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        *_description(settings),
        "",
        f"{'':{width}}  {'a step':^18}  {'times as fast as':^25}  {'':6}  {'transient stage':^18}",
        f"{'':{width}}         ms      MB   Parallel SGD  one machine    beta       iid   non-iid",
        *(_line(row, settings, width) for row in rows),
        "",
        "One machine: it computes the batches of all workers one after another.",
        "Transient stage: steps until an algorithm has caught up with Parallel SGD, in order of",
        "magnitude and without the constant. Compare these numbers only with one another: part of",
        "the formulas could not be checked against the paper's text.",
        "",
        f"Recommended: {advice['name']}",
        f"  {advice['code']}",
        *(f"  - {reason}" for reason in advice["reasons"]),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _description(settings: dict[str, Any]) -> list[str]:
    during = " that overlap with the computation" if settings["overlap"] else ""
    if settings["gossip_every"] > 1:
        during = f" every {settings['gossip_every']} steps{during}"
    lines = [
        "{nodes} workers, {parameters:,} parameters, {wire_dtype} gossips{during}",
        "computation: {compute_ms:.4g} ms a step, standard deviation {straggler_ms:.4g} ms",
        "network: {mbit:.4g} Mbit/s in each direction, latency {latency_ms:.3g} ms, overhead "
        "{overhead_ms:.3g} ms",
        "exchanges: a message takes {message_ms:.4g} ms, a global average {average_ms:.4g} ms",
    ]
    return [line.format(**settings, during=during) for line in lines]


def _line(row: dict[str, Any], settings: dict[str, Any], width: int) -> str:
    beta = "-" if row["beta"] is None else f"{row['beta']:.4f}"
    iid, non_iid = (_order(row[name]) for name in ("transient_iid", "transient_non_iid"))
    over_one = recommendation.over_one_machine(row, settings)
    one = "-" if over_one is None else f"{over_one:.2f}x"
    return (
        f"{row['name']:{width}}  {row['step_ms']:9.1f}  {row['mb_per_step']:6.4g}  "
        f"{row['speedup']:12.2f}x  {one:>11}  {beta:>6}  {iid:>8}  {non_iid:>8}"
    )


def _order(value: float | None) -> str:
    """Return the order of a transient stage as text, or `-` if it is infinite or unknown."""
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "none"


def draw(plan: dict[str, Any], path: str | pathlib.Path) -> None:
    """Write a picture of a prediction.

    Args:
      plan: the result of `plan.predict`.
      path: the file to write. Its suffix determines the format.

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
        axes.legend(frameon=False, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        axes.grid(axis="x", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_times(axes: Any, rows: list[dict[str, Any]], chosen: str, compute_ms: float) -> None:
    names = [row["name"] for row in rows]
    bars = axes.barh(range(len(rows)), [row["step_ms"] for row in rows], color=_COLOR)
    bars[names.index(chosen)].set(color=_CHOSEN_COLOR, label="recommended")
    axes.axvline(compute_ms, color="#777777", ls="--", label="computation alone")
    axes.set(xlabel="time of a step (ms)", yticks=range(len(rows)))
    axes.set_yticklabels(names)


def _draw_orders(axes: Any, rows: list[dict[str, Any]]) -> None:
    fields = {"transient_iid": ("o", "iid data"), "transient_non_iid": ("s", "non-iid data")}
    for field, (marker, label) in fields.items():
        known = [(row[field], place) for place, row in enumerate(rows) if row[field]]
        axes.plot(*zip(*known, strict=True), marker, label=label)
    axes.set(xscale="log", xlabel="transient stage, order of magnitude (no mark: none or unknown)")
