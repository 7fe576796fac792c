"""Draw random schedules of faults for the protocol simulation, and shorten those that fail."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

_KINDS = ("crash", "crash", "crash", "stop", "stop", "busy", "one_way", "two_way", "vanish", "loss")

# Approximate virtual time from one exchange to the next, so that faults hit the training.
_EXCHANGE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """Describe a fault.

    Attributes:
      at: when it begins, in virtual seconds.
      kind: `"crash"`: the process ends; it is restarted at `until`, and joins.
        `"vanish"`: the machine is gone, so that it does not even refuse connections.
        `"stop"`: SIGSTOP, and SIGCONT at `until`.
        `"busy"`: it answers requests, but makes no progress before `until`.
        `"one_way"`: packets from `ranks` to `others` are dropped, but not those in return.
        `"two_way"`: packets between `ranks` and `others` are dropped.
        `"loss"`: a third of all requests get no answer in time.
      ranks: the ranks on which it happens.
      others: the ranks on the other side of a cut.
      until: when it ends, in virtual seconds; None: never.
    """

    at: float
    kind: str
    ranks: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    until: float | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Describe one simulated run.

    Attributes:
      seed: seed of all other randomness: delays and computation times.
      size: number of workers.
      exchanges: number of exchanges in each fit.
      min_workers: least number of surviving workers that continue.
      faults: the faults, in the order of their beginning.
      fits: number of fits of each worker.
    """

    seed: int
    size: int
    exchanges: int
    min_workers: int
    faults: tuple[Fault, ...]
    fits: int = 1

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.size} workers, {self.fits} times {self.exchanges} exchanges, "
            f"min_workers={self.min_workers}"
        ]
        for fault in self.faults:
            between = f" | {fault.others}" if fault.others else ""
            until = "" if fault.until is None else f" until {fault.until:.2f} s"
            lines.append(f"  {fault.at:.2f} s: {fault.kind} {fault.ranks}{between}{until}")
        return "\n".join(lines)


def from_seed(seed: int) -> Schedule:
    """Return the schedule of a seed: 2 to 8 workers and up to 5 faults."""
    draw = random.Random(seed)
    size, exchanges, fits = draw.randint(2, 8), draw.randint(4, 14), draw.choice([1, 1, 1, 2, 3])
    if fits > 1:
        exchanges = exchanges // 2
    count = draw.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5])
    horizon_s = fits * exchanges * _EXCHANGE_S
    faults = [_fault(draw, size, horizon_s) for _ in range(count)]
    faults.sort(key=lambda fault: fault.at)
    if draw.random() < 0.7:  # let later faults hit the recovery from the first one
        faults = _close_together(draw, faults)
    min_workers = draw.choice([1, 1, 1, 1, 2, max(1, size // 2)])
    return Schedule(seed, size, exchanges, min_workers, tuple(faults), fits)


def shortened(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return a shorter schedule that also fails, and from which no fault can be removed.

    Args:
      schedule: a schedule that fails.
      fails: function that says whether a schedule fails.
    """
    index = 0
    while index < len(schedule.faults):
        fewer = schedule.faults[:index] + schedule.faults[index + 1 :]
        candidate = dataclasses.replace(schedule, faults=fewer)
        if fails(candidate):
            schedule, index = candidate, 0
        else:
            index += 1
    for fits in range(1, schedule.fits):
        candidate = dataclasses.replace(schedule, fits=fits)
        if fails(candidate):
            schedule = candidate
            break
    for exchanges in range(1, schedule.exchanges):
        candidate = dataclasses.replace(schedule, exchanges=exchanges)
        if fails(candidate):
            return candidate
    return schedule


def _fault(draw: random.Random, size: int, horizon_s: float) -> Fault:
    kind = draw.choice(_KINDS)
    at = draw.uniform(0.0, horizon_s)
    until = at + draw.choice([draw.uniform(1, 20), draw.uniform(10, 120)])
    ranks = draw.sample(range(size), size)
    if kind == "busy":
        return Fault(at, kind, (ranks[0],), until=at + draw.uniform(10, 300))
    if kind in ("crash", "stop", "vanish"):
        ends = draw.random() < (0.8 if kind == "stop" else 0.5) and kind != "vanish"
        return Fault(at, kind, (ranks[0],), until=until if ends else None)
    if kind == "loss":
        return Fault(at, kind, until=until)
    side = draw.randint(1, size - 1)
    some, rest = ranks[:side], ranks[side:]
    if draw.random() < 0.4:  # a cut between two ranks rather than two sides
        some, rest = ranks[:1], ranks[1:2]
    heals = draw.random() < 0.6
    return Fault(at, kind, tuple(sorted(some)), tuple(sorted(rest)), until if heals else None)


def _close_together(draw: random.Random, faults: list[Fault]) -> list[Fault]:
    """Return the same faults, moved so that each begins a little after the one before."""
    moved: list[Fault] = []
    for fault in faults:
        # The gap is from less than a poll to longer than the watchdog waits.
        gap_s = draw.expovariate(1.0) * draw.choice([1.0, 5.0, 20.0, 60.0])
        at = moved[-1].at + gap_s if moved else fault.at
        until = None if fault.until is None else at + fault.until - fault.at
        moved.append(dataclasses.replace(fault, at=at, until=until))
    return moved
