"""The code of the README and of the guides runs as it stands there, with one worker.

A page's Python blocks are one script. Its shell blocks are commands. A block that cannot be
executed has a comment right before it that says why: `<!-- not executed: the reason -->`.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.support import deadlines

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(
    r"^(?P<marked><!-- not executed: [^\n]+ -->\n)?```(?P<kind>python|sh)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

# Run each page's script in a folder of its own, all in one process, since importing Keras is slow.
RUN = """
import os, pathlib, sys
for name in sorted(os.listdir()):
    print("Page:", name, flush=True)
    os.chdir(name)
    exec(compile(pathlib.Path("script.py").read_text(), name, "exec"), {"__name__": "__main__"})
    os.chdir("..")
"""


def _blocks(page: pathlib.Path, kind: str) -> list[str]:
    """Return the code of a page's blocks that are to be executed."""
    found = BLOCK.finditer(page.read_text())
    return [each["code"] for each in found if each["kind"] == kind and not each["marked"]]


def _run(command: list[str], folder: pathlib.Path):
    paths = {
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.slow
def test_python_blocks_run(tmp_path):
    for page in PAGES:
        if blocks := _blocks(page, "python"):
            (tmp_path / page.stem).mkdir()
            (tmp_path / page.stem / "script.py").write_text("\n".join(blocks))
    assert len(list(tmp_path.iterdir())) > 10
    _run([sys.executable, "-c", RUN], tmp_path)


def test_shell_blocks_run(tmp_path):
    commands = [code for page in PAGES for code in _blocks(page, "sh")]
    assert commands
    for command in commands:
        _run(["bash", "-euc", command], tmp_path)
