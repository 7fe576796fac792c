"""No word of the project's old vocabulary is left in code, comments, messages and documents."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("tf_gossip_pga", "models", "job", "benchmarks", "tests", "docs", "examples")
KINDS = {".py", ".md", ".toml", ".cff"}

# Words that the project once used, and what it says now. They are also found inside identifiers.
RENAMED = {
    r"guests?": "joining worker",
    r"knock\w*": "probe",
    r"doors?": "address, port",
    r"meetings?": "sync point",
    r"unite[sd]?|uniting": "reconcile",
    r"welcom\w*": "state transfer",
    r"generations?": "view",
    r"summon\w*": "want a view",
    r"mine": "own, or what it is",
    r"clothes|deaf|bereaved|affairs?": "a word for a program, not for a person",
}
# Names in code that are no name for a thing.
NAMES = {"told": "reported, or what it is"}
# Phrases that are not idiomatic; found in prose and messages.
PHRASES = {
    r"go(es|ing|ne)? on|went on": "continue",
    r"those that are left": "the surviving workers",
    r"took different ways": "are in different exchanges",
    r"(is|are|was|were|be) told(?! (apart|from))": "receive, or who reports what",
    r"anew": "again, from the beginning",
    r"in vain": "without effect",
    r"beside": "next to",
    r"(not|no) longer waits|waits no longer": "The deadline has passed",
}


def texts(root: pathlib.Path):
    """Yield the relative path and the text of every file but generated pages and this one."""
    folders = [root / name for name in FOLDERS]
    files = [*root.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]
    for file in sorted(files):
        is_text = file.suffix in KINDS or file.name == "Makefile"
        is_ours = "_generated" not in file.parts and file != pathlib.Path(__file__)
        if is_text and is_ours and file.is_file():
            yield str(file.relative_to(root)), file.read_text()


def prose(text: str) -> str:
    """Return a text on one line: without line ends, comment signs, and quotes between strings."""
    joined = re.sub(r'"?\n[ \t]*(?:#:?[ \t]|>[ \t]|[rf]?")?', " ", text)
    return re.sub(r"[ \t]+", " ", joined)


def words(text: str) -> str:
    """Return a text with spaces between the words of identifiers."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)


def found(path: str, text: str) -> list[str]:
    """Return each old word or phrase in a file, with its context and what to write instead."""
    line = prose(text)
    return [
        f"{path}: … {searched[max(0, match.start() - 60) : match.end() + 60]} … (write: {instead})"
        for patterns, searched in ((RENAMED, words(line)), (PHRASES, line))
        for pattern, instead in patterns.items()
        for match in re.finditer(rf"\b({pattern})\b", searched, re.IGNORECASE)
    ]


def named(path: str, text: str) -> list[str]:
    """Return each name in a module whose last word is one of `NAMES`."""
    kinds = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr", ast.FunctionDef: "name"}
    names = {
        getattr(node, kinds[type(node)])
        for node in ast.walk(ast.parse(text))
        if type(node) in kinds
    }
    return [
        f"{path}: {name} (write: {NAMES[word]})"
        for name in sorted(names)
        if (word := name.rpartition("_")[2]) in NAMES
    ]


def test_no_old_word_is_left():
    checked = dict(texts(ROOT))
    assert len(checked) > 300
    left = [each for path, text in checked.items() for each in found(path, text)]
    modules = {path: text for path, text in checked.items() if path.endswith(".py")}
    left += [each for path, text in modules.items() for each in named(path, text)]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "text",
    [
        "# the guest is admitted",
        "guest_of = 3",
        "class LateGuest:\n    pass",
        "self._knocks += 1",
        "# a word that begins\n# anew",
        '    f"rank {rank} goes "\n    "on without it"',
        "those that\n    are left agree",
        "> the ranks took\n> different ways",
        "What a worker is\ntold.",
    ],
)
def test_an_old_word_is_found(text):
    assert len(found("a file", text)) == 1


@pytest.mark.parametrize(
    "text", ["told = 3", "self._told.append(1)", "def f(told): pass", "def is_told(): pass"]
)
def test_an_old_name_is_found(text):
    assert len(named("a file", text)) == 1


@pytest.mark.parametrize(
    "text",
    ["indoors", "the latest generator", "besides", "told apart", "unit, units", "an ongoing run"],
)
def test_a_longer_word_is_not_an_old_one(text):
    assert not found("a file", text)
