"""Draw the few shapes that the pictures of this site consist of, as SVG inside the page.

Colors are classes of `_static/gossip.css`, so that pictures follow the light and the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape

Point = tuple[float, float]

_HEAD = 7.0  # length of an arrow's head


def picture(width: float, height: float, title: str, shapes: Iterable[str]) -> str:
    """Return a picture that is `width` pixels wide, and a little narrower on a narrow screen."""
    return (
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px; '
        f'min-width: {0.8 * width:g}px" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def circle(center: Point, radius: float, kind: str) -> str:
    """Return a circle of a class of the style sheet."""
    return f'<circle class="{kind}" cx="{center[0]:.1f}" cy="{center[1]:.1f}" r="{radius:g}"/>'


def box(corner: Point, width: float, height: float, kind: str) -> str:
    """Return a rectangle with round corners."""
    return (
        f'<rect class="{kind}" x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="6"/>'
    )


def text(at: Point, content: str, kind: str = "label", anchor: str = "middle") -> str:
    """Return one line of text, centered vertically."""
    return (
        f'<text class="{kind}" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" '
        f'dominant-baseline="central">{escape(content)}</text>'
    )


def line(start: Point, end: Point, kind: str = "edge", bend: float = 0.0) -> str:
    """Return a line; `bend` moves its middle to the left by so many pixels."""
    if not bend:
        path = f"M {start[0]:.1f} {start[1]:.1f} L {end[0]:.1f} {end[1]:.1f}"
    else:
        middle = _middle(start, end, 2 * bend)
        path = (
            f"M {start[0]:.1f} {start[1]:.1f} Q {middle[0]:.1f} {middle[1]:.1f} "
            f"{end[0]:.1f} {end[1]:.1f}"
        )
    return f'<path class="{kind}" d="{path}"/>'


def arrow(start: Point, end: Point, kind: str = "edge", bend: float = 0.0) -> str:
    """Return a line with a head at its end."""
    tail = start if not bend else _middle(start, end, 2 * bend)
    angle = math.atan2(end[1] - tail[1], end[0] - tail[0])
    base = (end[0] - _HEAD * math.cos(angle), end[1] - _HEAD * math.sin(angle))
    corners = [
        end,
        *(
            (
                end[0] - _HEAD * math.cos(angle + turn),
                end[1] - _HEAD * math.sin(angle + turn),
            )
            for turn in (0.42, -0.42)
        ),
    ]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'{line(start, base, kind, bend)}<polygon class="{kind} head" points="{points}"/>'


def shortened(start: Point, end: Point, by: float) -> tuple[Point, Point]:
    """Return both ends moved toward each other, for example out of the circles around them."""
    length = math.dist(start, end) or 1.0
    x, y = (end[0] - start[0]) * by / length, (end[1] - start[1]) * by / length
    return (start[0] + x, start[1] + y), (end[0] - x, end[1] - y)


def _middle(start: Point, end: Point, bend: float) -> Point:
    length = math.dist(start, end) or 1.0
    x, y = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    return (start[0] + end[0]) / 2 + y * bend, (start[1] + end[1]) / 2 - x * bend
