"""Simulate one algorithm on all nodes at once; see `tf_gossip_pga.simulate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule as schedule_lib
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.simulate import steps as steps_lib
from tf_gossip_pga.simulate import tensors
from tf_gossip_pga.simulate.problem import Problem

# Steps that one call of the compiled loop takes at most.
_CHUNK = 512


class Simulation:
    """One algorithm on all nodes, in several independent trials at once.

    Args:
      problem: a `Problem`.
      topology: a name in `pga.topology.BY_NAME`, or a `Topology` for as many nodes.
        `"disconnected"` makes Local SGD. Default `"one_peer_exponential"`.
      H: the period of global averages in steps, >= 1; 1 is Parallel SGD, None Gossip SGD, an
        `AdaptivePeriod` Gossip-AGA, for which each trial has a period of its own. Default 6.
      step_size: step size of plain SGD, > 0. Default 0.1.
      halve_every: number of steps after which the step size is halved each time, >= 1; None: never.
        Default None.
      batch_size: samples in a batch of one node, >= 1; None: all of the node's. Default 1.
      trials: number of runs from the same start with their own batches, >= 1. Default 1.
      shuffle: whether batches are drawn at random, with replacement, from parts into which each
        node's samples are shuffled once. Otherwise step k of every trial takes the samples in
        their order, from the (k - 1) * batch_size-th on, and starts over after the last.
        Default True.
      slow_momentum: SlowMo's momentum at each global average, with the slow learning rate 1, u
        from 0, and x0 the result of the last average; 0 is Gossip-PGA by another formula. None: a
        plain average. Default None. (Wang et al., "SlowMo", ICLR 2020, Algorithm 1.)

            u <- slow_momentum * u + (x0 - 1/n sum_j y_j) / step_size
            x_i <- x0 - step_size * u

      seed: seed of the batches, >= 0. Simulations with the same seed draw the same ones. Default 0.
      jit_compile: whether XLA compiles the steps. It takes seconds at first, and saves most of the
        time of a step where there is little to compute. Default False.

    Attributes:
      step: number of steps taken.
      global_averages: how many of them were global averages, `[trials]` int.

    Raises:
      ValueError: an argument is out of its range, or the topology does not exist for so many nodes.
      TypeError: `topology` is neither a name nor a `Topology`.
      MemoryError: parameters, batches and samples would not fit into this machine's memory; raised
        before any of them is allocated. (What a loss needs in between is not known beforehand.)

    Example: a Keras model on four nodes.

        problem = simulate.from_keras(model, "mse", x, y)     # x, y: [4, samples, …]
        simulation = simulate.Simulation(problem, "ring", H=6)
        simulation.advance(100)
        simulation.x[0, 3]                                    # node 3's parameters, flat
    """

    def __init__(
        self,
        problem: Problem,
        topology: str | Topology = "one_peer_exponential",
        H: int | schedule_lib.AdaptivePeriod | None = 6,  # noqa: N803 (the paper's name)
        *,
        step_size: float = 0.1,
        halve_every: int | None = None,
        batch_size: int | None = 1,
        trials: int = 1,
        shuffle: bool = True,
        slow_momentum: float | None = None,
        seed: int = 0,
        jit_compile: bool = False,
    ):
        if not isinstance(problem, Problem):
            raise ValueError(
                "problem must be a simulate.Problem, such as simulate.logistic(nodes=20), received "
                f"{problem!r}."
            )
        self.problem = problem
        self.trials = _validate.check_whole("trials", trials, 1)
        batch = _or_none("batch_size", batch_size) or problem.samples
        self._step_size = _number(step_size, "step_size", "> 0", lambda v: v > 0)
        self._halve_every = _or_none("halve_every", halve_every)
        slow_momentum = _slow_momentum(slow_momentum)
        shuffle, seed = bool(shuffle), _validate.check_whole("seed", seed, 0)
        tensors.check_size(problem, self.trials, batch, seed if shuffle else None)
        topology = topology_lib.resolve(topology, problem.nodes)
        self._adaptive = isinstance(H, schedule_lib.AdaptivePeriod)
        self._schedules = [schedule_lib.resolve(H) for _ in range(self.trials)]
        loop = steps_lib.Steps(
            problem,
            topology,
            trials=self.trials,
            batch=batch,
            seed=seed,
            shuffle=shuffle,
            slow_momentum=slow_momentum,
        )
        self._take = tf.function(loop.take, autograph=False, jit_compile=bool(jit_compile))
        self._state = steps_lib.start(problem, self.trials)
        self.step = 0
        self.global_averages = np.zeros(self.trials, int)

    @property
    def x(self) -> tf.Tensor:
        """The parameters of all nodes, `[trials, nodes, d]`."""
        return tf.transpose(self._state.x, [1, 0, 2])

    @property
    def mean(self) -> tf.Tensor:
        """Their mean over nodes, `[trials, d]`."""
        return tf.reduce_mean(self._state.x, axis=0)

    @property
    def consensus_distance(self) -> np.ndarray:
        """`[trials]`: root mean square distance of the nodes from their mean, over its norm."""
        mean = self.mean
        spread = tf.reduce_sum((self._state.x - mean) ** 2, axis=2)
        distance = tf.sqrt(tf.reduce_mean(spread, axis=0))
        return tf.math.divide_no_nan(distance, tf.norm(mean, axis=1)).numpy()

    def advance(self, steps: int) -> None:
        """Take `steps` steps, >= 1, in all trials."""
        end = self.step + _validate.check_whole("steps", steps, 1)
        while self.step < end:
            self._advance_to_average(end)

    def excess(self) -> np.ndarray:
        """Return f(mean of the nodes) - minimum, `[trials]`, over the samples of all nodes."""
        loss: Any = self._mean_loss(self.mean)
        return loss.numpy().astype(np.float64) - self.problem.minimum

    def _advance_to_average(self, end: int) -> None:
        """Advance to `end`, or as far as it is known which steps are global averages."""
        is_global, count = self._plan(end)
        before, taken = (tf.constant(number, tf.int64) for number in (self.step, count))
        self._state = self._take(self._state, before, taken, is_global, self._step_sizes())
        self.step += count
        self.global_averages += is_global[:count].sum(axis=0)
        for trial in np.flatnonzero(is_global[count - 1]):
            schedule = self._schedules[trial]
            if isinstance(schedule, schedule_lib.AdaptiveSchedule):
                schedule.observe(self.step, float(self._state.loss[trial]))

    def _plan(self, end: int) -> tuple[np.ndarray, int]:
        """Return which of the next steps are global averages, `[_CHUNK, trials]`, and how many."""
        is_global = np.zeros((_CHUNK, self.trials), bool)
        count = 0
        while count < min(_CHUNK, end - self.step):
            step = self.step + count + 1
            is_global[count] = [each.is_global(step) for each in self._schedules]
            count += 1
            if self._adaptive and is_global[count - 1].any():
                break
        return is_global, count

    def _step_sizes(self) -> np.ndarray:
        """Return the step sizes of the next steps, `[_CHUNK]`."""
        steps = self.step + np.arange(_CHUNK)
        halvings = 0 if self._halve_every is None else steps // self._halve_every
        sizes = self._step_size * np.exp2(-np.minimum(halvings, 1000)) * np.ones(_CHUNK)
        return sizes.astype(tensors.dtype_of(self.problem).as_numpy_dtype)

    @functools.cached_property
    def _mean_loss(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return tensors.mean_loss(self.problem)


def _or_none(name: str, value: int | None) -> int | None:
    return None if value is None else _validate.check_whole(name, value, 1)


def _slow_momentum(value: float | None) -> float | None:
    if value is None:
        return None
    return _number(value, "slow_momentum", ">= 0 and < 1, or None", lambda v: 0 <= v < 1)


def _number(value: object, name: str, accepted: str, fits: Callable[[float], bool]) -> float:
    number = _validate.number(value)
    if number is None or not fits(number):
        raise ValueError(f"{name} must be a number {accepted}, received {value!r}.")
    return number
