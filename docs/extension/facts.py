"""Write down facts of the product: `--help` texts, exceptions, deadlines, versions."""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

from tf_gossip_pga import errors
from tf_gossip_pga.coordination.timing import Timing

# Name of the generated file -> the command as a reader types it.
COMMANDS = {
    "gossip-pga": "python -m tf_gossip_pga",
    "run": "python -m tf_gossip_pga run",
    "doctor": "python -m tf_gossip_pga doctor",
    "plan": "python -m tf_gossip_pga plan",
    "simulate": "python -m tf_gossip_pga simulate",
    "env": "python -m tf_gossip_pga env",
    "train": "python train.py",
}
_HELP_S = 100.0  # one of them imports TensorFlow


def parts(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the content of each generated file."""
    for name, command in COMMANDS.items():
        yield f"help-{name}.txt", help_of(command, root)
    yield "benchmarks.md", benchmarks(root)
    yield "exceptions.txt", tree(errors.GossipError)
    yield "timing.md", timing()
    yield "requires.md", requires(root)
    yield "pinned.md", pinned(root)


def help_of(command: str, root: pathlib.Path) -> str:
    """Return what a command prints for `--help`, without the paths of this machine."""
    done = subprocess.run(
        [sys.executable, *command.split()[1:], "--help"],
        cwd=root,
        env={
            **os.environ,
            "COLUMNS": "80",
            "PYTHONPATH": str(root),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        capture_output=True,
        text=True,
        timeout=_HELP_S,
    )
    if "--" not in done.stdout:
        raise RuntimeError(f"{command} --help has printed no help:\n{done.stderr}")
    return re.sub(r"(?m)^\S*(?:/\w+/__main__|train)\.py:$", f"{command}:", done.stdout)


def benchmarks(root: pathlib.Path) -> str:
    """Return a Markdown table of the benchmarks that are commands, with their first lines."""
    lines = ["| command | what it measures |", "|---|---|"]
    for file in sorted((root / "benchmarks").glob("*.py")):
        text = file.read_text()
        if '__name__ == "__main__"' in text:
            doc = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            lines.append(f"| `python benchmarks/{file.name}` | {doc} |")
    return "\n".join(lines) + "\n"


_IMPLIED = (Exception, errors.GossipError, errors.ExchangeInterrupted)


def tree(root: type[BaseException]) -> str:
    """Return the public exceptions below `root` as a tree, with their standard base classes."""
    others = [each.__name__ for each in root.__bases__ if each not in _IMPLIED]
    bases = f" ({', '.join(others)})" if others else ""
    lines = [f"{root.__name__}{bases}"]
    below = [each for each in root.__subclasses__() if not _is_internal(each)]
    for each in below:
        last = each is below[-1]
        first, *rest = tree(each).splitlines()
        lines.append(f"{'└── ' if last else '├── '}{first}")
        lines += [f"{'    ' if last else '│   '}{line}" for line in rest]
    return "\n".join(lines) + "\n"


def _is_internal(error: type) -> bool:
    return "Internal" in (inspect.getdoc(error) or "")


def timing() -> str:
    """Return a Markdown table of the deadlines and intervals of the control plane."""
    doc = inspect.getdoc(Timing) or ""
    entries = re.split(r"\n  (?=\w+: )", doc.partition("Attributes:")[2])
    lines = ["| name | value | meaning |", "|---|---|---|"]
    for entry in filter(None, map(str.strip, entries)):
        name, _, meaning = entry.partition(": ")
        value = getattr(Timing(), name)
        unit = " s" if name.endswith("_s") else ""
        lines.append(f"| `{name}` | {value:g}{unit} | {' '.join(meaning.split())} |")
    return "\n".join(lines) + "\n"


def requires(root: pathlib.Path) -> str:
    """Return a Markdown table of what the installed package requires."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    rows = [f"| Python | {project['requires-python']} |"]
    for each in project["dependencies"]:
        name, limit = re.fullmatch(r"([\w-]+)(.*)", each).groups()
        rows.append(f"| {name} | {limit} |")
    return "\n".join(["| package | versions |", "|---|---|", *rows]) + "\n"


def pinned(root: pathlib.Path) -> str:
    """Return a Markdown table of the versions that the tests run with."""
    lines = ["| package | version | for |", "|---|---|---|"]
    for line in (root / "requirements.txt").read_text().splitlines():
        if found := re.fullmatch(r"([^=\s]+)==(\S+)\s*#\s*(.*)", line):
            lines.append("| {} | {} | {} |".format(*found.groups()))
    return "\n".join(lines) + "\n"
