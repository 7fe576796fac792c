"""Follow simulations: f(mean of the nodes) - f* against steps, and where methods join."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.simulate.problem import Problem
from tf_gossip_pga.simulate.simulation import Simulation

# A curve has joined Parallel SGD's where it stays below this multiple of it.
FACTOR = 1.1
_LOOKS = 200  # at most, by default

ALGORITHMS = ("parallel", "gossip", "local", "pga", "aga", "slowmo", "gossip_final")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What `run` has measured.

    Attributes:
      steps: `[points]` int, the steps after which it measured.
      excess: `[points, trials]`, f(mean of the nodes) - minimum.
      consensus_distance: `[points, trials]`, see `Simulation`.
      global_averages: `[trials]` int, number of global averages.
    """

    steps: np.ndarray
    excess: np.ndarray
    consensus_distance: np.ndarray
    global_averages: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`[points]`: the excess, mean over trials."""
        return self.excess.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """`[points]`: the standard error of that mean; 0 with one trial."""
        trials = self.excess.shape[1]
        with np.errstate(invalid="ignore"):  # in a run that diverged
            return self.excess.std(axis=1, ddof=min(1, trials - 1)) / math.sqrt(trials)


def run(
    simulation: Simulation, iterations: int, every: int | None = None, verbose: int = 0
) -> Curve:
    """Advance a simulation, and measure the mean of its nodes.

    Args:
      simulation: a `Simulation`.
      iterations: number of steps, >= 1.
      every: number of steps between measurements, >= 1; the last step is measured too. One
        measurement costs as much as the loss of all samples. Default: the least with at most 200
        measurements.
      verbose: 1 shows a progress bar, 2 prints a line at the end. Default 0.

    Raises:
      ValueError: `iterations` or `every` is no whole number >= 1.
    """
    iterations = _validate.check_whole("iterations", iterations, 1)
    if every is None:
        every = _interval(iterations, 1)
    every = _validate.check_whole("every", every, 1)
    bar = keras.utils.Progbar(iterations, verbose=verbose)
    begun = simulation.step
    steps, excess, distance = [], [], []
    for done in [*range(every, iterations, every), iterations]:
        simulation.advance(begun + done - simulation.step)
        steps.append(simulation.step)
        excess.append(simulation.excess())
        distance.append(simulation.consensus_distance)
        bar.update(done)
    return Curve(
        np.array(steps), np.array(excess), np.array(distance), simulation.global_averages.copy()
    )


def _interval(iterations: int, H: int) -> int:  # noqa: N803
    """Return the steps between measurements: few of them, and equally in all phases of a period.

    f at the mean is worst at a global average itself, and falls within a few steps.
    """
    every = -(-iterations // _LOOKS)
    while math.gcd(every, H) > 1:
        every += 1
    return every


def settings_of(
    algorithm: str,
    topology: str | Topology,
    H: int,  # noqa: N803 (the paper's name)
    iterations: int,
) -> dict[str, Any]:
    """Return the arguments of `Simulation` that make an algorithm.

    Args:
      algorithm: one of `ALGORITHMS`. `"aga"` begins with `H` and warms up for a third of the run;
        `"slowmo"` has slow momentum 0.5; `"gossip_final"` averages globally once, in the last step.
      topology: who gossips with whom.
      H: the period of global averages.
      iterations: length of the run.

    Raises:
      ValueError: the algorithm is unknown, or `H` is no period.

    Example:

        >>> settings_of("local", "ring", H=16, iterations=1000)
        {'topology': 'disconnected', 'H': 16}
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"Unknown algorithm {algorithm!r}. Known algorithms: {', '.join(sorted(ALGORITHMS))}."
        )
    schedule.resolve(H)
    if algorithm == "aga":
        first = _validate.check_whole("H, with which aga begins,", H, 1)
        longest = max(schedule.AdaptivePeriod.maximum, first)
        period = schedule.AdaptivePeriod(first, warmup_steps=iterations // 3, maximum=longest)
        return {"topology": topology, "H": period}
    return {
        "parallel": {"topology": "disconnected", "H": 1},
        "gossip": {"topology": topology, "H": None},
        "local": {"topology": "disconnected", "H": H},
        "pga": {"topology": topology, "H": H},
        "slowmo": {"topology": topology, "H": H, "slow_momentum": 0.5},
        "gossip_final": {"topology": topology, "H": iterations},
    }[algorithm]


def compare(
    problem: Problem,
    algorithms: Iterable[str],
    topology: str | Topology,
    H: int,  # noqa: N803 (the paper's name)
    iterations: int,
    every: int | None = None,
    verbose: int = 0,
    **arguments: Any,
) -> dict[str, Curve]:
    """Run each algorithm with the same batches, and Parallel SGD: `{name: curve}`.

    Args:
      problem: a `Problem`.
      algorithms: names from `ALGORITHMS`; `"parallel"` is always there, and comes first.
      topology: who gossips with whom, as in `Simulation`.
      H: the period of global averages.
      iterations: as in `run`, and so are `every` and `verbose`. Default of `every`: the least with
        at most 200 measurements that shares no factor with `H`, so that all phases are measured.
      **arguments: further ones of `Simulation`: `step_size`, `trials`, `batch_size`, ….

    Raises:
      ValueError: an argument is out of its range, before the first run begins.

    Example:

        curves = compare(logistic(20, heterogeneity=1), ["pga"], "ring", 16, 1000, step_size=0.2)
        transient(curves["pga"], curves["parallel"])    # steps, or None: not within the run
    """
    _validate.check_whole("iterations", iterations, 1)
    every = _interval(iterations, _validate.whole(H, 1) or 1) if every is None else every
    simulations = {
        name: Simulation(problem, **settings_of(name, topology, H, iterations), **arguments)
        for name in dict.fromkeys(["parallel", *algorithms])
    }
    curves = {}
    for name in list(simulations):
        if verbose:
            print(name, flush=True)
        curves[name] = run(simulations.pop(name), iterations, every, verbose)
    return curves


def transient(curve: Curve, parallel: Curve, factor: float = FACTOR) -> int | None:
    """Return the first measured step from which `curve` stays below `factor` times Parallel SGD's.

    Both are means over trials. Return None where it is not below at the end of the run.
    """
    return joins(curve.steps, curve.mean, parallel.mean, factor)


def joins(steps: np.ndarray, mean: np.ndarray, parallel: np.ndarray, factor: float) -> int | None:
    """Return the first of `steps` from which `mean` stays below `factor * parallel`, or None."""
    apart = np.flatnonzero(~(mean <= factor * parallel))  # NaN is apart, too
    first = apart[-1] + 1 if len(apart) else 0
    return int(steps[first]) if first < len(steps) else None
