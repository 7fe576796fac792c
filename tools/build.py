"""Build the wheel and the sdist of the checkout. `make build` writes them to `dist/`.

Two builds of one commit with the same Python give the same bytes. The files that git tracks are
built from a copy, with the time of the last commit. Nothing is downloaded: requirements.txt has
the build backend.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def tracked(root: pathlib.Path) -> list[str]:
    """Return the names of all files that git tracks, relative to `root`."""
    return _git(root, "ls-files", "-z").split("\0")[:-1]


def build(root: pathlib.Path, output: pathlib.Path) -> list[pathlib.Path]:
    """Build the sdist, and the wheel from the sdist.

    Args:
      root: a git checkout.
      output: the folder for both files. Older files with the same names are replaced.

    Returns:
      The paths of the wheel and of the sdist.

    Raises:
      subprocess.CalledProcessError: `root` is no git checkout, or the build failed.
    """
    epoch = int(_git(root, "log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as name:
        sources, built = pathlib.Path(name, "sources"), pathlib.Path(name, "dist")
        for file in tracked(root):
            copy = sources / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, copy)
            copy.chmod(_mode(copy.stat().st_mode))
        command = ("-m", "build", "--no-isolation", "--outdir", str(built), str(sources))
        subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
            stdout=subprocess.DEVNULL,
            umask=0o022,
            check=True,
        )
        (sdist,) = built.glob("*.tar.gz")
        _normalize(sdist, epoch)
        output.mkdir(parents=True, exist_ok=True)
        return [pathlib.Path(shutil.copy(file, output)) for file in sorted(built.iterdir())]


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _mode(mode: int) -> int:
    """Return the permissions that git keeps: whether the owner may execute a file."""
    return 0o755 if mode & 0o100 else 0o644


def _normalize(sdist: pathlib.Path, epoch: int) -> None:
    """Remove the time of the build and the user from an sdist. setuptools leaves both in it."""
    with tarfile.open(sdist) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        contents = [(member, file.read() if file else None) for member, file in members]
    with (
        sdist.open("wb") as file,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=file) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for old, content in sorted(contents, key=lambda each: each[0].name):
            new = tarfile.TarInfo(old.name)
            new.type, new.size, new.mtime = old.type, old.size, epoch
            new.mode = _mode(old.mode)
            archive.addfile(new, None if content is None else io.BytesIO(content))


if __name__ == "__main__":
    for path in build(ROOT, ROOT / "dist"):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(ROOT))
