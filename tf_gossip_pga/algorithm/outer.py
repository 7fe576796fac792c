"""Treat the change between two global averages as a negative gradient, and take a step with it.

A plain global average replaces the parameters with their mean over ranks. An outer optimizer
instead moves from the result of its previous step toward this mean, and may overshoot it. Momentum
lets workers train for many steps between global averages.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_gossip_pga import _validate


@dataclasses.dataclass(frozen=True)
class Outer:
    """An outer optimizer: SGD with momentum, which steps at each global average of the schedule.

    x_prev is the result of the previous outer step, and m is the mean of the parameters over ranks.
    Each outer step computes, for each parameter::

        d = m - x_prev
        v <- momentum * v + d
        s = learning_rate * v                       without Nesterov momentum
        s = learning_rate * (d + momentum * v)      with Nesterov momentum
        x_prev <- x_prev + s                        computed as m - (d - s)

    The new parameters of all ranks are the new x_prev. v is initially 0. `Outer(1.0, 0.0)` gives
    exactly m, which is a plain global average.

    This is the following algorithm, if the ranks average as described and otherwise train alone
    (`topology="disconnected"`) or gossip (any other topology):

    - `Outer(learning_rate=0.7, momentum=0.9, nesterov=True)` with a disconnected topology and H
      from 50 to 500 is DiLoCo (Douillard et al., "DiLoCo: Distributed Low-Communication Training
      of Language Models", 2023, arXiv 2311.08105), whose outer gradient is -d. These are the
      defaults of this class.
    - `Outer(alpha, beta, nesterov=False)` is SlowMo (Wang et al., "SlowMo: Improving
      Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020, Algorithm 1) with slow
      learning rate alpha and slow momentum beta. SlowMo divides d by the learning rate gamma of the
      workers, and multiplies the step by gamma: its u is -v / gamma. Both are the same if gamma is
      constant. If gamma changes between two outer steps, SlowMo scales v by the ratio of the new
      gamma to the old one, whereas this class keeps v. This class cannot know gamma, because it
      works with any optimizer of the workers.

    Args:
      learning_rate: length of an outer step, > 0. Default 0.7.
      momentum: share of v that the next outer step keeps, >= 0 and < 1. Default 0.9.
      nesterov: whether to use Nesterov momentum. Default True.

    Raises:
      ValueError: an argument is out of its range.

    Example:
      >>> import numpy as np
      >>> outer = Outer(learning_rate=0.5, momentum=0.5, nesterov=False)
      >>> outer.step(np.array([2.0]), np.array([0.0]), np.array([0.0]))  # half of the way to 2
      (array([1.]), array([2.]))
      >>> outer.step(np.array([2.0]), np.array([1.0]), np.array([2.0]))  # v = 0.5 * 2 + 1
      (array([2.]), array([2.]))
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self):
        learning_rate = _validate.number(self.learning_rate)
        if learning_rate is None or learning_rate <= 0:
            raise ValueError(
                f"learning_rate of Outer must be a number > 0, received {self.learning_rate!r}."
            )
        momentum = _validate.number(self.momentum)
        if momentum is None or not 0 <= momentum < 1:
            raise ValueError(
                f"momentum of Outer must be a number >= 0 and < 1, received {self.momentum!r}."
            )
        if not isinstance(self.nesterov, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"nesterov of Outer must be True or False, received {self.nesterov!r}."
            )
        object.__setattr__(self, "learning_rate", learning_rate)
        object.__setattr__(self, "momentum", momentum)

    def step(self, mean: Any, previous: Any, velocity: Any) -> tuple[Any, Any]:
        """Take one outer step of one parameter.

        The three arguments are NumPy arrays or TensorFlow tensors of one shape and dtype.

        Args:
          mean: m, the mean of the parameter over ranks.
          previous: x_prev, the result of the previous outer step.
          velocity: v, the velocity after the previous outer step.

        Returns:
          The new value of the parameter, which is also the new x_prev, and the new velocity.
        """
        change = mean - previous
        velocity = self.momentum * velocity + change
        ahead = change + self.momentum * velocity if self.nesterov else velocity
        # Not previous + step, which would round m even if the step leads exactly to m.
        return mean - (change - self.learning_rate * ahead), velocity
