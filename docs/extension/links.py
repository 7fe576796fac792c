"""Let links of pages to files outside of `docs/` work on the site.

Pages are read on the site and in the repository. A link to a file of the root folder that has a
page on the site goes there. Other files are not part of the site: their names stay, as code.
"""

from __future__ import annotations

import os
import pathlib
import re

GENERATED = "_generated"  # folder of everything that the build writes

# A file of the root folder -> its page. `contents` writes the generated ones.
PAGES = {
    "README.md": "/index.md",
    "BUILD_NOTES.md": f"/{GENERATED}/pages/decisions.md",
    "CONTRIBUTING.md": f"/{GENERATED}/pages/contributing.md",
    "CHANGELOG.md": f"/{GENERATED}/pages/changelog.md",
    "SECURITY.md": f"/{GENERATED}/pages/security.md",
}

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<path>[^()\s:#]+)(?P<anchor>#[^()\s]*)?\)")


def setup(app) -> None:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    app.connect("include-read", _include)


def _read(app, docname: str, source: list[str]) -> None:
    docs = pathlib.Path(app.srcdir)
    source[0] = rewritten(source[0], (docs / docname).parent, docs)


def _include(app, path: pathlib.Path, docname: str, source: list[str]) -> None:
    docs = pathlib.Path(app.srcdir)
    source[0] = rewritten(source[0], (docs / path).resolve().parent, docs)


def rewritten(text: str, folder: pathlib.Path, docs: pathlib.Path) -> str:
    """Return a page's text with its links as the site needs them.

    Args:
      text: the page.
      folder: the folder from which its relative links start.
      docs: the folder of the site's sources.
    """

    def replaced(match: re.Match) -> str:
        target = pathlib.Path(os.path.normpath(folder / match["path"]))
        if match["path"].startswith("/") or not target.exists():
            return match[0]  # MyST reports what is missing
        anchor = match["anchor"] or ""
        if not target.is_relative_to(docs):
            page = PAGES.get(str(target.relative_to(docs.parent)))
            return f"[{match['text']}]({page}{anchor})" if page else _code(match["text"])
        if target.is_dir():
            return _code(match["text"])
        if folder.is_relative_to(docs):
            return match[0]
        return f"[{match['text']}](/{target.relative_to(docs)}{anchor})"

    return _LINK.sub(replaced, text)


def _code(text: str) -> str:
    return text if "`" in text else f"`{text}`"
