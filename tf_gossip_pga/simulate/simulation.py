"""Simulate one algorithm on all virtual workers ("nodes") at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule as schedule_lib
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.auto import AutoPeriod
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.simulate import steps as steps_lib
from tf_gossip_pga.simulate import tensors
from tf_gossip_pga.simulate.problem import Problem

_CHUNK = 512  # maximum number of steps per call of the compiled loop


class Simulation:
    """Simulate one algorithm on all nodes, in several independent trials at once.

    See `tf_gossip_pga.simulate` for the equations of a step. With `outer_optimizer`, each global
    average is followed by a step of `pga.Outer`, which begins at the initial parameters.

    Args:
      problem: a `Problem`.
      topology: a name in `pga.topology.BY_NAME`, or a `Topology` for `problem.nodes` nodes.
        `"disconnected"` gives Local SGD. Default `"one_peer_exponential"`.
      H: period of the global average in steps, >= 1. 1 gives Parallel SGD and None gives Gossip
        SGD. An `AdaptivePeriod` gives Gossip-AGA, with a separate period for each trial. With an
        `AutoPeriod`, exchanges count as if they took all the time; it needs one trial. Default 6.
      gossip_every: number of steps from one gossip to the next, >= 1 and, if it is not 1, less than
        a fixed `H`. Default 1.
      step_size: step size of plain SGD, > 0. Default 0.1.
      halve_every: interval in steps at which the step size is halved, >= 1. Default None: never.
      batch_size: number of samples per batch on each node, >= 1; None: all samples of the node.
        Default 1.
      trials: number of runs with the same initial parameters and different batches, >= 1. Default
        1.
      shuffle: if True, each node's samples are shuffled once and divided into batches, and every
        step draws one of these batches at random, with replacement. If False, step k of every trial
        takes the next `batch_size` samples in order, from index (k - 1) * batch_size on, and
        continues with the first sample after the last one. Default True.
      outer_optimizer: a `pga.Outer`, as in `GossipPGA`. Its velocity is not rescaled when
        `halve_every` halves the step size, unlike that of SlowMo (see `pga.Outer`). Default None:
        plain global averages.
      seed: seed of the batches, >= 0. Simulations with the same seed draw the same batches.
        Default 0.
      jit_compile: whether XLA compiles the steps. Compilation takes seconds, but saves most of the
        time of a step with little computation. Default False.

    Attributes:
      problem: the `Problem`.
      trials: number of runs.
      step: number of steps taken.
      global_averages: number of global averages taken, `[trials]` int.

    Raises:
      ValueError: an argument is out of range, or the topology does not exist for `problem.nodes`
        nodes.
      TypeError: `topology` is neither a name nor a `Topology`.
      MemoryError: parameters, batches and samples would not fit into this machine's memory. Raised
        before any of them is allocated. The check does not include intermediate results of the
        loss.

    Example:
      >>> from tf_gossip_pga import simulate
      >>> problem = simulate.quadratic(nodes=4, dimension=3)
      >>> simulation = simulate.Simulation(problem, "ring", H=6)
      >>> simulation.advance(12)
      >>> simulation.x.shape  # [trials, nodes, d]
      TensorShape([1, 4, 3])
      >>> float(simulation.consensus_distance[0])  # 0: step 12 was a global average
      0.0
    """

    def __init__(
        self,
        problem: Problem,
        topology: str | Topology = "one_peer_exponential",
        H: int | schedule_lib.ChangingPeriod | None = 6,  # noqa: N803 (the paper's name)
        *,
        gossip_every: int = 1,
        step_size: float = 0.1,
        halve_every: int | None = None,
        batch_size: int | None = 1,
        trials: int = 1,
        shuffle: bool = True,
        outer_optimizer: Outer | None = None,
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
        if outer_optimizer is not None and not isinstance(outer_optimizer, Outer):
            raise ValueError(
                f"outer_optimizer must be a pga.Outer or None, received {outer_optimizer!r}."
            )
        shuffle, seed = bool(shuffle), _validate.check_whole("seed", seed, 0)
        tensors.check_size(problem, self.trials, batch, seed if shuffle else None)
        topology = topology_lib.resolve(topology, problem.nodes)
        self._topology_rounds = topology.rounds
        self._changes = isinstance(H, schedule_lib.ChangingPeriod)
        self._schedules = [schedule_lib.resolve(H, gossip_every) for _ in range(self.trials)]
        check_period(H, self.trials, outer_optimizer)
        loop = steps_lib.Steps(
            problem,
            topology,
            trials=self.trials,
            batch=batch,
            seed=seed,
            shuffle=shuffle,
            outer=outer_optimizer,
            measures_distance=isinstance(H, AutoPeriod),
        )
        self._take = tf.function(loop.take, autograph=False, jit_compile=bool(jit_compile))
        self._state = steps_lib.start(problem, self.trials)
        self.step = 0
        self.global_averages = np.zeros(self.trials, int)
        self._distances = np.full(self.trials, np.nan)  # before the previous global average

    @property
    def x(self) -> tf.Tensor:
        """Parameters of all nodes, `[trials, nodes, d]`."""
        return tf.transpose(self._state.x, [1, 0, 2])

    @property
    def mean(self) -> tf.Tensor:
        """Mean of the parameters over nodes, `[trials, d]`."""
        return tf.reduce_mean(self._state.x, axis=0)

    @property
    def consensus_distance(self) -> np.ndarray:
        """RMS distance of the nodes from `mean`, divided by the norm of `mean`, `[trials]`."""
        return steps_lib.consensus_distance(self._state.x).numpy()

    def advance(self, steps: int) -> None:
        """Take steps in all trials.

        Args:
          steps: number of steps, >= 1.

        Raises:
          ValueError: `steps` is not a whole number >= 1.
        """
        end = self.step + _validate.check_whole("steps", steps, 1)
        while self.step < end:
            self._advance_to_average(end)

    def excess(self) -> np.ndarray:
        """Return the mean loss over all nodes' samples at `mean`, minus its minimum, `[trials]`."""
        loss: Any = self._mean_loss(self.mean)
        return loss.numpy().astype(np.float64) - self.problem.minimum

    def _advance_to_average(self, end: int) -> None:
        """Advance to step `end`, or only to a trial's next global average if periods change.

        If the period changes, each global average determines at which step the next one occurs. One
        call takes at most `_CHUNK` steps.
        """
        is_global, rounds, count = self._plan(end)
        before, taken = (tf.constant(number, tf.int64) for number in (self.step, count))
        sizes = self._step_sizes()
        self._state = self._take(self._state, before, taken, is_global, rounds, sizes)
        self.step += count
        self.global_averages += is_global[:count].sum(axis=0)
        changing = np.flatnonzero(is_global[count - 1]) if self._changes else []
        for trial in changing:
            # There is no clock: exchanges count as if they took all the time.
            observed = schedule_lib.Observed(
                loss=float(self._state.loss[trial]),
                compute_s=0.0,
                gossip_s=1.0,
                average_s=1.0,
                distance=self._distances[trial],
            )
            self._schedules[trial].observe(self.step, observed)
            self._distances[trial] = self._state.distance[trial]

    def _plan(self, end: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Choose the steps that the next call of the compiled loop takes.

        Returns:
          Whether each of the next steps is a global average, `[_CHUNK, trials]` bool; the round
          that follows each step, `[_CHUNK]` int32, -1 if there is no gossip; the number of steps.
        """
        is_global = np.zeros((_CHUNK, self.trials), bool)
        rounds = np.full(_CHUNK, -1, np.int32)
        count = 0
        while count < min(_CHUNK, end - self.step):
            step = self.step + count + 1
            is_global[count] = [each.is_global(step) for each in self._schedules]
            round = self._schedules[0].round_after(step)  # the same in all trials
            rounds[count] = -1 if round is None else round % self._topology_rounds
            count += 1
            if self._changes and is_global[count - 1].any():
                break
        return is_global, rounds, count

    def _step_sizes(self) -> np.ndarray:
        """Return the step size of each of the next steps, `[_CHUNK]`."""
        steps = self.step + np.arange(_CHUNK)
        halvings = 0 if self._halve_every is None else steps // self._halve_every
        sizes = self._step_size * np.exp2(-np.minimum(halvings, 1000)) * np.ones(_CHUNK)
        return sizes.astype(tensors.dtype_of(self.problem).as_numpy_dtype)

    @functools.cached_property
    def _mean_loss(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return tensors.mean_loss(self.problem)


def check_period(H: object, trials: int, outer_optimizer: Outer | None) -> None:  # noqa: N803
    """Raise if a simulation with this period is not possible.

    Args:
      H: the period, as in `Simulation`.
      trials: number of runs.
      outer_optimizer: as in `Simulation`.

    Raises:
      ValueError: `H` is None with an outer optimizer, or an `AutoPeriod` with several trials.
    """
    if H is None and outer_optimizer is not None:
        raise ValueError(
            "outer_optimizer takes a step at each global average, but H=None has none. Give a "
            "period H, or leave outer_optimizer out."
        )
    if isinstance(H, AutoPeriod) and trials > 1:
        raise ValueError(
            "An AutoPeriod changes gossip_every, which must be the same in all trials; received "
            f"trials={trials}. Use one trial, and several seeds."
        )


def _or_none(name: str, value: int | None) -> int | None:
    return None if value is None else _validate.check_whole(name, value, 1)


def _number(value: object, name: str, accepted: str, fits: Callable[[float], bool]) -> float:
    number = _validate.number(value)
    if number is None or not fits(number):
        raise ValueError(f"{name} must be a number {accepted}, received {value!r}.")
    return number
