"""Some guides quote messages: each message is one of the code, and none has changed since."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("troubleshooting.md", "hangs.md", "doctor.md")
PAGES = [ROOT / "docs" / "guides" / name for name in NAMES]
SOURCES = [
    *sorted((ROOT / "tf_gossip_pga").rglob("*.py")),
    *sorted((ROOT / "job").rglob("*.py")),
    *sorted((ROOT / "models").rglob("*.py")),
    ROOT / "train.py",
]


def _texts(path: pathlib.Path):
    """Yield the strings of a module; `…` stands for what is formatted into them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "…" for part in node.values
            )


TEXTS = "\n".join(" ".join(text.split()) for path in SOURCES for text in _texts(path))
# Bold lines, and the first cells of tables.
QUOTE = re.compile(r"^(?:\*\*|\| )`([^`]+)`(?:\*\*$| \|)", re.MULTILINE)
QUOTED = {page.stem: QUOTE.findall(page.read_text()) for page in PAGES}
# What a message formats, or has as a constant of the code.
VARIES = re.compile(r"…|TF_GOSSIP_PGA_[A-Z]+")


def test_the_pages_quote_messages():
    assert len(QUOTED["troubleshooting"]) > 150
    assert len(QUOTED["hangs"]) > 10
    assert len(QUOTED["doctor"]) > 15


@pytest.mark.parametrize("page", QUOTED)
def test_each_quoted_message_is_one_of_the_code(page):
    missing = [
        quoted
        for quoted in QUOTED[page]
        if any(part.strip(" .,;:()'") not in TEXTS for part in VARIES.split(quoted))
    ]
    assert not missing
