"""What all benchmarks share: exchanges to time, the machine in words, a table, and a JSON file."""

import datetime
import os
import pathlib
import platform
import shlex
import sys
import time

import numpy as np

from tf_gossip_pga import launch
from tf_gossip_pga.tools import output

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


def run(worker, options) -> int:
    """Starts `options.workers` processes of this script, each of which calls `worker(options)`."""
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    return launch.run([sys.executable, *sys.argv], options.workers)


def warm_up(size: int) -> int:
    """Runs of an exchange that trace all rounds of a one-peer graph; Decent-DP wants three."""
    return max(3, (size - 1).bit_length())


def measure(mine, actions: dict, repetitions: int, what: str) -> dict:
    """Name -> `{"seconds", "cpu"}`, a value for each repetition, of actions that ranks do together.

    Args:
      mine: the `Collectives` of this rank, with which all start at once.
      actions: name -> a function.
      what: said, with the repetition, by rank 0.
    """
    measured = {name: {"seconds": [], "cpu": []} for name in actions}
    for repetition in range(repetitions):
        if mine.cluster.is_chief:
            print(f"{what}: repetition {repetition + 1} of {repetitions}", flush=True)
        for name, action in actions.items():
            mine.gather(None, "the common start", 600)
            started, cpu = time.perf_counter(), time.process_time()
            action()
            measured[name]["seconds"].append(time.perf_counter() - started)
            measured[name]["cpu"].append(time.process_time() - cpu)
    return measured


def last(ranks: list[dict], name: str) -> np.ndarray:
    """Seconds until the last rank has finished, `[repetitions]`, from `measure` of each rank."""
    return np.max([rank[name]["seconds"] for rank in ranks], axis=0)


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


# Heads of the table's columns: the field of a row, and how many digits.
_COLUMNS = {
    "median ms": ("median_ms", 1),
    "min": ("min_ms", 1),
    "max": ("max_ms", 1),
    "predicted": ("predicted_ms", 1),
    "of limit": ("share_of_limit", 3),
    "CPU s": ("cpu_seconds", 2),
    "copies": ("memory_copies", 1),
}


def publish(title: str, rows: list[dict], ratios: dict[str, float], path: str | None):
    """Prints the table and the ratios, and writes both to `path` where it is given."""
    print(f"\n{title}\n{machine()}\n\n{table(rows)}\n")
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.3f}")
    if path:
        write(path, rows=rows, ratios=ratios)


def table(rows: list[dict]) -> str:
    """A line a row, with those columns that a row has."""
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


def write(path, **content):
    """A JSON file with the command and the machine beside the figures."""
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(output.as_json({"command": command, "machine": machine(), **content}))
    print(f"\nWritten to {path}")
