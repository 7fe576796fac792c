"""A program in place of ssh, which runs commands for other hosts on this machine."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Drops ssh's options. Then, $host is the host and $* the command.
_HEAD = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    if [ "$1" = -o ]; then shift; fi
    shift
done
host=$1
shift
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, script: str):
    """Put a program `ssh` first in `PATH`, and let started processes import this package.

    Args:
      monkeypatch: restores the environment.
      folder: an existing folder, in which `bin/ssh` is created.
      script: shell commands that run the command `$*` as the host `$host` would.
    """
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(_HEAD + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
