"""Turn matplotlib figures into SVG that is part of a page and takes on the colors of the page."""

from __future__ import annotations

import html
import importlib.util
import io
import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib knows no colors that depend on the reader's settings. Figures are drawn in these
# colors, which nobody would choose, and the page's colors then replace them.
TEXT, GRID, TRAINING, VALIDATION, CELL, ON_CELL = (
    "#010203",
    "#020304",
    "#030405",
    "#040506",
    "#050607",
    "#060708",
)
_COLORS = {
    TEXT: "currentColor",
    GRID: "var(--grid)",
    TRAINING: "var(--training)",
    VALIDATION: "var(--validation)",
    CELL: "var(--cell)",
    ON_CELL: "var(--on-cell)",
}

SETTINGS: dict[Any, Any] = {  # of matplotlib
    "svg.hashsalt": "report",  # the same figure always becomes the same text
    "svg.fonttype": "none",  # text stays text, in the page's font
    "figure.facecolor": "none",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.color": GRID,
    "ytick.labelcolor": TEXT,
}


def check_matplotlib():
    """Raise `ImportError` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "pga.Report draws with matplotlib, which is not installed. Install it: "
            'pip install "tf_gossip_pga[plot]"'
        )


def inline(axes: Axes, name: str, description: str) -> str:
    """Return a figure as an `<svg>` element for a page.

    Args:
      axes: the axes of the figure, drawn in the colors of this module.
      name: an identifier that no other picture of the page has.
      description: what the picture shows, for readers who cannot see it.
    """
    file = io.StringIO()
    cast("Figure", axes.figure).savefig(file, format="svg", dpi=200)  # dots: only of bitmaps inside
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{html.escape(description)}" {box and box[0]}>'
    text = opening + text[text.index(">") + 1 :]
    # The ids of several pictures on a page must differ.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for drawn, shown in _COLORS.items():
        text = text.replace(drawn, shown)
    return text.strip()
