"""What all benchmarks share: exchanges to time, the machine in words, a table, and a JSON file."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import sys

import numpy as np

# 25 million parameters in the mix of sizes that a network has: 100 MB of float32.
_SHAPES = [(2048, 4096), *[(1024, 2048)] * 6, *[(512, 512)] * 16, *[(512,)] * 64]


def shapes(megabytes: float) -> list[tuple[int, ...]]:
    """Of parameters that take so much as float32."""
    scale = megabytes / 100
    return [(max(1, int(shape[0] * scale)), *shape[1:]) for shape in _SHAPES]


def bytes_of(shapes) -> int:
    """Of float32 parameters with these shapes."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes)


class Cycle:
    """An exchange that goes on to the next round each time."""

    def __init__(self, averager, is_global: bool = False):
        self.averager = averager
        self._is_global = is_global
        self._round = 0

    def __call__(self):
        if self._is_global:
            self.averager.global_average("the benchmark")
        else:
            self.averager.gossip(self._round, "the benchmark")
        self._round += 1


def all_reduce(strategy, value):
    """MultiWorkerMirroredStrategy's own all-reduce of one tensor."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def all_reduce():
        def replica():
            replicas = tf.distribute.get_replica_context()
            return replicas.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(value))

        return strategy.run(replica)

    return all_reduce


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
