"""Decide when to gossip, and when to average globally.

Steps are completed batches, counted from 1 over the whole run. At step k, Gossip-PGA averages
globally instead of gossiping if `k % H == 0` (Chen et al., ICML 2021, Algorithm 1). Two special
cases are algorithms of their own: `H=1` is Parallel SGD, and `H=None` is Gossip SGD. Gossip-AGA
computes a new H from the training loss at each global average (Algorithm 2). At a step without a
global average, ranks gossip if `k % gossip_every == 0`.

A `Schedule` decides for one run: a `FixedPeriod`, or one that a `ChangingPeriod` starts
(`AdaptivePeriod` here, `AutoPeriod` in `algorithm.auto`). The caller reports each global average
with `observe`. All ranks must exchange at the same steps. Therefore, they compare the schedule and
its state before training, and all observe the same numbers.
"""

# pyright: reportConstantRedefinition=false
# (H is the paper's name for the period, and a schedule may change its value.)
from __future__ import annotations

import abc
import dataclasses
import decimal
import math
import warnings
from typing import Any, TypedDict, cast

from tf_gossip_pga import _validate


@dataclasses.dataclass(frozen=True)
class Observed:
    """What all ranks learn in a global average, with the same numbers on every rank.

    Attributes:
      loss: F as defined in `AdaptivePeriod`. Default NaN: unknown.
      compute_s: seconds that a step takes without exchanges, as a mean over ranks and over the
        steps since the previous global average. Default NaN: unknown.
      gossip_s: seconds that a gossip takes, as a similar mean. Default NaN: there was no gossip.
      average_s: seconds that the previous global average took, as a mean over ranks. Default NaN:
        unknown.
      distance: the consensus distance right before the previous global average. Default NaN:
        unknown.
    """

    loss: float = math.nan
    compute_s: float = math.nan
    gossip_s: float = math.nan
    average_s: float = math.nan
    distance: float = math.nan


class Schedule(abc.ABC):
    """Decide for one run after which steps ranks gossip or average globally.

    Attributes:
      H: the current period in steps, or None if there is no global average.
      gossip_every: the current number of steps from one gossip to the next.
    """

    H: Any  # an int, or None; each subclass says which
    gossip_every: int
    follows_loss = False  # whether `observe` needs the loss, which costs time to measure

    @abc.abstractmethod
    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""

    @abc.abstractmethod
    def observe(self, step: int, observed: Observed) -> None:
        """Learn from the global average with which a step ends.

        Args:
          step: the step, counted from 1.
          observed: the same on every rank.
        """

    @property
    @abc.abstractmethod
    def state(self) -> Any:
        """JSON-serializable state for `restore`, or None if nothing changes."""

    @abc.abstractmethod
    def restore(self, state: object) -> None:
        """Continue a run from the `state` of its schedule.

        Raises:
          KeyError, TypeError, ValueError: `state` is not the state of such a schedule.
        """

    def explanation(self) -> str | None:
        """Return why `observe` has just made its first choice, in one sentence, else None."""
        return None

    def round_after(self, step: int) -> int | None:
        """Return which round of the topology follows a step that ends without a global average.

        Args:
          step: the step, counted from 1.

        Returns:
          The number of the round, counted from 0 over the whole run, or None if no gossip follows.

        Example:
          >>> schedule = FixedPeriod(None, gossip_every=2)
          >>> [schedule.round_after(step) for step in range(1, 7)]
          [None, 0, None, 1, None, 2]
        """
        gossips, rest = divmod(step, self.gossip_every)
        return None if rest else gossips - 1

    def ends_before_average(self, step: int) -> bool:
        """Return whether a gossip in the background ends before the next global average.

        Such a gossip starts after a step, and its result is added when the next gossip is due.
        Because a gossip does not change the mean over ranks, it has no effect if a global average
        comes first.

        Args:
          step: the step, counted from 1, after which the gossip would start.

        Example:
          >>> schedule = FixedPeriod(6, gossip_every=2)
          >>> [step for step in range(1, 7) if schedule.ends_before_average(step)]
          [1, 2, 3, 6]
        """
        return not any(map(self.is_global, range(step + 1, step + self.gossip_every + 1)))


@dataclasses.dataclass(frozen=True)
class FixedPeriod(Schedule):
    """Average globally on every H-th step, or never if `H` is None.

    Attributes:
      H: the period in steps, at least 1, or None.
      gossip_every: number of steps from one gossip to the next, >= 1. Default 1.

    Example:
      >>> [k for k in range(1, 10) if FixedPeriod(3).is_global(k)]
      [3, 6, 9]
    """

    H: int | None
    gossip_every: int = 1

    def __str__(self):
        return str(self.H)

    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""
        return self.H is not None and step % self.H == 0

    def observe(self, step: int, observed: Observed) -> None:
        """Do nothing: the period is fixed."""

    @property
    def state(self) -> None:
        """None: nothing changes."""
        return None

    def restore(self, state: object) -> None:
        """Accept None only."""
        if state is not None:
            raise TypeError(f"A fixed period has no state, received {state!r}.")


class ChangingPeriod(abc.ABC):
    """Settings of a period that changes during a run."""

    @abc.abstractmethod
    def start(self, gossip_every: int = 1) -> Schedule:
        """Return the schedule at the beginning of a run.

        Args:
          gossip_every: number of steps from one gossip to the next. Default 1.

        Raises:
          ValueError: the period does not accept this `gossip_every`.
        """


@dataclasses.dataclass(frozen=True)
class AdaptivePeriod(ChangingPeriod):
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
      >>> run.observe(4, Observed(loss=2.0))  # still warming up: records the loss
      >>> run.observe(8, Observed(loss=0.5))  # a quarter of the loss, four times the period
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

    def start(self, gossip_every: int = 1) -> AdaptiveSchedule:
        """Return the schedule at the beginning of a run. See `ChangingPeriod.start`."""
        return AdaptiveSchedule(self, gossip_every)


class AdaptiveState(TypedDict):
    """JSON-serializable state of an `AdaptiveSchedule`, needed to resume a run."""

    H: int  # current period in steps
    last: int  # step of the last global average
    initial_loss: float | None  # F_initial; None before the first F


class AdaptiveSchedule(Schedule):
    """Track the current period of one run that uses an `AdaptivePeriod`.

    Attributes:
      H: the current period in steps.
      gossip_every: number of steps from one gossip to the next.
    """

    H: int
    follows_loss = True

    def __init__(self, settings: AdaptivePeriod, gossip_every: int = 1):
        self._settings = settings
        self.gossip_every = gossip_every
        self._warned = False
        self.H = settings.initial
        self._last = 0  # step of the last global average
        self._initial_loss: float | None = None

    def __str__(self):
        return f"{self._settings} at {self.state}"

    def is_global(self, step: int) -> bool:
        """Return whether step `step`, counted from 1, ends with a global average."""
        return step - self._last >= self.H

    def observe(self, step: int, observed: Observed) -> None:
        """Update the period from the loss. See `Schedule.observe`."""
        self._last, loss = step, observed.loss
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
        """JSON-serializable state, with which `restore` continues a run."""
        return {"H": self.H, "last": self._last, "initial_loss": self._initial_loss}

    def restore(self, state: object) -> None:
        """Continue a run from the `state` of its schedule. See `Schedule.restore`."""
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


def resolve(H: object, gossip_every: object = 1) -> Schedule:  # noqa: N803 (the paper's name)
    """Return the schedule that a run begins with, from the arguments that the user passed.

    Args:
      H: whole number of steps >= 1, None for no global average, or a `ChangingPeriod`.
      gossip_every: number of steps from one gossip to the next: a whole number >= 1, less than a
        fixed H unless it is 1. Default 1.

    Raises:
      ValueError: `H` or `gossip_every` is none of these.
    """
    every = _validate.check_whole("gossip_every", gossip_every, 1, unit="steps")
    if isinstance(H, ChangingPeriod):
        return H.start(every)
    if H is None:
        return FixedPeriod(None, every)
    period = _validate.whole(H, 1)
    if period is None:
        raise ValueError(
            "H must be a whole number of steps >= 1 (1: Parallel SGD), None for no global average "
            '(Gossip SGD), an AdaptivePeriod (Gossip-AGA), or an AutoPeriod (in GossipPGA, "auto")'
            f"; received H={H!r}."
        )
    if every > 1 and every >= period:
        raise ValueError(
            f"gossip_every must be less than H={period}, received {every}: otherwise, no gossip "
            "takes place between two global averages. Choose a smaller gossip_every, or "
            'topology="disconnected" for Local SGD.'
        )
    return FixedPeriod(period, every)
