"""Random schedules of faults for the protocol simulation, and how to shorten one that fails."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

_KINDS = ("crash", "crash", "crash", "stop", "stop", "one_way", "two_way", "vanish", "loss")

# By when the last fault has begun, in virtual seconds: training takes a little longer.
_FAULTS_UNTIL_S = 80.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to some ranks.

    Attributes:
      at: when it begins, in virtual seconds.
      kind: `"crash"`: the process ends; with `until`, it is restarted then, to join.
        `"vanish"`: the machine is gone, so that nobody refuses connections any more.
        `"stop"`: SIGSTOP; with `until`, SIGCONT then.
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
      exchanges: how many exchanges complete the training.
      min_workers: how many surviving workers go on.
      faults: in the order of their beginning.
    """

    seed: int
    size: int
    exchanges: int
    min_workers: int
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.size} workers, {self.exchanges} exchanges, "
            f"min_workers={self.min_workers}"
        ]
        for fault in self.faults:
            between = f" | {fault.others}" if fault.others else ""
            until = "" if fault.until is None else f" until {fault.until:.2f} s"
            lines.append(f"  {fault.at:.2f} s: {fault.kind} {fault.ranks}{between}{until}")
        return "\n".join(lines)


def from_seed(seed: int) -> Schedule:
    """Return the schedule of a seed: 2 to 8 workers and 0 to 4 faults."""
    draw = random.Random(seed)
    size = draw.randint(2, 8)
    count = draw.choice([0, 1, 1, 2, 2, 2, 3, 3, 4])
    faults = sorted((_fault(draw, size) for _ in range(count)), key=lambda fault: fault.at)
    # Faults in quick succession find more: the second hits what the first one started.
    if len(faults) > 1 and draw.random() < 0.6:
        shifted = [faults[0]]
        for fault in faults[1:]:
            shifted.append(_moved(fault, shifted[-1].at + draw.expovariate(1 / 8.0)))
        faults = shifted
    min_workers = draw.choice([1, 1, 1, 2, max(1, size // 2)])
    return Schedule(seed, size, draw.randint(4, 12), min_workers, tuple(faults))


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
    for exchanges in range(1, schedule.exchanges):
        candidate = dataclasses.replace(schedule, exchanges=exchanges)
        if fails(candidate):
            return candidate
    return schedule


def _fault(draw: random.Random, size: int) -> Fault:
    kind = draw.choice(_KINDS)
    at = draw.uniform(0.0, _FAULTS_UNTIL_S)
    until = at + draw.choice([draw.uniform(1, 20), draw.uniform(10, 120)])
    ranks = draw.sample(range(size), size)
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


def _moved(fault: Fault, at: float) -> Fault:
    until = None if fault.until is None else at + (fault.until - fault.at)
    return dataclasses.replace(fault, at=at, until=until)
