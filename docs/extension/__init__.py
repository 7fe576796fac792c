"""Extend Sphinx for this project's site.

Contents:
  docstrings: turn the package's plain docstrings into reStructuredText.
  mathml: render equations without a script.
  diagrams: draw the Mermaid diagrams of the pages as SVG, or as a table.
  links: let links to files outside of `docs/` work on the site.
  svg: the few shapes that pictures consist of.
  topologies: pictures of who averages with whom, and how fast ranks agree.
  packages: the map of the package, from its imports.
  facts: `--help` texts, exceptions, deadlines, versions.
  contents: the table of contents, and pages of the root folder.

The last four write into `docs/_generated/` whenever the site is built. Only `mathml` and `diagrams`
need Sphinx when they are imported, so that tests without it can use the others.
"""

from __future__ import annotations

import itertools
import pathlib

from docs.extension import contents, docstrings, facts, links, packages, topologies


def setup(app) -> dict[str, bool]:
    """Register everything with Sphinx."""
    from docs.extension import diagrams, mathml

    app.connect("builder-inited", _begin)
    for each in (docstrings, mathml, diagrams, links):
        each.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _begin(app) -> None:
    if app.builder.name != "doctest":  # which follows a build of the site
        generate(pathlib.Path(app.srcdir))


def generate(docs: pathlib.Path) -> None:
    """Write every generated part of the site; leave a file alone if its text is the same."""
    root, folder = docs.parent, docs / links.GENERATED
    parts = itertools.chain(
        topologies.parts(), packages.parts(root), facts.parts(root), contents.parts(root)
    )
    for name, text in parts:
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
