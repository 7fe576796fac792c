"""Write results: a command's JSON file with a picture next to it, and files that are replaced."""

import importlib.util
import itertools
import json
import math
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any


def check(given: str) -> pathlib.Path:
    """Check that the JSON file can be written, create its folder, and return its path.

    Call this function before the computation, so that a wrong path ends the command at once.

    Args:
      given: value of the flag `--output`.

    Raises:
      ValueError: the name does not end in .json, or the file cannot be written.
    """
    path = pathlib.Path(given)
    if path.suffix != ".json":
        raise ValueError(
            f"--output={given}: the name must end in .json; the picture is a .png next to it."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()  # keeps the content of an existing file
        if is_new:
            path.unlink(missing_ok=True)  # another rank may have removed the file
    except OSError as error:
        raise ValueError(f"--output={given} cannot be written: {error}") from error
    return path


def write(
    path: pathlib.Path,
    module: str,
    content: Mapping[str, object],
    draw: Callable[[pathlib.Path], object],
) -> None:
    """Write the results of a command, and print where they are.

    Args:
      path: path of the JSON file.
      module: name of the command, as in `python -m NAME`.
      content: content of the JSON file. The command line is added to it.
      draw: function that writes a picture to a path with matplotlib. It is not called if matplotlib
        is not installed.
    """
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    path.write_text(as_json({"command": command, **content}))
    print(f"\nWritten to {path}", flush=True)
    picture = path.with_suffix(".png")
    if importlib.util.find_spec("matplotlib") is None:
        print("No picture: matplotlib is not installed. Run pip install matplotlib")
        return
    draw(picture)
    print(f"Picture: {picture}", flush=True)


def check_path(name: str, path: str | os.PathLike) -> pathlib.Path:
    """Return the path of a file that this process can create, or raise an error.

    Args:
      name: name of the argument, for the error message.
      path: the file, which need not exist. Its folder must exist.

    Raises:
      ValueError: the folder does not exist or is not writable, or the path is a folder, a device
        or another special file, which replacing would remove.
    """
    try:
        file = pathlib.Path(path)
    except TypeError:
        raise ValueError(f"{name} must be the path of a file, received {path!r}.") from None
    folder, problem = file.parent, None
    if file.is_dir():
        problem = "this is a folder. Add the name of the file"
    elif file.exists() and not file.is_file():
        problem = "this is not a regular file, and writing would replace it. Choose another one"
    elif not folder.is_dir():
        problem = f"there is no folder {str(folder)!r}. Create it first"
    elif not os.access(folder, os.W_OK):
        problem = f"this process may not write to the folder {str(folder)!r}. Choose another one"
    if problem:
        raise ValueError(
            f"{name} must be a file in an existing folder, received {str(path)!r}: {problem}."
        )
    return file


def replace(path: str | os.PathLike, text: str) -> None:
    """Write a file atomically: a reader sees the whole old text or the whole new one.

    Args:
      path: the file, in an existing folder.
      text: its new content, written as UTF-8.

    Raises:
      OSError: the file cannot be written. An existing file keeps its content.
    """
    folder, name = os.path.split(os.path.abspath(path))
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)  # there is no other way to read it
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def set_aside(path: str | os.PathLike) -> None:
    """Rename a file, such as report.html to report-1.html, or to the next number that is free.

    Args:
      path: the file. If there is none, do nothing.

    Raises:
      OSError: the file cannot be renamed.
    """
    given = pathlib.Path(path)
    if not given.exists():
        return
    names = (given.with_stem(f"{given.stem}-{number}") for number in itertools.count(1))
    given.rename(next(name for name in names if not name.exists()))


def as_json(value: object) -> str:
    """Return `value` as strict JSON, with null for NaN and infinity."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a copy of `value` in which None replaces every non-finite number."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
