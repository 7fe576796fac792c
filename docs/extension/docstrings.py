"""Turn this project's docstrings into what Sphinx reads.

The docstrings are plain text for `help()`: names and code in single backticks, blocks of code and
equations indented by four spaces or after "::", Google's sections. Here they become
reStructuredText, before napoleon reads the sections.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Iterator

from docs.extension import links

_SECTION = re.compile("(Args|Attributes|Raises|Returns|Yields|Notes?|References|Examples?):$")
_RULE = re.compile(r" *=+( +=+)+")  # of a table
_ITEM = re.compile(r"(\s*)(\w+): ")
_PAGE = re.compile(rf"docs/[\w/-]+\.md|\b({'|'.join(map(re.escape, links.PAGES))})")
_BULLETS = ("- ", "1. ", "2. ", "3. ", "4. ")
_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")
_CODE = re.compile(r"``[^`]+``|`([^`]+)`(\w?)")


def setup(app) -> None:
    """Register with Sphinx, ahead of napoleon."""
    from sphinx.domains.python import PyObject

    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as in the docstrings; Sphinx writes "Variables"
    app.connect("autodoc-process-docstring", _process, priority=400)


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = to_rst("\n".join(lines)).splitlines()


def to_rst(text: str) -> str:
    """Return a docstring as reStructuredText with Google's sections."""
    return "\n".join(_converted(list(_blocks(text))))


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield paragraphs, and indented blocks with the blank lines in them."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _converted(blocks: list[list[str]]) -> Iterator[str]:
    context, is_literal = 0, False  # indentation of the text around; whether it ended with "::"
    while blocks:
        block = blocks.pop(0)
        indent = _indent(block[0])
        if block[0] == "Contents:":  # the reference has a list of its own
            continue
        if is_literal or indent >= context + 4 or _is_laid_out(block, context):
            while blocks and _indent(blocks[0][0]) >= indent:
                block += ["", *blocks.pop(0)]
            is_literal = False
            yield from _code(block, context)
            continue
        is_literal = block[-1].endswith("::")
        if is_literal:  # becomes a block of code of a language
            block[-1] = block[-1][:-1]
        context = min(map(_indent, block))
        if _SECTION.match(block[0]) and len(block) > 1:
            context = _indent(block[1])
        yield from _text(block)
        yield ""


def _text(block: list[str]) -> list[str]:
    """Return a paragraph, a list, a table or a section."""
    if any(_RULE.fullmatch(line) for line in block):  # columns must not move
        return [re.sub(r"(?<=  )(?=\(\d\)$)", r"\\", line) for line in block]  # no list
    examples = next((i for i, line in enumerate(block) if line.lstrip().startswith(">>>")), None)
    marked = _inline("\n".join(_listed(_returned(block[:examples])))).splitlines()
    return marked if examples is None else [*marked, *block[examples:]]


def _is_laid_out(block: list[str], context: int) -> bool:
    """Return whether a block is indented and has columns, as of a table."""
    return _indent(block[0]) > context == 0 and any("   " in line.strip() for line in block)


def _code(block: list[str], context: int) -> Iterator[str]:
    text = textwrap.dedent("\n".join(block))
    if not text.startswith(">>>"):
        text = f".. code-block:: {_language(text)}\n\n{textwrap.indent(text, '    ')}"
    yield from [*textwrap.indent(text, " " * context).splitlines(), ""]


def _language(text: str) -> str:
    if text.startswith("python "):
        return "sh"
    try:
        ast.parse(text.replace("…", "..."))
    except SyntaxError:
        return "text"
    return "text" if "<-" in text else "python"


def _returned(block: list[str]) -> list[str]:
    """Return the block, where it is `Returns:`, as a field: napoleon would look for a type."""
    if block[:1] != ["Returns:"]:
        return block
    first, *rest = textwrap.dedent("\n".join(block[1:])).splitlines()
    return [f":returns: {first}", *(f"    {line.strip()}" for line in rest)]


def _listed(block: list[str]) -> Iterator[str]:
    """Yield the lines of a block; a list that follows text without a blank line becomes a list."""
    if not block or _SECTION.match(block[0]) or block[0].lstrip().startswith((":", *_BULLETS)):
        yield from block
        return
    yield block[0]
    base, in_list = _indent(block[0]), False
    for before, line in itertools.pairwise(block):
        item = _ITEM.match(line)
        if line.lstrip().startswith(_BULLETS):
            yield from ([] if in_list else [""])
            in_list = True
            yield line
        elif item and len(item[1]) == base + 2 and (in_list or _indent(before) == base):
            yield from ([] if in_list else [""])
            in_list = True
            yield f"{' ' * base}- ``{item[2]}``: {line[item.end() :]}"
        else:
            yield f"{' ' * (base + 2)}{line.strip()}" if in_list else line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _inline(text: str) -> str:
    """Return text with literals as reStructuredText marks them, and nothing else marked up."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escaped(text[end : match.start()]), _literal(match)]
        end = match.end()
    return "".join([*parts, _escaped(text[end:])])


def _literal(match: re.Match) -> str:
    code, following = match[1], match[2]
    if code is None:  # marked up already
        return match[0]
    separated = f"\\ {following}" if following else ""
    if code.startswith("pga.") and _NAME.fullmatch(code):
        return f":py:obj:`{code} <tf_gossip_{code.removesuffix('()')}>`{separated}"
    return f"`{code}`{separated}" if _NAME.fullmatch(code) else f"``{code}``{separated}"


def _escaped(text: str) -> str:
    """Return text in which `|`, a single `*` and a trailing `_` mean themselves; link to pages."""
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text.replace("|", r"\|"))
    text = re.sub(r"(?m)(?<![\s*\\])\*(?!\*)|(?<=\S )\*(?=[^\s*])", r"\\*", text)
    return _PAGE.sub(lambda match: f":doc:`{_page(match[0])}`", text)


def _page(path: str) -> str:
    """Return the page of the site for a document of the repository."""
    return links.PAGES.get(path, path.removeprefix("docs")).removesuffix(".md")
