"""Draw pictures and the Mermaid diagrams of the pages.

Mermaid is a script of several megabytes from another host. The pages use two kinds of its diagrams:
sequences of messages are drawn here, and states become a table of transitions.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util.docutils import SphinxDirective

from docs.extension import links, svg

_LANE, _ROW, _TOP = 250.0, 34.0, 44.0
_MESSAGE = re.compile(r"(\w+)\s*(-?->>|--?x)\s*(\w+)\s*:\s*(.*)")
_NOTE = re.compile(r"Note over ([\w, ]+?)\s*:\s*(.*)")
_PARTICIPANT = re.compile(r"participant (\w+)(?: as (.*))?")
_TRANSITION = re.compile(r"(\S+) --> (\S+)(?::\s*(.*))?")
_STATE = re.compile(r"(\w+):\s*(.*)")


def setup(app) -> None:
    """Register the directives with Sphinx."""
    app.add_directive("mermaid", Mermaid)
    app.add_directive("picture", Picture)


class Picture(SphinxDirective):
    """Show a generated picture, with the text below it as its caption.

    ```{picture} ring
    Each rank exchanges with both of its neighbors.
    ```
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        path = pathlib.Path(self.env.srcdir) / links.GENERATED / f"{self.arguments[0]}.svg"
        self.env.note_dependency(str(path))
        return [_figure(path.read_text(), self.parse_content_to_nodes())]


class Mermaid(Directive):
    """Draw a sequence diagram; show the transitions of a state diagram; quote any other."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the diagram."""
        kind, *lines = [line.strip() for line in self.content if line.strip()]
        if kind == "sequenceDiagram":
            return [_figure(sequence(lines), [])]
        if kind.startswith("stateDiagram"):
            return [_table(list(transitions(lines)))]
        return [nodes.literal_block("", "\n".join(self.content), language="text")]


def _figure(picture: str, caption: list[nodes.Node]) -> nodes.figure:
    figure = nodes.figure("", nodes.raw("", picture, format="html"))
    if caption:
        figure += nodes.caption("", "", *caption[0].children)
    return figure


def sequence(lines: list[str]) -> str:
    """Return the messages between participants, from top to bottom."""
    names: dict[str, str] = {}
    rows: list[re.Match] = []
    for line in lines:
        if found := _PARTICIPANT.fullmatch(line):
            names[found[1]] = f"{found[1]}: {found[2]}" if found[2] else found[1]
        elif found := _NOTE.fullmatch(line) or _MESSAGE.fullmatch(line):
            rows.append(found)
        else:
            raise ValueError(f"this line of a sequence diagram is not understood: {line!r}")
    lane = {name: _LANE * (index + 0.5) for index, name in enumerate(names)}
    height = _TOP + _ROW * len(rows) + 14
    shapes = [svg.line((x, _TOP - 14), (x, height - 4), "lane") for x in lane.values()]
    for name, x in lane.items():
        shapes.append(svg.box((x - 75, 4), 150, 26, "box"))
        shapes.append(svg.text((x, 17), names[name], "name"))
    for index, row in enumerate(rows):
        shapes += _row(row, lane, _TOP + _ROW * (index + 0.5))
    return svg.picture(_LANE * len(names), height, f"Messages: {'; '.join(lines)}", shapes)


def _row(row: re.Match, lane: dict[str, float], y: float) -> Iterator[str]:
    if row.re is _NOTE:
        over = [lane[name.strip()] for name in row[1].split(",")]
        left, right = min(over), max(over)
        width = max(right - left + 60, 7.0 * len(row[2]) + 20)
        middle = min(max((left + right) / 2, width / 2 + 2), max(lane.values()) + _LANE / 2)
        yield svg.box((middle - width / 2, y - 11), width, 22, "note")
        yield svg.text((middle, y), row[2], "label")
        return
    start, end = lane[row[1]], lane[row[3]]
    kind = "edge dashed" if row[2].startswith("--") else "edge"
    yield svg.text(((start + end) / 2, y - 5), row[4], "label")
    if row[2].endswith("x"):
        yield svg.line((start, y + 8), (end, y + 8), kind)
        yield svg.text((end, y + 8), "✕", "lost")
    else:
        yield svg.arrow((start, y + 8), (end, y + 8), kind)


def transitions(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield `(from, to, why)` of each transition of a state diagram."""
    names = {"[*]": "(start)"}
    for line in sorted(lines, key=lambda line: "-->" in line):  # names first
        if found := _TRANSITION.fullmatch(line):
            start, end, why = found.groups()
            yield names.get(start, start), names.get(end, end), why or ""
        elif found := _STATE.fullmatch(line):
            names[found[1]] = found[2]
        else:
            raise ValueError(f"this line of a state diagram is not understood: {line!r}")


def _table(rows: list[tuple[str, ...]]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in range(3)), cols=3)
    group += nodes.thead("", _cells(("from", "to", "when")))
    group += nodes.tbody("", *map(_cells, rows))
    return nodes.table("", group)


def _cells(row: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in row))
