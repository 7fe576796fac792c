"""Keep checkpoints as numbered folders of files, each complete once its manifest is there.

    DIRECTORY/
      checkpoint-000007/
        model.weights.h5, rank-0.npz, rank-1.npz, …    what several processes have written
        manifest.json                                  written last, by one of them

The manifest tells size and SHA-256 of every other file, and of itself. Each file is written under
another name, synchronized with the disk and then renamed. A process that dies at any moment
therefore leaves complete checkpoints as they were. It may leave a folder without a manifest, which
readers ignore and the next writer removes. The processes need not see the same disk: a process
that has only its own files in such a folder compares them with the manifest it receives. A folder's
number is never used again, so that nothing complete is ever overwritten. Links are not followed,
and only regular files are opened (`regular`).

Nothing here knows what the files hold.
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
      directory: where they lie; made if it is not there.
      keep: how many complete ones stay, the newest, >= 1.
      check: called before anything is written or removed; raises `CheckpointError` where this
        process may not (`ownership`).

    Raises:
      OSError: the directory cannot be made or written to.

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
        self.directory = pathlib.Path(directory)
        self._keep = keep
        self._check = check
        self.directory.mkdir(parents=True, exist_ok=True)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")

    def folder(self, number: int) -> pathlib.Path:
        """Return where the files of a checkpoint lie."""
        return self.directory / f"checkpoint-{number:06d}"

    def numbers(self) -> list[int]:
        """Return the numbers of all checkpoints, complete or not, the newest first."""
        folders = {each: self.folder(each) for each in self._names()}
        return [each for each, path in folders.items() if path.is_dir() and not path.is_symlink()]

    def complete(self) -> list[int]:
        """Return the numbers of those with a manifest, the newest first; also where it is a link.

        `read` then says so, and nothing is removed there.
        """
        return [each for each in self._names() if os.path.lexists(self.folder(each) / MANIFEST)]

    def unused_number(self) -> int:
        """Return one more than the highest number here."""
        return max(self._names(), default=0) + 1

    def _names(self) -> list[int]:
        """Return the numbers of all that is named like a checkpoint, the highest first."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.directory)
            found = (re.fullmatch(r"checkpoint-([0-9]{6,})", name) for name in names)
            return sorted((int(match[1]) for match in found if match), reverse=True)
        return []

    def write(self, number: int, name: str, save: Callable[[pathlib.Path], object]) -> dict:
        """Write one file of a checkpoint; safe next to other processes that write others of it.

        Args:
          number: of the checkpoint.
          name: of the file.
          save: called with the path to write to, which has the same suffixes as `name`.

        Returns:
          What the manifest says of it: `{"bytes": …, "sha256": …}`.

        Raises:
          CheckpointError: this process may not write here.
          OSError: it cannot.
        """
        self._check()
        folder = self.folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".partial-{name}"
        _unlink(partial)  # a dead writer's, or a link
        save(partial)
        entry = _entry(partial)
        self._check()
        _move(partial, folder / name)
        _sync(self.directory)
        return entry

    def finish(self, number: int, content: dict, files: dict[str, dict]):
        """Write the manifest, which completes the checkpoint; raises as `write`.

        Args:
          number: of the checkpoint.
          content: what the manifest holds beside the files, as JSON can hold it.
          files: for each name what `write` has returned.
        """
        text = _manifest({"format": _FORMAT, **content, "files": files})
        self.write(number, MANIFEST, lambda path: path.write_bytes(text))

    def prune(self, newest: int):
        """Remove old checkpoints, and what dead writers have left; raises as `write`.

        Args:
          newest: number of the newest complete checkpoint.
        """
        numbers = [each for each in self.numbers() if each <= newest]
        kept = [each for each in numbers if _is_regular(self.folder(each) / MANIFEST)]
        kept = kept[: self._keep]
        for other in numbers:
            if other not in kept:
                self.discard(other)

    def discard(self, number: int):
        """Remove a checkpoint, as far as its files are here.

        Raises:
          CheckpointError: this process may not remove anything here.
        """
        self._check()
        # The manifest first, so that at no moment a part of it looks complete.
        with contextlib.suppress(OSError):
            _unlink(self.folder(number) / MANIFEST)
        shutil.rmtree(self.folder(number), ignore_errors=True)  # leaves a link as it is

    def forget(self, name: str, kept: Collection[int]):
        """Remove this file of all checkpoints but some, and the folders that have no other.

        For a process that may have a disk of its own, next to the one that calls `finish`.
        """
        for number in self.numbers():
            if number not in kept:
                self._check()
                for left in (name, f".partial-{name}"):
                    _unlink(self.folder(number) / left)
                with contextlib.suppress(OSError):  # others have files there
                    self.folder(number).rmdir()

    def read(self, number: int) -> dict:
        """Return the manifest of a checkpoint: the content, and `"files"`.

        Raises:
          CheckpointError: it is not what `finish` has written.
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
                raise CheckpointError(f"{path} is not as it was written: it was cut or changed")
            if content.get("format") != _FORMAT:
                raise CheckpointError(f"{path} has another format than {_FORMAT}, this package's")
            return content

    def checked(self, number: int, name: str, files: dict[str, dict]) -> pathlib.Path:
        """Return the path of a file that is as its manifest says.

        Raises:
          CheckpointError: it is missing, or was cut or changed.
        """
        path = self.folder(number) / name
        if not isinstance(files, dict) or name not in files:
            raise CheckpointError(f"{path} is not among the files of its manifest")
        if path.name != name:
            raise CheckpointError(f"{path} does not lie in the folder of its manifest")
        with _explained(path):
            found = _entry(path)
        if found != files[name]:
            raise CheckpointError(
                f"{path} is not as it was written: the manifest tells of {_words(files[name])}, "
                f"the file has {_words(found)}"
            )
        return path


def _manifest(content: dict) -> bytes:
    """Return a manifest with its own digest, in the one way to write it: any change shows."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


def _entry(path: pathlib.Path) -> dict:
    with regular.opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _unlink(path: pathlib.Path):
    """Remove a file, or a link, if it is there; never in a folder that is a link."""
    with contextlib.suppress(FileNotFoundError), regular.folder(path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def _is_regular(path: pathlib.Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _words(entry) -> str:
    if not isinstance(entry, dict):
        return "nothing"
    return f"{entry.get('bytes')} bytes with SHA-256 {str(entry.get('sha256'))[:12]}…"


def _move(partial: pathlib.Path, path: pathlib.Path):
    """Give a file its name, atomically and durably."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: pathlib.Path):
    """Return when a file, or the names in a folder, would survive a power cut."""
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
