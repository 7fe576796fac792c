"""Extend Sphinx for this project's site.

Contents:
  docstrings: turn the package's plain docstrings into reStructuredText.
  mathml: render equations without a script.
  diagrams: draw the Mermaid diagrams of the pages as SVG, or as a table.
  links: let links to files outside of `docs/` work on the site.
  svg: the few shapes that pictures consist of.
  topologies: pictures of who averages with whom, and how fast ranks agree.
  packages: the map of the package, from its imports.
  facts: `--help` texts, the tree of exceptions, deadlines, pages of the root folder.

The last three write into `docs/_generated/` whenever the site is built.
"""

from __future__ import annotations

import pathlib

from gossip_docs import diagrams, docstrings, facts, links, mathml, packages, topologies


def setup(app) -> dict[str, bool]:
    """Register everything with Sphinx."""
    app.connect("builder-inited", _begin)
    docstrings.setup(app)
    mathml.setup(app)
    diagrams.setup(app)
    links.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _begin(app) -> None:
    if app.builder.name != "doctest":  # follows a build of the site
        generate(pathlib.Path(app.srcdir))


def generate(docs: pathlib.Path) -> None:
    """Write every generated part of the site; leave a file alone where nothing has changed."""
    folder = docs / links.GENERATED
    for name, text in _parts(docs.parent):
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _parts(root: pathlib.Path):
    """Yield the name and the text of each generated file."""
    yield from topologies.parts()
    yield from packages.parts(root)
    yield from facts.parts(root)
