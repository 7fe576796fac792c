"""WHEN to average globally: the period H, fixed or adaptive.

Step k counts completed batches from 1 over the whole run. Gossip-PGA averages globally, instead of
gossiping, when `k % H == 0` (Chen et al., ICML 2021, Algorithm 1). The edge values are whole
algorithms: `H=1` is Parallel SGD, `H=None` is Gossip SGD. Gossip-AGA chooses H anew at each global
average, from the training loss (Algorithm 2).

A schedule answers `is_global(step)` and is told `observe(step, loss)` after each global average.
Every rank must get the same answers: schedules that answer alike have the same text, by which ranks
compare theirs, and what they observe is the same number everywhere.
"""

import dataclasses
import decimal
import math
import warnings

from tf_gossip_pga._validate import number, whole


@dataclasses.dataclass(frozen=True)
class FixedPeriod:
    """A global average on every H-th step, or never where `H` is None.

        >>> [k for k in range(1, 10) if FixedPeriod(3).is_global(k)]
        [3, 6, 9]

    Attributes:
      H: the period in steps, at least 1, or None.
    """

    H: int | None

    def __str__(self):
        return str(self.H)

    def is_global(self, step: int) -> bool:
        """Whether step `step`, counted from 1, ends with a global average."""
        return self.H is not None and step % self.H == 0


@dataclasses.dataclass(frozen=True)
class AdaptivePeriod:
    """Settings of Gossip-AGA: the lower the training loss, the rarer the global averages.

    Gradients are large and replicas drift apart quickly at first; later they agree for longer. At
    the global average of step k, with F the mean over ranks of the loss of the first batch after
    the previous one (the averaged model's: between averages each replica fits its own data)

        F_initial <- (F_initial + F) / 2                        if k <= warmup_steps; H stays
        H <- ceil((F_initial / F)^exponent * initial)           afterwards, within 1 … maximum

    Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021,
    Algorithm 2, reconstructed without the text of the box at hand. Departures, or what may be some:
    the exponent (1 and 1/4 are both spoken of), the bound `maximum`, and the batch of which F is
    the loss. The last batch before the average is the other choice; where ranks see different data,
    its loss is small because the replicas have drifted apart, and asks for yet fewer averages.

        >>> run = AdaptivePeriod(initial=4, warmup_steps=4).start()
        >>> run.observe(4, 2.0)             # still warming up: remembers the loss
        >>> run.observe(8, 0.5)             # a quarter of the loss, four times the period
        >>> run.H, [k for k in range(9, 30) if run.is_global(k)][:1]
        (16, [24])

    Args:
      initial: the period in steps at first, >= 1. Default 4, the paper's.
      warmup_steps: steps in which the period stays `initial` and the loss is remembered, >= 0. It
        should span the learning rate's warm-up and the loss's first, steep fall. Default 100.
      exponent: how strongly the period follows the loss, >= 0. Default 1.
      maximum: the longest period, >= initial. Default 64.

    Raises:
      ValueError: an argument is out of its range.
    """

    initial: int = 4
    warmup_steps: int = 100
    exponent: float = 1.0
    maximum: int = 64

    def __post_init__(self):
        for name, least in (("initial", 1), ("warmup_steps", 0), ("maximum", 1)):
            value = whole(getattr(self, name), least)
            if value is None:
                raise ValueError(
                    f"{name} of AdaptivePeriod must be a whole number of steps >= {least}, "
                    f"received {getattr(self, name)!r}."
                )
            object.__setattr__(self, name, value)
        if self.maximum < self.initial:
            raise ValueError(
                f"maximum of AdaptivePeriod must be at least initial={self.initial}, received "
                f"{self.maximum}."
            )
        exponent = number(self.exponent)
        if exponent is None or exponent < 0:
            raise ValueError(
                f"exponent of AdaptivePeriod must be a number >= 0, received {self.exponent!r}."
            )
        object.__setattr__(self, "exponent", exponent)

    def start(self) -> "AdaptiveSchedule":
        """A schedule at the beginning of a run."""
        return AdaptiveSchedule(self)


class AdaptiveSchedule:
    """The course of one run with an `AdaptivePeriod`.

    Attributes:
      H: the present period in steps.
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
        """Whether step `step`, counted from 1, ends with a global average."""
        return step - self._last >= self.H

    def observe(self, step: int, loss: float):
        """Takes in F, the same number on every rank, at a global average."""
        self._last = step
        if not 0 <= loss < math.inf:  # nor is NaN
            self.H = self._settings.initial
            self._warn(step, loss)
        elif step <= self._settings.warmup_steps or self._initial_loss is None:
            if loss > 0:
                known = self._initial_loss
                self._initial_loss = loss if known is None else (known + loss) / 2
        else:
            self.H = self._period(loss)

    def _period(self, loss: float) -> int:
        settings = self._settings
        if loss == 0:
            return settings.maximum
        # In decimal, whose powers are the same on every machine; those of C differ in the last bit,
        # and ranks that round up differently would wait for one another for ever.
        with decimal.localcontext(prec=28, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
            ratio = decimal.Decimal(self._initial_loss) / decimal.Decimal(loss)
            period = ratio ** decimal.Decimal(settings.exponent) * settings.initial
            return max(1, math.ceil(min(period, decimal.Decimal(settings.maximum))))

    def _warn(self, step: int, loss: float):
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The training loss at step {step} is {loss}, from which no period can be derived: "
                f"global averages follow every {self.H} steps until it is a number >= 0 again.",
                stacklevel=2,
            )

    @property
    def state(self) -> dict:
        """What a resumed run needs, as JSON can hold it; may be set."""
        return {"H": self.H, "last": self._last, "initial_loss": self._initial_loss}

    @state.setter
    def state(self, state: dict):
        period, last = whole(state["H"], 1), whole(state["last"], 0)
        loss = state["initial_loss"]
        known = isinstance(loss, (int, float)) and 0 < loss < math.inf
        if period is None or last is None or not (loss is None or known):
            raise ValueError(f"this is no state of an adaptive period: {state!r}.")
        self.H, self._last, self._initial_loss = period, last, loss


def resolve(H) -> FixedPeriod | AdaptiveSchedule:  # noqa: N803 (the paper's name)
    """The schedule that a user's `H` stands for, at the beginning of a run.

    Raises:
      ValueError: `H` is neither a whole number >= 1 nor None nor an `AdaptivePeriod`.
    """
    if isinstance(H, AdaptivePeriod):
        return H.start()
    if H is None:
        return FixedPeriod(None)
    period = whole(H, 1)
    if period is None:
        raise ValueError(
            "H must be a whole number of steps >= 1 (1: Parallel SGD), None for no global average "
            f"(Gossip SGD), or an AdaptivePeriod (Gossip-AGA); received H={H!r}."
        )
    return FixedPeriod(period)
