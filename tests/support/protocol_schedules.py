"""Random schedules of faults for the protocol simulation, and how to shorten one that fails."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

_KINDS = ("crash", "crash", "crash", "stop", "stop", "busy", "one_way", "two_way", "vanish", "loss")

# Virtual seconds from one exchange to the next, about: faults are to hit the training.
_EXCHANGE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to some ranks.

    Attributes:
      at: when it begins, in virtual seconds.
      kind: `"crash"`: the process ends; with `until`, it is restarted then, to join.
        `"vanish"`: the machine is gone, so that nobody refuses connections any more.
        `"stop"`: SIGSTOP; with `until`, SIGCONT then.
        `"busy"`: it answers, and gets nowhere until `until`.
        `"one_way"`: packets from `ranks` to `others` alone are dropped.
        `"two_way"`: packets between `ranks` and `others` are dropped.
        `"loss"`: a third of all answers come too late.
      ranks: whom it happens to.
      others: the other side of a cut.
      until: when it ends; None: never.
    """

    at: float
    kind: str
    ranks: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    until: float | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What happens in one simulated run.

    Attributes:
      seed: of everything else that is random: delays, computing times.
      size: number of workers.
      exchanges: how many exchanges complete each `fit`.
      min_workers: how many surviving workers go on.
      faults: in the order of their beginning.
      fits: how many times each worker trains.
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
    if draw.random() < 0.7:  # the later ones hit what the first one has started
        faults = _close_together(draw, faults)
    min_workers = draw.choice([1, 1, 1, 1, 2, max(1, size // 2)])
    return Schedule(seed, size, exchanges, min_workers, tuple(faults), fits)


def shortened(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return a schedule that fails as well, of which no fault can be left out."""
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
    if draw.random() < 0.4:  # not between two sides, but between two ranks
        some, rest = ranks[:1], ranks[1:2]
    heals = draw.random() < 0.6
    return Fault(at, kind, tuple(sorted(some)), tuple(sorted(rest)), until if heals else None)


def _close_together(draw: random.Random, faults: list[Fault]) -> list[Fault]:
    """Return the same faults, each a little later than the one before."""
    moved: list[Fault] = []
    for fault in faults:
        # From within a poll of the one before, up to when the watchdog has given it up.
        gap_s = draw.expovariate(1.0) * draw.choice([1.0, 5.0, 20.0, 60.0])
        at = moved[-1].at + gap_s if moved else fault.at
        until = None if fault.until is None else at + fault.until - fault.at
        moved.append(dataclasses.replace(fault, at=at, until=until))
    return moved
