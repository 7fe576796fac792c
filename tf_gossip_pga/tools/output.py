"""WHERE a command's results go: a JSON file, and a picture beside it."""

import importlib.util
import json
import math
import pathlib
import shlex
import sys


def check(given: str) -> pathlib.Path:
    """The path of the JSON file, whose folder is made; to be called before any work.

    Raises:
      ValueError: the name does not end in .json, or such a file cannot be written.
    """
    path = pathlib.Path(given)
    if path.suffix != ".json":
        raise ValueError(f"--output={given}: its name must end in .json; a .png is put beside it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()  # which leaves what a file holds
        if is_new:
            path.unlink(missing_ok=True)  # another rank may have done so
    except OSError as error:
        raise ValueError(f"--output={given} cannot be written: {error}") from error
    return path


def write(path: pathlib.Path, module: str, content: dict, draw):
    """Writes what a command has found.

    Args:
      path: of the JSON file.
      module: the command, as of `python -m`.
      content: the JSON file's, to which the command line is added.
      draw: writes a picture to a path, by matplotlib; not called where that is missing.
    """
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    path.write_text(as_json({"command": command, **content}))
    print(f"\nWritten to {path}", flush=True)
    picture = path.with_suffix(".png")
    if importlib.util.find_spec("matplotlib") is None:
        print("No picture, since matplotlib is not installed: pip install matplotlib")
        return
    draw(picture)
    print(f"Picture: {picture}", flush=True)


def as_json(value) -> str:
    """JSON, which has no NaN or infinity: null stands for what has no value."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value):
    """The same with None for each number that is none."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
