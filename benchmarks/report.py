"""Report a benchmark: describe the machine, print a table, and write a JSON file."""

import datetime
import os
import pathlib
import platform
import shlex
import sys

import numpy as np

from tf_gossip_pga.tools import output


def row(name: str, seconds) -> dict:
    """Return one row of the report.

    Args:
      name: name of the row.
      seconds: `[repetitions]`, the measured times in seconds.
    """
    milliseconds = 1000 * np.asarray(seconds)
    return {
        "name": name,
        "median_ms": float(np.median(milliseconds)),
        "min_ms": float(milliseconds.min()),
        "max_ms": float(milliseconds.max()),
        "repetitions": len(milliseconds),
    }


def machine() -> str:
    """Describe the machine: CPU, cores, memory, Python version, and the current date."""
    model = platform.machine()
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names[0] if names else model}, {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.date.today()}"
    )


# Heading of a column in the table -> field of a row, and number of decimals.
_COLUMNS = {
    "median ms": ("median_ms", 1),
    "min": ("min_ms", 1),
    "max": ("max_ms", 1),
    "predicted": ("predicted_ms", 1),
    "of limit": ("share_of_limit", 3),
    "CPU s": ("cpu_seconds", 2),
    "copies": ("memory_copies", 1),
}


def publish(title: str, rows: list[dict], ratios: dict[str, float], path: str | None) -> None:
    """Print the table and the ratios, and write both to a JSON file.

    Args:
      title: title of the table.
      rows: the rows.
      ratios: the ratios by name.
      path: the JSON file; None: write no file.
    """
    print(f"\n{title}\n{machine()}\n\n{table(rows)}\n")
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if path:
        write(path, rows=rows, ratios=ratios)


def table(rows: list[dict]) -> str:
    """Return a table with one line per row, and those columns for which any row has a value."""
    columns = {
        head: column
        for head, column in _COLUMNS.items()
        if any(each.get(column[0]) is not None for each in rows)
    }
    width = max(len(each["name"]) for each in rows)
    lines = ["  ".join([" " * width, *(f"{head:>9}" for head in columns)])]
    for each in rows:
        cells = [
            " " * 9 if each.get(field) is None else f"{each[field]:9.{digits}f}"
            for field, digits in columns.values()
        ]
        lines.append("  ".join([f"{each['name']:{width}}", *cells]).rstrip())
    return "\n".join(lines)


def write(path: str | pathlib.Path, **content) -> None:
    """Write a JSON file.

    Args:
      path: the file.
      **content: the content, to which the command and the machine are added.
    """
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(output.as_json({"command": command, "machine": machine(), **content}))
    print(f"\nWritten to {path}")
