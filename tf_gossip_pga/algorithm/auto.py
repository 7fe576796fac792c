"""Choose H and `gossip_every` from measured times and the measured consensus distance.

The choice is a rung of a ladder. On a higher rung, exchanges take less time, and the replicas drift
further apart. Up to H=12, a higher rung only makes global averages rarer. Above that, global
averages and gossips become half as frequent in turn::

    rung            0    1    2    3    4    5    6    7    8    9   10   11
    H               1    2    3    4    6   12   12   24   24   48   48   96
    gossip_every    1    1    1    1    1    1    2    2    4    4    8    8

The reference is rung 4, the default of `GossipPGA`.
"""

# pyright: reportConstantRedefinition=false
# (H is the paper's name for the period, and a schedule may change its value.)
from __future__ import annotations

import dataclasses
import math
from typing import Any, TypedDict, TypeVar, cast

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm.schedule import ChangingPeriod, Observed, Schedule

# (H, gossip_every) of each rung.
RUNGS = (
    *((1, 1), (2, 1), (3, 1), (4, 1), (6, 1)),
    *((12, 1), (12, 2), (24, 2), (24, 4), (48, 4), (48, 8), (96, 8)),
)
REFERENCE = 4  # rung with which a run begins, and with which drift is compared
# Numbers of periods: before the one whose end brings the first choice; from one on the reference
# to the next, while the choice is higher; until a rung with too much drift is tried again.
_WARM_UP, _REFERENCE_EVERY, _RETRY_AFTER = 4, 5, 20
_TIMES = ("compute_s", "gossip_s", "average_s")
_MEMORY = 0.7  # weight of the earlier mean in a running mean


@dataclasses.dataclass(frozen=True)
class AutoPeriod(ChangingPeriod):
    """Exchange as often as a share of the time allows, and almost as often as with H=6.

    `GossipPGA(H="auto")` uses this period with its defaults. At each global average, all ranks know
    how long a step, a gossip and a global average take, and choose:

    - The target is the lowest rung of the ladder in `tf_gossip_pga.algorithm.auto` on which
      exchanges take at most `share` of the time, or the highest rung if there is none. If exchanges
      are cheap, the target has a smaller H than 6, down to 1, with which training is closer to
      Parallel SGD. The choice moves towards the target rung by rung, and rises only when the
      consensus distance at the end of a period on the current rung is known.
    - While the choice is above H=6, every fifth period has H=6. If the consensus distance on a rung
      exceeds `drift` times that of the last period with H=6, the choice stays below this rung for
      20 periods.

    The consensus distance says how far the replicas are from their mean. Kong et al. ("Consensus
    Control for Decentralized Deep Learning", ICML 2021) show that training suffers only if this
    distance is above a critical value. Here, the distance with H=6 stands for that unknown value.

    Measured times vary, so two runs with the same seed need not exchange at the same steps. All
    ranks of a run always choose the same.

    Args:
      share: the largest share of the time that exchanges should take, > 0 and < 1. Default 0.2.
      drift: the largest consensus distance, as a multiple of that with H=6, >= 1. Default 1.2.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> run = AutoPeriod().start()
      >>> run.H, run.is_global(6)
      (6, True)
      >>> slow = Observed(compute_s=0.1, gossip_s=0.1, average_s=0.2, distance=1e-3)
      >>> for step in range(6, 31, 6):
      ...     run.observe(step, slow)
      >>> run.H
      12
    """

    share: float = 0.2
    drift: float = 1.2

    def __post_init__(self):
        share, drift = _validate.number(self.share), _validate.number(self.drift)
        if share is None or not 0 < share < 1:
            raise ValueError(
                f"share of AutoPeriod must be a number > 0 and < 1, received {self.share!r}."
            )
        if drift is None or drift < 1:
            raise ValueError(f"drift of AutoPeriod must be a number >= 1, received {self.drift!r}.")
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "drift", drift)

    def start(self, gossip_every: int = 1) -> AutoSchedule:
        """Return the schedule at the beginning of a run.

        Raises:
          ValueError: `gossip_every` is not 1.
        """
        if gossip_every != 1:
            raise ValueError(
                f'H="auto" also chooses gossip_every; received gossip_every={gossip_every}. Leave '
                "gossip_every out, or choose H yourself."
            )
        return AutoSchedule(self)


class AutoState(TypedDict):
    """JSON-serializable state of an `AutoSchedule`, needed to resume a run."""

    rung: int  # of the current period
    before: int | None  # rung of the period before it; None before the first global average
    choice: int
    limit: int  # highest rung to choose
    limited: int  # period in which `limit` was set
    last: int  # step of the last global average
    periods: int  # number of global averages so far
    reference: float | None  # consensus distance on the reference
    times: dict[str, float]  # running means in seconds, by the name in `Observed`


class AutoSchedule(Schedule):
    """Track the current choice of one run that uses an `AutoPeriod`.

    Attributes:
      H: the current period in steps.
      gossip_every: the current number of steps from one gossip to the next.
    """

    H: int

    def __init__(self, settings: AutoPeriod):
        self._settings = settings
        self._now: AutoState = {
            "rung": REFERENCE,
            "before": None,
            "choice": REFERENCE,
            "limit": len(RUNGS) - 1,
            "limited": 0,
            "last": 0,
            "periods": 0,
            "reference": None,
            "times": {},
        }
        self._use_rung()

    def __str__(self):
        return f"{self._settings} at {self.state}"

    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""
        return step - self._now["last"] >= self.H

    def observe(self, step: int, observed: Observed) -> None:
        """Choose the next rung. See `Schedule.observe`."""
        now = self._now
        now["last"], now["periods"] = step, now["periods"] + 1
        self._remember_times(observed)
        compared, now["before"] = now["before"], now["rung"]
        is_known = compared is not None and 0 < observed.distance < math.inf
        if compared is not None and is_known:
            self._compare(compared, observed.distance)
        if now["periods"] > _WARM_UP:
            known = is_known and now["reference"] is not None
            self._choose(can_rise=known and compared == now["choice"])

    def explanation(self) -> str | None:
        """Return the reasons for the first choice. See `Schedule.explanation`."""
        now = self._now
        if now["periods"] != _WARM_UP + 1 or not {"compute_s", "average_s"} <= {*now["times"]}:
            return None
        known = ", ".join(
            f"{name} {1000 * now['times'][key]:.3g} ms"
            for key, name in (
                ("compute_s", "the computation of a step takes"),
                ("gossip_s", "a gossip"),
                ("average_s", "a global average"),
            )
            if key in now["times"]
        )
        target = self._target()
        period, every = RUNGS[target]
        share = f"{self._share(REFERENCE):.0%}"
        text = f"H='auto': {known}. With H=6, exchanges take {share} of the time"
        if target == REFERENCE:
            return f"{text}. H stays at 6."
        reach = f"H={period}" + f" and gossip_every={every}" * (every > 1)
        wanted = f"{self._settings.share:.0%}"
        text += f"; with {reach}, {self._share(target):.0%} (at most {wanted} wanted). "
        if target < REFERENCE:
            return f"{text}H goes to {period}."
        return (
            f"{text}H grows gradually, as long as the consensus distance stays within "
            f"{self._settings.drift:g} times that with H=6."
        )

    def _remember_times(self, observed: Observed) -> None:
        times = self._now["times"]
        for name in _TIMES:
            value: float = getattr(observed, name)
            if math.isfinite(value):
                times[name] = _MEMORY * times.get(name, value) + (1 - _MEMORY) * value

    def _compare(self, rung: int, distance: float) -> None:
        """Compare the distance at the end of a period on a rung with that on the reference."""
        now = self._now
        if rung == REFERENCE:
            now["reference"] = distance
        elif rung > REFERENCE and distance > self._settings.drift * (now["reference"] or math.inf):
            now["limit"], now["limited"] = rung - 1, now["periods"]
            now["choice"] = min(now["choice"], now["limit"])

    def _choose(self, can_rise: bool) -> None:
        now = self._now
        if now["periods"] - now["limited"] >= _RETRY_AFTER:
            now["limit"] = len(RUNGS) - 1
        if now["choice"] > REFERENCE and now["periods"] % _REFERENCE_EVERY == 0:
            now["rung"] = REFERENCE
        else:
            target = min(self._target(), now["limit"])
            rises = can_rise and target > now["choice"]
            now["choice"] += rises - (target < now["choice"])
            now["rung"] = now["choice"]
        self._use_rung()

    def _use_rung(self) -> None:
        self.H, self.gossip_every = RUNGS[self._now["rung"]]

    def _target(self) -> int:
        """Return the lowest rung on which exchanges are cheap enough, or the highest rung."""
        cheap = (rung for rung in range(len(RUNGS)) if self._share(rung) <= self._settings.share)
        return next(cheap, len(RUNGS) - 1)

    def _share(self, rung: int) -> float:
        """Return the share of the time that exchanges take on a rung; on no rung if unknown."""
        times, (period, every) = self._now["times"], RUNGS[rung]
        if "compute_s" not in times or "average_s" not in times:
            return self._settings.share if rung == REFERENCE else math.inf
        gossips = (period - 1) // every
        exchanges = gossips * times.get("gossip_s", 0.0) + times["average_s"]
        total = period * times["compute_s"] + exchanges
        return exchanges / total if total else 0.0

    @property
    def state(self) -> AutoState:
        """JSON-serializable state, with which `restore` continues a run."""
        return cast("AutoState", {**self._now, "times": dict(self._now["times"])})

    def restore(self, state: object) -> None:
        """Continue a run from the `state` of its schedule. See `Schedule.restore`."""
        found = cast("dict[str, Any]", state)
        top, times = len(RUNGS) - 1, found["times"]
        self._now = {
            "rung": _number("rung", _validate.whole(found["rung"], 0, top)),
            "before": None
            if found["before"] is None
            else _number("before", _validate.whole(found["before"], 0, top)),
            "choice": _number("choice", _validate.whole(found["choice"], 0, top)),
            "limit": _number("limit", _validate.whole(found["limit"], 0, top)),
            "limited": _number("limited", _validate.whole(found["limited"], 0)),
            "last": _number("last", _validate.whole(found["last"], 0)),
            "periods": _number("periods", _validate.whole(found["periods"], 0)),
            "reference": None
            if found["reference"] is None
            else _number("reference", _validate.number(found["reference"])),
            "times": {
                name: _number(name, _validate.number(times[name]))
                for name in _TIMES
                if name in times
            },
        }
        self._use_rung()


_Number = TypeVar("_Number", int, float)


def _number(name: str, value: _Number | None) -> _Number:
    """Return a number of a state. Raise `ValueError` if it is not accepted."""
    if value is None or value < 0:
        raise ValueError(f"The state of an AutoPeriod has no valid {name!r}.")
    return value
