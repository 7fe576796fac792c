"""Draw the pictures of a report with matplotlib.

Pictures contain no names that a user has chosen: these are in the text around them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_gossip_pga.observe import svg, words
from tf_gossip_pga.observe.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more ranks than this, the cells of the heat map are too small for numbers.
NUMBERED = 16

# With more ranks than this, the heat map is a bitmap, because it would consist of too many shapes.
_VECTOR = 40

# Draw an axis logarithmically if its largest value is this many times its smallest.
_WIDE = 20.0


def by_epoch(record: Record, name: str, identifier: str) -> str:
    """Return a picture of a metric by epoch: of training and, if there is one, of validation.

    Args:
      record: the run.
      name: name of the metric in Keras' logs, without `val_`.
      identifier: identifier of the picture in the page.
    """
    found = [
        (label, color, *record.series(log))
        for label, color, log in (
            ("training", svg.TRAINING, name),
            ("validation", svg.VALIDATION, f"val_{name}"),
        )
    ]
    found = [each for each in found if each[2]]
    described = "; ".join(words.curve(label, x, y) for label, _, x, y in found)
    with _figure() as axes:
        for label, color, x, y in found:
            axes.plot(x, y, color=color, label=label, **_marks(x))
        _log_if_wide(axes, [value for *_, y in found for value in y])
        _epochs(axes)
        if len(found) > 1:
            axes.legend()
        return svg.inline(axes, identifier, f"{name} by epoch. {described}.")


def exchanging(record: Record) -> str:
    """Return a picture of the part of each epoch's time that the ranks spent in exchanges."""
    shares = [[100 * each for each in epoch.exchanging] for epoch in record.epochs]
    x = [epoch.number for epoch in record.epochs]
    mean = [sum(each) / len(each) for each in shares]
    described = words.curve("mean over ranks, in percent", x, mean)
    with _figure() as axes:
        if record.size > 1:
            low, high = [min(each) for each in shares], [max(each) for each in shares]
            axes.fill_between(
                x, low, high, color=svg.TRAINING, alpha=0.22, linewidth=0, label="all ranks"
            )
        axes.plot(x, mean, color=svg.TRAINING, label="mean", **_marks(x))
        axes.set(ylabel="% of the epoch's time", ylim=(0, None))
        _epochs(axes)
        if record.size > 1:
            axes.legend()
        return svg.inline(axes, "exchanging", f"Time in exchanges by epoch. {described}.")


def consensus(record: Record) -> str | None:
    """Return a picture of the consensus distances by step, or None if there are none above 0."""
    found = [each for each in record.distances if math.isfinite(each[1]) and each[1] > 0]
    if not found:
        return None
    x, y = zip(*found, strict=True)
    described = words.curve("Consensus distance before global averages", x, y, "step")
    with _figure() as axes:
        axes.plot(x, y, ".", color=svg.TRAINING, markersize=4, alpha=0.8)
        _logarithmic(axes, y)
        axes.set(xlabel="step", xlim=(0, 1.02 * max(record.steps, 1)))
        _changes(axes, record)
        return svg.inline(axes, "consensus", f"{described}.")


def waiting(record: Record) -> str:
    """Return a heat map of the seconds that each rank has waited for each other rank."""
    matrix, size = np.asarray(record.waiting), record.size
    strength = matrix / max(matrix.max(), 1e-9)
    cells = size * min(max(2.6 / size, 0.34), 0.6) if size <= NUMBERED else 5.0  # in inches
    with _figure(max(cells + 1.0, 4.0), cells + 0.6) as axes:
        axes.grid(False)
        axes.spines[:].set_visible(False)
        _cells(axes, strength)
        if size <= NUMBERED:
            _numbers(axes, matrix, strength)
        axes.set(xlabel="for this rank", ylabel="this rank waited", aspect="equal")
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        axes.tick_params(length=0)
        if size <= NUMBERED:
            axes.set(xticks=range(size), yticks=range(size))
        described = " ".join(words.waits(record))
        label = f"Heat map of the seconds that each rank waited for each other rank. {described}"
        return svg.inline(axes, "waiting", label)


def _cells(axes: Axes, strength: np.ndarray):
    """Fill cell (i, j) more strongly, the longer rank i waited for rank j."""
    from matplotlib import colors

    size = len(strength)
    edges = np.arange(size + 1) - 0.5
    # A bitmap cannot take on the colors of the page.
    color = svg.CELL if size <= _VECTOR else "#4a86c5"
    filled = np.array([[colors.to_rgba(color, each) for each in row] for row in strength])
    axes.pcolormesh(edges, edges, filled, rasterized=size > _VECTOR)
    for at in (*edges,) if size <= _VECTOR else (edges[0], edges[-1]):
        axes.plot([at, at], edges[[0, -1]], color=svg.GRID, linewidth=0.6, clip_on=False)
        axes.plot(edges[[0, -1]], [at, at], color=svg.GRID, linewidth=0.6, clip_on=False)


def _numbers(axes: Axes, matrix: np.ndarray, strength: np.ndarray):
    """Write the seconds into the cells."""
    for (i, j), value in np.ndenumerate(matrix):
        text = "" if i == j else _brief(value)
        color = svg.ON_CELL if strength[i, j] > 0.55 else svg.TEXT
        size = 8.5 if len(matrix) <= 8 else 7
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)


def _brief(seconds: float) -> str:
    """Return seconds in at most four characters."""
    if seconds < 0.005:
        return "0"
    if seconds < 0.995:
        return f"{seconds:.2f}"
    if seconds < 9995:
        return f"{seconds:.1f}" if seconds < 99.95 else f"{seconds:.0f}"
    return f"{seconds / 1000:.0f}k"


@contextlib.contextmanager
def _figure(width: float = 4.3, height: float = 2.7) -> Iterator[Axes]:
    """Return a context manager with the axes of a new figure, in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would need a display and keep global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(svg.SETTINGS):
        yield Figure((width, height), layout=ConstrainedLayoutEngine()).subplots()


def _marks(x: Sequence[int]) -> dict:
    """Return how to draw a line with so many points."""
    return {"linewidth": 1.6, "marker": "o", "markersize": 3 if len(x) <= 60 else 0}


def _epochs(axes: Axes):
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch")


def _log_if_wide(axes: Axes, values: Sequence[float]):
    """Use a logarithmic axis if the values differ much, and explain where there are no values."""
    finite = [each for each in values if math.isfinite(each)]
    if not finite:
        axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center")
    elif 0 < min(finite) * _WIDE < max(finite):
        _logarithmic(axes, finite)


def _logarithmic(axes: Axes, values: Sequence[float]):
    """Use a logarithmic axis, with numbers such as 0.01 instead of powers of ten."""
    from matplotlib import ticker

    axes.set(yscale="log", ylabel="log scale")
    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    # Within one or two decades, powers of ten alone would be too few.
    is_narrow = max(values) < 50 * min(values)
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(plain if is_narrow else ticker.NullFormatter())


def _changes(axes: Axes, record: Record):
    """Mark the steps at which workers were lost or joined."""
    for kind, style in (("lost", "--"), ("joined", ":")):
        steps = [each.step for each in record.changes if getattr(each, kind)]
        for index, step in enumerate(steps):
            label = f"worker {kind}" if index == 0 else None
            axes.axvline(step, color=svg.TEXT, linestyle=style, linewidth=1, label=label)
    if record.changes:
        axes.legend()
