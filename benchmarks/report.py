"""What all benchmarks share: the machine in words, a table, and a JSON file."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import sys

import numpy as np


def row(name: str, seconds) -> dict:
    """The figures of one line from repeated times in seconds."""
    milliseconds = 1000 * np.asarray(seconds)
    return {
        "name": name,
        "median_ms": float(np.median(milliseconds)),
        "min_ms": float(milliseconds.min()),
        "max_ms": float(milliseconds.max()),
        "repetitions": len(milliseconds),
    }


def machine() -> str:
    """Processor, cores, memory, Python and date."""
    model = platform.machine()
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names[0] if names else model}, {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.date.today()}"
    )


def publish(rows: list[dict], ratios: dict[str, float], output: str | None):
    """Prints the table and the ratios, and writes both to `output` where it is given."""
    width = max(len(each["name"]) for each in rows)
    print(f"\n{'':{width}}  {'median':>10}  {'min':>10}  {'max':>10}   milliseconds")
    for each in rows:
        figures = "  ".join(f"{each[key]:10.2f}" for key in ("median_ms", "min_ms", "max_ms"))
        print(f"{each['name']:{width}}  {figures}")
    print()
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if output:
        write(rows, ratios, output)


def write(rows: list[dict], ratios: dict[str, float], output: str):
    """A JSON file with the command and the machine beside the figures."""
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    content = {"command": command, "machine": machine(), "rows": rows, "ratios": ratios}
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nWritten to {output}")
