"""Draw the map of the package from its imports, and describe each part from its docstring."""

from __future__ import annotations

import ast
import itertools
import pathlib
from collections.abc import Iterator

from docs.extension import svg

PACKAGE = "tf_gossip_pga"
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 108.0, 34.0, 22.0, 44.0
_BELOW_ALL = "errors, _log, _validate"


def parts(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the content of each generated file."""
    imports = imports_of(root)
    yield "packages.svg", picture(imports)
    yield "packages.md", table(root, imports)
    yield "modules.md", modules(root, imports)


def imports_of(root: pathlib.Path) -> dict[str, set[str]]:
    """Return, for each package, the packages that it imports."""
    folders = sorted(path.parent for path in (root / PACKAGE).glob("*/__init__.py"))
    names = {folder.name for folder in folders}
    return {
        folder.name: {
            part
            for file in folder.rglob("*.py")
            for part in _imported(file)
            if part in names and part != folder.name
        }
        for folder in folders
    }


def _imported(file: pathlib.Path) -> Iterator[str]:
    """Yield the packages of this project that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            yield (node.module or "").split(".")[1]


def levels(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return how many imports lie between each package and the lowest ones, at most."""
    found: dict[str, int] = {}
    while len(found) < len(imports):
        known = {name for name, used in imports.items() if name not in found and used <= set(found)}
        if not known:
            raise ValueError(f"packages import one another: {sorted(set(imports) - set(found))}")
        for name in known:
            found[name] = 1 + max((found[each] for each in imports[name]), default=-1)
    return found


def direct(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without those that others imply."""

    def below(name: str) -> set[str]:
        return imports[name].union(*map(below, imports[name]))

    return {
        name: used - set().union(*(below(each) for each in used)) for name, used in imports.items()
    }


def picture(imports: dict[str, set[str]]) -> str:
    """Return the map: a package imports only from packages below it."""
    chains = _chains(imports)
    rows = _untangled(_rows(imports, chains), chains)
    width = max(_width_of(row) for row in rows) + 2 * _GAP_X
    tops = {}  # the corner of each box, and the place where a line passes a row
    for row, names in enumerate(rows):
        left = (width - _width_of(names)) / 2
        for name in names:
            tops[name] = (left, 10 + row * (_HEIGHT + _GAP_Y))
            left += _WIDTH_OF[isinstance(name, str)] + _GAP_X
    shapes = [shape for chain in chains for shape in _edge(chain, chains, tops)]
    for name in imports:
        x, y = tops[name]
        shapes.append(svg.box((x, y), _WIDTH, _HEIGHT, "box"))
        shapes.append(svg.text((x + _WIDTH / 2, y + _HEIGHT / 2), name, "name"))
    bottom = 10 + len(rows) * (_HEIGHT + _GAP_Y) - 16
    shapes.append(svg.box((_GAP_X, bottom), width - 2 * _GAP_X, _HEIGHT, "box base"))
    shapes.append(svg.text((width / 2, bottom + _HEIGHT / 2), _BELOW_ALL, "name"))
    title = "The packages of tf_gossip_pga, and which one imports which"
    return svg.picture(width, bottom + _HEIGHT + 10, title, shapes)


# A row holds packages, and places `(from, to, level)` where the line of an import passes.
Place = str | tuple[str, str, int]
_WIDTH_OF = {True: _WIDTH, False: 12.0}


def _chains(imports: dict[str, set[str]]) -> list[list[Place]]:
    """Return the places that the line of each import connects, from top to bottom."""
    level = levels(imports)
    return [
        [name, *((name, each, at) for at in range(level[name] - 1, level[each], -1)), each]
        for name, used in direct(imports).items()
        for each in sorted(used)
    ]


def _rows(imports: dict[str, set[str]], chains: list[list[Place]]) -> list[list[Place]]:
    level = levels(imports)
    passed = [place for chain in chains for place in chain[1:-1]]
    return [
        [
            *(name for name in imports if level[name] == at),
            *(place for place in passed if place[2] == at),
        ]
        for at in range(max(level.values()), -1, -1)
    ]


def _untangled(rows: list[list[Place]], chains: list[list[Place]]) -> list[list[Place]]:
    """Return the rows with each place near those that it is connected with."""
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]
    for _ in range(8):
        at = {place: (i + 1) / (len(row) + 1) for row in rows for i, place in enumerate(row)}

        def center(place: Place, at: dict[Place, float] = at) -> float:
            near = [at[b] for a, b in pairs if a == place] + [at[a] for a, b in pairs if b == place]
            return sum(near) / len(near) if near else at[place]

        rows = [sorted(row, key=center) for row in rows]
    return rows


def _width_of(row: list[Place]) -> float:
    return sum(_WIDTH_OF[isinstance(place, str)] + _GAP_X for place in row) - _GAP_X


def _edge(
    chain: list[Place], chains: list[list[Place]], tops: dict[Place, svg.Point]
) -> Iterator[str]:
    """Yield the lines of one import, apart from others at the same boxes."""
    leaving = sorted((each for each in chains if each[0] == chain[0]), key=lambda e: tops[e[1]])
    coming = sorted((each for each in chains if each[-1] == chain[-1]), key=lambda e: tops[e[-2]])
    x, y = tops[chain[0]]
    points = [(x + _share(leaving, chain), y + _HEIGHT)]
    for place in chain[1:-1]:
        x, y = tops[place]
        points += [(x + 6, y), (x + 6, y + _HEIGHT)]
    x, y = tops[chain[-1]]
    points.append((x + _share(coming, chain), y))
    for start, end in itertools.pairwise(points[:-1]):
        yield svg.line(start, end)
    yield svg.arrow(points[-2], points[-1])


def _share(those: list[list[Place]], chain: list[Place]) -> float:
    return _WIDTH * (those.index(chain) + 1) / (len(those) + 1)


def table(root: pathlib.Path, imports: dict[str, set[str]]) -> str:
    """Return a Markdown table: what each package is for, its size, and what it imports."""
    lines = ["| package | what it does | modules | lines | imports |", "|---|---|---|---|---|"]
    order = levels(imports)
    for name in sorted(imports, key=lambda name: (order[name], name)):
        files = sorted((root / PACKAGE / name).rglob("*.py"))
        size = sum(len(file.read_text().splitlines()) for file in files)
        used = ", ".join(f"`{each}`" for each in sorted(imports[name])) or "none"
        doc = _summary(root / PACKAGE / name / "__init__.py")
        lines.append(f"| `{name}` | {doc} | {len(files)} | {size} | {used} |")
    return "\n".join(lines) + "\n"


def modules(root: pathlib.Path, imports: dict[str, set[str]]) -> str:
    """Return a Markdown list of the modules of each package, with their first lines."""
    lines = []
    for name in sorted(imports):
        lines += [f"### {name}", "", "| module | what it does |", "|---|---|"]
        folder = root / PACKAGE / name
        for file in sorted(folder.rglob("*.py")):
            if file.name != "__init__.py":
                lines.append(f"| `{file.relative_to(folder)}` | {_summary(file)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(file: pathlib.Path) -> str:
    """Return the first paragraph of a module's docstring, in one line."""
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(doc.partition("\n\n")[0].split()).replace("|", "\\|")
