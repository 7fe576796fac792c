"""Collect the site's table of contents, and the pages that it takes from the root folder."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from docs.extension import links

# The sections of the site, with their pages in order; a pattern stands for all others.
SECTIONS = {
    "Guides": (
        "guides/quickstart",
        "guides/several-machines",
        "guides/ssh",
        "guides/slurm",
        "guides/kubernetes",
        "guides/ray",
        "guides/notebooks",
        "guides/doctor",
        "guides/devices",
        "guides/data",
        "guides/callbacks",
        "guides/tensorboard",
        "guides/report",
        "guides/timeline",
        "guides/checkpoints",
        "guides/lost-workers",
        "guides/hangs",
        "guides/troubleshooting",
        "guides/choosing-h-and-graph",
        "guides/learning-rate",
        "guides/overlap-and-compression",
        "guides/outer-optimizers",
        "guides/planning",
        "guides/simulating",
        "guides/train-py",
        "guides/*",
    ),
    "Concepts": ("concepts/algorithm", "concepts/exchanges", "concepts/failures", "protocol"),
    "Reference": (
        "reference/api",
        "reference/topologies",
        "reference/plan",
        "reference/simulate",
        "reference/launch",
        "reference/commands",
        "reference/environment",
        "reference/logs",
        "reference/exceptions",
        "reference/versions",
        "reference/glossary",
        "reference/*",
    ),
    "Results": ("results/*",),
    "Development": ("development/architecture", "development/*"),  # then those of the root folder
}

# The records of decisions belong to the page of their index, BUILD_NOTES.md.
_RECORDS = """
```{toctree}
:hidden:
:glob:

/decisions/*
```
"""


def parts(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the content of each generated file."""
    pages = dict(root_pages())
    yield from pages.items()
    found = {name: _found(root / "docs", patterns) for name, patterns in SECTIONS.items()}
    found["Development"] += [f"{links.GENERATED}/{name.removesuffix('.md')}" for name in pages]
    yield "contents.md", "\n".join(_toctree(*each) for each in found.items() if each[1])


def root_pages() -> Iterator[tuple[str, str]]:
    """Yield a page for each document of the root folder, except for the README."""
    for document, page in links.PAGES.items():
        name = page.removeprefix(f"/{links.GENERATED}/")
        if name != page:
            has_records = document == "BUILD_NOTES.md"
            yield name, f"```{{include}} ../../../{document}\n```\n" + _RECORDS * has_records


def _found(docs: pathlib.Path, patterns: tuple[str, ...]) -> list[str]:
    """Return the pages that match, each once."""
    files = [file for each in patterns for file in sorted(docs.glob(f"{each}.md"))]
    return list(dict.fromkeys(str(file.relative_to(docs).with_suffix("")) for file in files))


def _toctree(caption: str, pages: list[str]) -> str:
    lines = ["```{toctree}", f":caption: {caption}", ":maxdepth: 1", ""]
    return "\n".join([*lines, *(f"/{page}" for page in pages), "```", ""])
