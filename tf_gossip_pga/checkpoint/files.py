"""Store checkpoints as numbered folders of files. A folder is complete once it has a manifest.

The layout::

    DIRECTORY/
      cluster.json                                     of the current run, not of a checkpoint
      checkpoint-000007/
        model.weights.h5, rank-0.npz, rank-1.npz, …    written by several processes
        manifest.json                                  written last, by one of them

The manifest holds the size and SHA-256 of every other file, and its own SHA-256. Each file is
written under a temporary name, synced to disk, and then renamed. Complete checkpoints therefore
stay intact no matter when a process dies. A dead process may leave a folder without a manifest.
Readers ignore such a folder, and the next writer removes it.

The processes may use different disks. A process that finds only its own files in a folder checks
them against the manifest that another process sends. Numbers are never reused, so no complete
checkpoint is overwritten. Links are not followed, and only regular files are opened (`regular`).

This module does not interpret the contents of the files.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection

from tf_gossip_pga.checkpoint import regular
from tf_gossip_pga.errors import CheckpointError

_FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointFiles:
    """The checkpoints of one directory.

    Args:
      directory: path of the directory. It is created if it does not exist.
      keep: number of complete checkpoints that `prune` keeps, >= 1.
      check: function that raises `CheckpointError` if this process may not write or remove files
        (`ownership`). It is called before each change. Default: no check.

    Attributes:
      directory: path of the directory.

    Raises:
      OSError: the directory cannot be created or written.

    Example:
        >>> import tempfile
        >>> store = CheckpointFiles(tempfile.mkdtemp(), keep=1)
        >>> number = store.unused_number()
        >>> files = {"a.txt": store.write(number, "a.txt", lambda path: path.write_text("a"))}
        >>> store.finish(number, {"epoch": 3}, files)
        >>> store.prune(number)
        >>> store.complete(), store.read(number)["epoch"]
        ([1], 3)
        >>> store.checked(number, "a.txt", files).read_text()
        'a'
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep: int,
        check: Callable[[], object] = lambda: None,
    ):
        """Create the directory if it does not exist."""
        self.directory = pathlib.Path(directory)
        self._keep = keep
        self._check = check
        self.directory.mkdir(parents=True, exist_ok=True)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")

    def folder(self, number: int) -> pathlib.Path:
        """Return the path of a checkpoint's folder."""
        return self.directory / f"checkpoint-{number:06d}"

    def numbers(self) -> list[int]:
        """Return the numbers of all checkpoints, complete or not, newest first."""
        folders = {each: self.folder(each) for each in self._names()}
        return [each for each, path in folders.items() if path.is_dir() and not path.is_symlink()]

    def complete(self) -> list[int]:
        """Return the numbers of all checkpoints with a manifest, newest first.

        Folders and manifests that are links count too, but `read` rejects them.
        """
        return [each for each in self._names() if os.path.lexists(self.folder(each) / MANIFEST)]

    def unused_number(self) -> int:
        """Return one more than the highest checkpoint number in the directory."""
        return max(self._names(), default=0) + 1

    def _names(self) -> list[int]:
        """Return the numbers of everything named like a checkpoint, highest first."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.directory)
            found = (re.fullmatch(r"checkpoint-([0-9]{6,})", name) for name in names)
            return sorted((int(match[1]) for match in found if match), reverse=True)
        return []

    def write(self, number: int, name: str, save: Callable[[pathlib.Path], object]) -> dict:
        """Write one file of a checkpoint. Other processes may write its other files.

        Args:
          number: number of the checkpoint.
          name: name of the file.
          save: function that writes the file to the path it receives. The path has the same
            suffixes as `name`.

        Returns:
          The manifest's entry for the file: `{"bytes": …, "sha256": …}`.

        Raises:
          CheckpointError: this process may not write to the directory.
          OSError: the file cannot be written.
        """
        entry = self._write(self.folder(number), name, save)
        _sync(self.directory)
        return entry

    def write_of_run(self, name: str, text: str):
        """Write a file of the whole run next to the checkpoints.

        Args:
          name: name of the file.
          text: its content.

        Raises:
          CheckpointError: this process may not write to the directory.
          OSError: the file cannot be written.
        """
        self._write(self.directory, name, lambda path: path.write_text(text))

    def _write(
        self, folder: pathlib.Path, name: str, save: Callable[[pathlib.Path], object]
    ) -> dict:
        """Write a file under a temporary name, rename it, and return its manifest entry."""
        self._check()
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".partial-{name}"
        _unlink(partial)  # left by a dead writer, or a link
        save(partial)
        entry = _entry(partial)
        self._check()
        _move(partial, folder / name)
        return entry

    def finish(self, number: int, content: dict, files: dict[str, dict]):
        """Write the manifest, which completes the checkpoint.

        Args:
          number: number of the checkpoint.
          content: additional JSON-serializable entries of the manifest.
          files: the results of `write`, by file name.

        Raises:
          CheckpointError: this process may not write to the directory.
          OSError: the manifest cannot be written.
        """
        text = _manifest({"format": _FORMAT, **content, "files": files})
        self.write(number, MANIFEST, lambda path: path.write_bytes(text))

    def prune(self, newest: int):
        """Remove old checkpoints, and incomplete ones left by dead writers.

        Args:
          newest: number of the newest complete checkpoint.

        Raises:
          CheckpointError: this process may not remove files from the directory.
          OSError: the directory cannot be listed.
        """
        numbers = [each for each in self.numbers() if each <= newest]
        kept = [each for each in numbers if _is_regular(self.folder(each) / MANIFEST)]
        kept = kept[: self._keep]
        for other in numbers:
            if other not in kept:
                self.discard(other)

    def discard(self, number: int):
        """Remove a checkpoint, or as many of its files as possible.

        Raises:
          CheckpointError: this process may not remove files from the directory.
        """
        self._check()
        # Remove the manifest first, so that a partly removed checkpoint never looks complete.
        with contextlib.suppress(OSError):
            _unlink(self.folder(number) / MANIFEST)
        shutil.rmtree(self.folder(number), ignore_errors=True)  # leaves links alone

    def forget(self, name: str, kept: Collection[int]):
        """Remove one file from old checkpoints, and the folders that this leaves empty.

        Only one process calls `prune`. The others call this method, because they may have their own
        disks.

        Args:
          name: name of the file.
          kept: numbers of the checkpoints to keep.

        Raises:
          CheckpointError: this process may not remove files from the directory.
        """
        for number in self.numbers():
            if number not in kept:
                self._check()
                for left in (name, f".partial-{name}"):
                    _unlink(self.folder(number) / left)
                with contextlib.suppress(OSError):  # not empty: other processes have files there
                    self.folder(number).rmdir()

    def read(self, number: int) -> dict:
        """Return a checkpoint's manifest: its content, with the file entries under `"files"`.

        Raises:
          CheckpointError: the manifest cannot be read, or differs from what `finish` wrote.
        """
        path = self.folder(number) / MANIFEST
        with _explained(path):
            with regular.opened(path) as file:
                text = file.read()
            try:
                content = json.loads(text)
                del content["sha256"]
                intact = text == _manifest(content)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                intact = False
            if not intact:
                raise CheckpointError(f"{path} is damaged: it was truncated or changed")
            if content.get("format") != _FORMAT:
                raise CheckpointError(
                    f"{path} has format {content.get('format')!r}, but this version of the package "
                    f"reads format {_FORMAT}"
                )
            return content

    def checked(self, number: int, name: str, files: dict[str, dict]) -> pathlib.Path:
        """Check a file of a checkpoint against its manifest, and return its path.

        Args:
          number: number of the checkpoint.
          name: name of the file.
          files: the entries under `"files"` of the manifest.

        Raises:
          CheckpointError: the file is missing, truncated or changed.
        """
        path = self.folder(number) / name
        if not isinstance(files, dict) or name not in files:
            raise CheckpointError(f"{path} is not listed in its manifest")
        if path.name != name:
            raise CheckpointError(
                f"{path} cannot be used: its manifest lists {name!r}, which is a path and not a "
                "file name"
            )
        with _explained(path):
            found = _entry(path)
        if found != files[name]:
            raise CheckpointError(
                f"{path} is damaged: the manifest lists {_words(files[name])}, but the file has "
                f"{_words(found)}"
            )
        return path


def _manifest(content: dict) -> bytes:
    """Return the text of a manifest with its own digest.

    The same content always yields the same text, so any change can be detected.
    """
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


def _entry(path: pathlib.Path) -> dict:
    with regular.opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _unlink(path: pathlib.Path):
    """Remove a file or a link if it exists. Raise `OSError` if its folder is a link."""
    with contextlib.suppress(FileNotFoundError), regular.folder(path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def _is_regular(path: pathlib.Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _words(entry) -> str:
    if not isinstance(entry, dict):
        return "no size and digest"
    return f"{entry.get('bytes')} bytes with SHA-256 {str(entry.get('sha256'))[:12]}…"


def _move(partial: pathlib.Path, path: pathlib.Path):
    """Rename a file, atomically and durably."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: pathlib.Path):
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
