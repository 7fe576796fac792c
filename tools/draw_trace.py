"""Draw a trace of `pga.Timeline` as a picture, with a row for each rank.

python -m tools.draw_trace trace.json timeline.svg
"""

from __future__ import annotations

import json
import pathlib
import sys

# Distinguishable with color blindness (Okabe and Ito, 2008), and on white paper.
COLORS = {
    "compute": "#a9cfe8",
    "gossip": "#0072b2",
    "gossip in the background": "#56b4e9",
    "global average": "#009e73",
    "sync point": "#999999",
    "validation": "#f0e442",
    "checkpoint": "#cc79a7",
    "regrouping": "#d55e00",
}
WAIT = "#e69f00"


def draw(trace: dict, output: pathlib.Path):
    """Write a picture of a trace.

    Args:
      trace: the content of a file that `pga.Timeline` has written.
      output: the file to write, `.svg` or `.png`.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    matplotlib.rcParams["svg.hashsalt"] = "timeline"  # the same file every time
    from matplotlib import patches
    from matplotlib import pyplot as plt

    events = [each for each in trace["traceEvents"] if each["ph"] == "X"]
    ranks = sorted({each["pid"] for each in events})
    figure, axes = plt.subplots(figsize=(11, 1.1 + 0.55 * len(ranks)), layout="constrained")
    used: dict[str, str] = {}
    duration = max(each["ts"] + each["dur"] for each in events) / 1e3
    labeled = -duration  # where the last number of a step stands
    for each in events:
        is_wait = each["cat"] == "wait"
        label = "waiting for another rank" if is_wait else each["name"]
        color = WAIT if is_wait else COLORS.get(each["name"], "#bbbbbb")
        used.setdefault(label, color)
        left, width = each["ts"] / 1e3, each["dur"] / 1e3
        height = 0.44 if is_wait else 0.8
        row = ranks.index(each["pid"])
        axes.barh(row, width, height, left, color=color, edgecolor="white", linewidth=0.4)
        if each["name"] == "compute" and row == 0 and left > labeled + duration / 50:
            labeled = left
            axes.text(left, -0.62, str(each["args"]["step"]), va="center", fontsize=8)
    axes.set_xlim(0, duration)
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set_ylim(len(ranks) - 0.45, -0.85)
    axes.set_xlabel("milliseconds; the numbers above rank 0 are steps")
    axes.spines[["top", "right"]].set_visible(False)
    boxes = [patches.Rectangle((0, 0), 1, 1, color=color) for color in used.values()]
    figure.legend(boxes, list(used), loc="outside upper right", ncols=len(used), frameon=False)
    figure.savefig(output, facecolor="white", metadata={"Date": None} if _is_svg(output) else None)


def _is_svg(path: pathlib.Path) -> bool:
    return path.suffix == ".svg"


def main(arguments: list[str]):
    """Draw the trace of the first argument to the second."""
    source, output = map(pathlib.Path, arguments)
    draw(json.loads(source.read_text()), output)


if __name__ == "__main__":
    main(sys.argv[1:])
