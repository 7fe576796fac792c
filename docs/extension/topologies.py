"""Draw the topologies of `pga.topology`, and compute how fast ranks agree on each."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np

from docs.extension import svg
from tf_gossip_pga.algorithm import rounds, topology
from tf_gossip_pga.algorithm.graph import Topology

RANKS = 8  # of a picture
SQUARE = 16  # of the pictures of a grid and a torus
_OTHER_RANKS = {"grid": SQUARE, "torus": SQUARE, "base_2": 6}  # of a picture
SIZES = (4, 8, 12, 16, 32, 48, 64)  # of the table
AGREED = 0.01  # the share of the disagreement that may be left

_PANEL = 190.0  # pixels
_NODE = 12.0
_ON_A_GRID = ("grid", "torus")
# Curves that others cover: one_peer_exponential's covers base_2's and hypercube's, and
# static_exponential's covers the torus's.
_OVERLAPPING = {
    "hypercube": {"linewidth": 3.2, "zorder": 2.2},
    "base_2": {"linewidth": 4.8, "zorder": 2.1},
    "torus": {"linestyle": (0, (4, 4)), "zorder": 2.8},
}


def parts() -> Iterator[tuple[str, str]]:
    """Yield the name and the content of each generated file."""
    for name, build in topology.BY_NAME.items():
        yield f"{name}.svg", picture(build(_OTHER_RANKS.get(name, RANKS)))
    yield "agreement.svg", agreement(SQUARE)
    yield "agreement.md", table()


# ---- One picture for each topology --------------------------------------------------------------


def picture(graph: Topology) -> str:
    """Return the rounds of a topology side by side; arrows show what is sent."""
    positions = _on_a_grid(graph) if graph.name in _ON_A_GRID else _on_a_circle(graph.size)
    several = graph.rounds > 1
    height = _PANEL + 18 * several
    shapes = []
    for round in range(graph.rounds):
        left = round * _PANEL
        places = [(x + left, y) for x, y in positions]
        shapes += _edges(graph, round, places)
        for rank, place in enumerate(places):
            shapes += [svg.circle(place, _NODE, "node"), svg.text(place, str(rank), "rank")]
        if several:
            at = (left + _PANEL / 2, _PANEL + 4)
            shapes.append(svg.text(at, f"round {round}", "label"))
    title = f"{graph.name} of {graph.size} ranks"
    return svg.picture(graph.rounds * _PANEL, height, title, shapes)


def _edges(graph: Topology, round: int, places: list[svg.Point]) -> Iterator[str]:
    weights = graph.weights(round)
    is_symmetric = np.array_equal(weights, weights.T)
    for receiver, sender in zip(*np.nonzero(weights), strict=True):
        if receiver == sender or (is_symmetric and sender > receiver):
            continue
        start, end = svg.shortened(places[sender], places[receiver], _NODE + 1)
        bend = _wrap(graph, sender, receiver)
        yield svg.line(start, end, bend=bend) if is_symmetric else svg.arrow(start, end)


def _wrap(graph: Topology, sender: int, receiver: int) -> float:
    """Return how far an edge around the torus bends, which would cover others as a line."""
    if graph.name != "torus":
        return 0.0
    columns = rounds.most_square(graph.size)[1]
    apart = max(
        abs(sender // columns - receiver // columns), abs(sender % columns - receiver % columns)
    )
    sign = 1 if sender // columns == receiver // columns else -1
    return 17.0 * sign if apart > 1 else 0.0


def _on_a_circle(size: int) -> list[svg.Point]:
    radius, center = _PANEL / 2 - 2 * _NODE, _PANEL / 2
    angles = [2 * math.pi * rank / size - math.pi / 2 for rank in range(size)]
    return [(center + radius * math.cos(a), center + radius * math.sin(a)) for a in angles]


def _on_a_grid(graph: Topology) -> list[svg.Point]:
    rows, columns = rounds.most_square(graph.size)
    step = (_PANEL - 5 * _NODE) / (max(rows, columns) - 1)
    places = (divmod(rank, columns) for rank in range(graph.size))
    return [(2.5 * _NODE + step * column, 2.5 * _NODE + step * row) for row, column in places]


# ---- How fast ranks agree -----------------------------------------------------------------------


def left_over(graph: Topology, gossips: int) -> Iterator[float]:
    """Yield the largest share of the disagreement left after 0, 1, … gossips.

    It is the spectral norm of W_k … W_1 - 11'/n.
    """
    product = np.eye(graph.size)
    for gossip in range(gossips + 1):
        norm = float(np.linalg.norm(product - 1 / graph.size, 2))
        yield 0.0 if norm < 1e-12 else norm
        product = graph.weights(gossip) @ product


def agreement(size: int) -> str:
    """Return curves of what is left of the disagreement, for each topology."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    foreground = "#010203"  # replaced by the color of the page's text
    gossips, floor = 20, 1e-3
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "agreement",
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
            foreground,
        ),
    }
    with rc_context(settings):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        for name, build in topology.BY_NAME.items():
            share = np.maximum(list(left_over(build(size), gossips)), floor / 10)
            style = _OVERLAPPING.get(name, {})
            axes.plot(share, label=name, **{"linewidth": 1.6, "zorder": 2.5, **style})
        axes.set(
            yscale="log",
            ylim=(floor, 1.2),
            xlim=(0, gossips),
            xticks=range(0, gossips + 1, 4),
            xlabel="gossips",
            ylabel="disagreement left, worst case",
        )
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(foreground, "currentColor")
    title = f"How fast {size} ranks agree on each topology"
    return text.replace("<svg", f'<svg class="picture" role="img" aria-label="{title}"', 1)


def table() -> str:
    """Return a Markdown table: messages in a step, and gossips until the ranks agree."""
    lines = [
        "| topology | a step sends | " + " | ".join(f"n = {size}" for size in SIZES) + " |",
        "|---" * (2 + len(SIZES)) + "|",
    ]
    for name, build in topology.BY_NAME.items():
        sizes = [n for n in SIZES if name != "hypercube" or n & (n - 1) == 0]
        graphs = {size: build(size) for size in sizes}
        needed = {size: _gossips_needed(graph) for size, graph in graphs.items()}
        cells = [needed.get(size, "—") for size in SIZES]
        sent = [_messages(graph) for graph in graphs.values()]
        span = str(sent[0]) if sent[0] == sent[-1] else f"{sent[0]} … {sent[-1]}"
        lines.append(f"| `{name}` | {span} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _messages(graph: Topology) -> int:
    """Return the most messages that a rank sends in one round."""
    sent = [np.bincount(each.senders, minlength=graph.size).max() for each in graph.cycle]
    return int(max(sent))


def _gossips_needed(graph: Topology, most: int = 20_000) -> str:
    if graph.beta > 1 - 1e-9:
        return "never"
    found = next(k for k, left in enumerate(left_over(graph, most)) if left <= AGREED)
    return str(found)
