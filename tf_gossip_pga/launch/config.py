"""Read the launcher's options from a TOML file."""

from __future__ import annotations

import pathlib
import tomllib
from collections.abc import Collection
from typing import Any


def arguments(path: str, known: Collection[str], switches: Collection[str]) -> list[str]:
    """Return the options in a file as command-line arguments.

    Args:
      path: a TOML file. Its keys are the names of options without `--`: `workers = 4`,
        `log-dir = "logs"`, `share-gpus = true`, `env = ["A=1", "B"]`.
      known: the accepted keys.
      switches: those of `known` whose value is true or false. All others have another value.

    Returns:
      Arguments such as `"--workers=4"`.

    Raises:
      ValueError: the file cannot be read, is not TOML, or has an unknown key or a value that its
        key does not accept.
    """
    try:
        content = tomllib.loads(pathlib.Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not TOML
        raise ValueError(f"--config {path!r} cannot be read: {error}") from None
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(
            f"--config {path!r} has the unknown key {unknown[0]!r}. Accepted are "
            f"{', '.join(sorted(known))}."
        )
    try:
        return [
            each
            for name, value in content.items()
            for each in (_switch if name in switches else _option)(name, value)
        ]
    except ValueError as error:
        raise ValueError(f"--config {path!r}: {error}") from None


def _switch(name: str, value: Any) -> list[str]:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false; received {value!r}.")
    return [f"--{name}"] * value


def _option(name: str, value: Any) -> list[str]:
    repeats = name == "env"
    values = value if repeats and isinstance(value, list) else [value]
    if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in values):
        accepted = "text or a list of texts" if repeats else "text or a whole number"
        raise ValueError(f"{name} must be {accepted}; received {value!r}.")
    return [f"--{name}={each}" for each in values]
