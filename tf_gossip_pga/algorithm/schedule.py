"""Decide when to gossip, and when to average globally with a period H, fixed or adaptive.

Steps are completed batches, counted from 1 over the whole run. At step k, Gossip-PGA averages
globally instead of gossiping if `k % H == 0` (Chen et al., ICML 2021, Algorithm 1). Two special
cases are algorithms of their own: `H=1` is Parallel SGD, and `H=None` is Gossip SGD. Gossip-AGA
computes a new H from the training loss at each global average (Algorithm 2).

Between two global averages, ranks may gossip after every step, or take several local steps from one
gossip to the next (`round_after`).

A schedule is a `FixedPeriod` or an `AdaptiveSchedule`. Its method `is_global(step)` says whether a
step ends with a global average. If the period is adaptive, the caller also reports each global
average with `observe(step, loss)`. All ranks must average globally at the same steps. Therefore,
they compare H and the state of an adaptive period before training, and all observe the same loss.
"""

# pyright: reportConstantRedefinition=false
# (H is the paper's name for the period, and Gossip-AGA changes its value.)
from __future__ import annotations

import dataclasses
import decimal
import math
import warnings
from typing import TypedDict, cast

from tf_gossip_pga import _validate


@dataclasses.dataclass(frozen=True)
class FixedPeriod:
    """Average globally on every H-th step, or never if `H` is None.

    Attributes:
      H: the period in steps, at least 1, or None.

    Example:
      >>> [k for k in range(1, 10) if FixedPeriod(3).is_global(k)]
      [3, 6, 9]
    """

    H: int | None

    def __str__(self):
        return str(self.H)

    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""
        return self.H is not None and step % self.H == 0


@dataclasses.dataclass(frozen=True)
class AdaptivePeriod:
    """Lengthen the period H as the training loss falls (Gossip-AGA).

    Early in training, gradients are large and replicas drift apart quickly. Later, the replicas
    stay close for longer, so they need fewer global averages.

    The period follows F, the loss of the first batch after a global average, averaged over the
    ranks. (The first batch of a `fit` counts as well, because every `fit` begins with equal
    replicas.) F measures the averaged model, whereas the losses of later batches measure replicas
    that have each been fitted to their own data. The next global average, at step k, uses F to
    update the period::

        F_initial <- (F_initial + F) / 2                        if k <= warmup_steps; H is kept
        H <- ceil((F_initial / F)^exponent * initial)           afterwards, within 1 … maximum

    The first F becomes F_initial.

    Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021,
    Algorithm 2. This class was written without access to the paper's algorithm box. It may
    therefore differ from the paper in the exponent (other texts mention both 1 and 1/4), in the
    bound `maximum`, and in the batch that F is taken from. F could also be the loss of the last
    batch before a global average. This class does not use that loss: if ranks see different data,
    it is small precisely because the replicas have drifted apart. The period would then grow, and
    the ranks would average even less often.

    Args:
      initial: the first period in steps, >= 1. Default 4, as in the paper.
      warmup_steps: number of initial steps, >= 0, during which the period stays at `initial` and
        F_initial is updated. These steps should cover the learning-rate warm-up and the first steep
        drop of the loss. Default 100.
      exponent: how strongly the period follows the loss, >= 0. Default 1.
      maximum: the longest period in steps, >= `initial`. Default 64.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> run = AdaptivePeriod(initial=4, warmup_steps=4).start()
      >>> run.observe(4, 2.0)  # still warming up: records the loss
      >>> run.observe(8, 0.5)  # a quarter of the loss, four times the period
      >>> run.H, [k for k in range(9, 30) if run.is_global(k)][:1]
      (16, [24])
    """

    initial: int = 4
    warmup_steps: int = 100
    exponent: float = 1.0
    maximum: int = 64

    def __post_init__(self):
        for name, least in (("initial", 1), ("warmup_steps", 0), ("maximum", 1)):
            title = f"{name} of AdaptivePeriod"
            value = _validate.check_whole(title, getattr(self, name), least, unit="steps")
            object.__setattr__(self, name, value)
        if self.maximum < self.initial:
            raise ValueError(
                f"maximum of AdaptivePeriod must be at least initial={self.initial}, received "
                f"{self.maximum}."
            )
        exponent = _validate.number(self.exponent)
        if exponent is None or exponent < 0:
            raise ValueError(
                f"exponent of AdaptivePeriod must be a number >= 0, received {self.exponent!r}."
            )
        object.__setattr__(self, "exponent", exponent)

    def start(self) -> AdaptiveSchedule:
        """Return the schedule at the beginning of a run."""
        return AdaptiveSchedule(self)


class AdaptiveState(TypedDict):
    """JSON-serializable state of an `AdaptiveSchedule`, needed to resume a run."""

    H: int  # current period in steps
    last: int  # step of the last global average
    initial_loss: float | None  # F_initial; None before the first F


class AdaptiveSchedule:
    """Track the current period of one run that uses an `AdaptivePeriod`.

    Attributes:
      H: the current period in steps.
    """

    def __init__(self, settings: AdaptivePeriod):
        self._settings = settings
        self._warned = False
        self.H = settings.initial
        self._last = 0  # step of the last global average
        self._initial_loss: float | None = None

    def __str__(self):
        return f"{self._settings} at {self.state}"

    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""
        return step - self._last >= self.H

    def observe(self, step: int, loss: float) -> None:
        """Update the period at a global average.

        Args:
          step: the step that ended with this global average.
          loss: F as defined in `AdaptivePeriod`. It must be the same number on every rank.
        """
        self._last = step
        if not 0 <= loss < math.inf:  # true for NaN
            self.H = self._settings.initial
            self._warn(step, loss)
        elif step <= self._settings.warmup_steps or self._initial_loss is None:
            self._remember(loss)
        else:
            self.H = self._period(self._initial_loss, loss)

    def _remember(self, loss: float) -> None:
        if loss > 0:
            known = self._initial_loss
            self._initial_loss = loss if known is None else (known + loss) / 2

    def _period(self, initial_loss: float, loss: float) -> int:
        settings = self._settings
        if loss == 0:
            return settings.maximum
        # Decimal powers are identical on every machine. The C library's powers may differ in the
        # last bit, and ranks that round up to different periods would wait for one another forever.
        with decimal.localcontext(prec=28, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
            ratio = decimal.Decimal(initial_loss) / decimal.Decimal(loss)
            period = ratio ** decimal.Decimal(settings.exponent) * settings.initial
            return max(1, math.ceil(min(period, decimal.Decimal(settings.maximum))))

    def _warn(self, step: int, loss: float) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The training loss at step {step} is {loss}, from which no period can be derived "
                "(train_step must return the loss among its logs, as 'loss'). Until the loss is a "
                f"number >= 0 again, there is a global average every {self.H} steps.",
                stacklevel=2,
            )

    @property
    def state(self) -> AdaptiveState:
        """JSON-serializable state. To resume a run, assign its saved state to this property."""
        return {"H": self.H, "last": self._last, "initial_loss": self._initial_loss}

    @state.setter
    def state(self, state: AdaptiveState) -> None:
        found = cast("dict[str, object]", state)  # read from a file
        period, last = _validate.whole(found["H"], 1), _validate.whole(found["last"], 0)
        loss = _validate.number(found["initial_loss"])
        forgotten = found["initial_loss"] is None
        if period is None or last is None or not (forgotten or (loss is not None and loss > 0)):
            raise ValueError(
                "The state of an adaptive period must have the entries 'H', a whole number >= 1; "
                "'last', a whole number >= 0; and 'initial_loss', a number > 0 or None. Received "
                f"{state!r}."
            )
        self.H, self._last, self._initial_loss = period, last, loss


def round_after(step: int, gossip_every: int) -> int | None:
    """Return which round of the topology follows a step that does not end with a global average.

    Args:
      step: the completed step, counted from 1.
      gossip_every: number of steps from one gossip to the next, >= 1.

    Returns:
      The number of the round, counted from 0 over the whole run, or None if no gossip follows.

    Example:
      >>> [round_after(step, gossip_every=2) for step in range(1, 7)]
      [None, 0, None, 1, None, 2]
    """
    gossips, rest = divmod(step, gossip_every)
    return None if rest else gossips - 1


def ends_before_average(
    schedule: FixedPeriod | AdaptiveSchedule, step: int, gossip_every: int
) -> bool:
    """Return whether a gossip in the background ends before the next global average.

    Such a gossip starts after a step, and its result is added when the next gossip is due. Because
    a gossip does not change the mean over ranks, it has no effect if a global average comes first.

    Args:
      schedule: decides when to average globally.
      step: the step, counted from 1, after which the gossip would start.
      gossip_every: number of steps from one gossip to the next, >= 1.

    Example:
      >>> [step for step in range(1, 7) if ends_before_average(FixedPeriod(6), step, 2)]
      [1, 2, 3, 6]
    """
    return not any(map(schedule.is_global, range(step + 1, step + gossip_every + 1)))


def check_gossip_every(gossip_every: object, H: object) -> int:  # noqa: N803
    """Return a valid `gossip_every` as an int.

    Args:
      gossip_every: number of steps from one gossip to the next: a whole number >= 1, less than a
        fixed H unless it is 1.
      H: a valid period: the number of steps, None, or an `AdaptivePeriod`.

    Raises:
      ValueError: `gossip_every` is not accepted.
    """
    every = _validate.check_whole("gossip_every", gossip_every, 1, unit="steps")
    period = _validate.whole(H, 1)
    if every > 1 and period is not None and every >= period:
        raise ValueError(
            f"gossip_every must be less than H={period}, received {every}: otherwise, no gossip "
            "takes place between two global averages. Choose a smaller gossip_every, or "
            'topology="disconnected" for Local SGD.'
        )
    return every


def resolve(H: object) -> FixedPeriod | AdaptiveSchedule:  # noqa: N803 (the paper's name)
    """Return the schedule that a run begins with, from the `H` that the user passed.

    Args:
      H: whole number of steps >= 1, None for no global average, or an `AdaptivePeriod`.

    Raises:
      ValueError: `H` is none of these.
    """
    if isinstance(H, AdaptivePeriod):
        return H.start()
    if H is None:
        return FixedPeriod(None)
    period = _validate.whole(H, 1)
    if period is None:
        raise ValueError(
            "H must be a whole number of steps >= 1 (1: Parallel SGD), None for no global average "
            f"(Gossip SGD), or an AdaptivePeriod (Gossip-AGA); received H={H!r}."
        )
    return FixedPeriod(period)
