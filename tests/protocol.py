"""Simulate the membership protocol under many random schedules, and print violations.

python tests/protocol.py --schedules=100000 --first=0
"""

import argparse
import collections
import concurrent.futures
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tests.support import protocol_schedules as schedules
from tests.support import protocol_simulation as simulation


def findings(first: int, count: int) -> tuple[collections.Counter, list[str]]:
    """Simulate the schedules of consecutive seeds.

    Args:
      first: the first seed.
      count: number of seeds.

    Returns:
      How many schedules ended in each way, and each violation with its shortened schedule.
    """
    kinds, texts = collections.Counter(), []
    for seed in range(first, first + count):
        schedule = schedules.from_seed(seed)
        found = simulation.simulate(schedule)
        if isinstance(found, simulation.Violation):
            kinds[f"violations of ({found.invariant})"] += 1
            texts.append(_described(schedule, found))
        else:
            kinds["held"] += 1
    return kinds, texts


def _described(schedule: schedules.Schedule, found: simulation.Violation) -> str:
    def fails(candidate: schedules.Schedule) -> bool:
        other = simulation.simulate(candidate)
        return isinstance(other, simulation.Violation) and other.invariant == found.invariant

    shorter = schedules.shortened(schedule, fails)
    return f"{simulation.simulate(shorter)}\n{shorter}"


def _main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    size = 500
    firsts = range(arguments.first, arguments.first + arguments.schedules, size)
    counts = [min(size, arguments.first + arguments.schedules - first) for first in firsts]
    began, total, violations = time.monotonic(), collections.Counter(), 0
    with concurrent.futures.ProcessPoolExecutor(arguments.processes) as pool:
        for kinds, texts in pool.map(findings, firsts, counts):
            total += kinds
            violations += len(texts)
            print("".join(f"{text}\n\n" for text in texts), end="", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{arguments.schedules} schedules from seed {arguments.first} in {seconds:.0f} s: ", end=""
    )
    print(", ".join(f"{count} {kind}" for kind, count in sorted(total.items())))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(_main())
