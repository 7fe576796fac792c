"""Draw the curves of a run, and define the common style of this repository's figures."""

import math
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#2563a8", "#d9722b", "#777777"
PALETTE = (BLUE, ORANGE, "#3c9a5f", "#b8424f", "#8466b0", "#b89b2c", GRAY)


def draw(path: pathlib.Path, title: str, results: dict, distances: list[tuple[int, float]]) -> None:
    """Draw loss, validation accuracy and consensus distance against steps, side by side.

    Args:
      path: the file to write.
      title: title of the figure.
      results: content of `results.json`, see `job.results`.
      distances: `[(step, consensus distance), …]`.
    """
    history = results["history"]
    per_epoch = results["steps"] // results["epochs"]
    first_epoch = results["epochs"] - len(history["loss"])  # > 0 in a resumed run
    ends = [per_epoch * (epoch + 1) for epoch in range(first_epoch, results["epochs"])]
    figure = new_figure(title)
    loss, accuracy, consensus = figure.subplots(1, 3)

    loss.set(title="Loss", yscale="log", ylabel="loss (log scale)")
    loss.plot(ends, history["loss"], ".-", color=BLUE, label="training, mean over workers")
    loss.plot(ends, history["val_loss"], ".-", color=ORANGE, label="validation, averaged model")
    if results["unigram_cross_entropy"]:
        loss.axhline(
            results["unigram_cross_entropy"],
            color=GRAY,
            ls="--",
            label="best model without context",
        )
    loss.legend(frameon=False)

    accuracy.set(title="Validation accuracy", ylabel="averaged model")
    accuracy.plot(ends, history["val_accuracy"], ".-", color=ORANGE, label="each epoch")
    end = f"final: {results['val_accuracy']:.4f}"
    accuracy.axhline(results["val_accuracy"], color=GRAY, ls="--", label=end)
    accuracy.legend(frameon=False)

    is_measured = _draw_consensus(consensus, results["workers"], distances)
    for axes in (loss, accuracy, consensus):
        finish(axes, xlabel="step")
    if is_measured:
        consensus.set(xlim=loss.get_xlim())
    figure.savefig(path)


def _draw_consensus(axes: "Axes", workers: int, distances: list[tuple[int, float]]) -> bool:
    """Draw the consensus distances, or a text that explains why there are none.

    Returns:
      Whether there are any distances to draw.
    """
    axes.set(title="Consensus distance")
    measured = [(step, distance) for step, distance in distances if distance > 0]
    if measured:
        axes.plot(*zip(*measured, strict=True), ".", color=BLUE, alpha=0.7)
        axes.set(yscale="log", ylabel="before each global average (log scale)")
        return True
    text = "one worker" if workers == 1 else "0 before every global average"
    if any(math.isnan(distance) for _, distance in distances):
        text = "not finite: the run diverged"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
    axes.set(xticks=[], yticks=[])
    return False


def new_figure(title: str) -> "Figure":
    """Return a wide figure for panels side by side."""
    from matplotlib.figure import Figure  # pyplot would need a display and keep global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(13.5, 4.4), dpi=120, layout=layout)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def finish(axes: "Axes", **labels) -> None:
    """Apply the common style to a panel.

    Args:
      axes: the panel, with everything drawn.
      **labels: further settings for `axes.set`, e.g. `xlabel`.
    """
    axes.set(xlim=(0, None), **labels)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for line in axes.lines:
        line.set(markersize=4, linewidth=1.4)
