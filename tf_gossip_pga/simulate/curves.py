"""What a simulation shows: f(mean of the nodes) - f* against steps, and where methods join."""

import dataclasses
import math

import keras
import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.simulate.problems import Problem, whole
from tf_gossip_pga.simulate.simulation import Simulation

# A curve has joined Parallel SGD's where it stays below this multiple of it.
FACTOR = 1.1
_LOOKS = 200  # at most, where nobody says how many

ALGORITHMS = ("parallel", "gossip", "local", "pga", "aga", "slowmo", "gossip_final")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What `run` has seen.

    Attributes:
      steps: `[points]` int, the steps after which it looked.
      excess: `[points, trials]`, f(mean of the nodes) - minimum.
      consensus_distance: `[points, trials]`, see `Simulation`.
      global_averages: `[trials]` int, how many steps were such.
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
        """`[points]`: of that mean; 0 with one trial."""
        trials = self.excess.shape[1]
        with np.errstate(invalid="ignore"):  # of a run that diverged
            return self.excess.std(axis=1, ddof=min(1, trials - 1)) / math.sqrt(trials)


def run(simulation: Simulation, iterations: int, every: int | None = None, verbose=0) -> Curve:
    """Advances a simulation and looks at the mean of its nodes.

    Args:
      simulation: a `Simulation`.
      iterations: how many steps, >= 1.
      every: looks after so many steps, and at the end, >= 1. A look costs as much as the loss of
        all samples. Default: the least with which there are at most 200 looks.
      verbose: 1 shows a progress bar. Default 0.

    Raises:
      ValueError: `iterations` or `every` is no whole number >= 1.
    """
    iterations = whole(iterations, "iterations")
    every = _interval(iterations, 1) if every is None else whole(every, "every")
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
    """Steps from one look to the next: few looks, and in all phases of a period alike.

    f at the mean is worst at a global average itself, and falls within a few steps.
    """
    every = -(-iterations // _LOOKS)
    while math.gcd(every, H) > 1:
        every += 1
    return every


def settings_of(algorithm: str, topology, H: int, iterations: int) -> dict:  # noqa: N803
    """The arguments of `Simulation` that make an algorithm.

    Args:
      algorithm: one of `ALGORITHMS`. `"aga"` begins with `H` and warms up for a third of the run;
        `"slowmo"` has slow momentum 0.5; `"gossip_final"` averages globally once, in the last step.
      topology: who gossips with whom.
      H: the period of global averages.
      iterations: length of the run.

    Raises:
      ValueError: the algorithm is unknown, or `H` no period.

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
        H = whole(H, "H, with which aga begins,")  # noqa: N806
        longest = max(schedule.AdaptivePeriod.maximum, H)
        period = schedule.AdaptivePeriod(H, warmup_steps=iterations // 3, maximum=longest)
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
    algorithms,
    topology,
    H: int,  # noqa: N803
    iterations: int,
    every: int | None = None,
    verbose=0,
    **arguments,
) -> dict[str, Curve]:
    """`run` of each algorithm with the same batches, Parallel SGD among them: its name -> curve.

    Args:
      problem: a `Problem`.
      algorithms: names from `ALGORITHMS`; `"parallel"` comes first, asked for or not.
      topology: who gossips with whom, as in `Simulation`.
      H: the period of global averages.
      iterations: as in `run`, and so are `every` and `verbose`. Default of `every`: the least that
        has at most 200 looks and shares no factor with `H`, so that they are at all phases of it.
      **arguments: further ones of `Simulation`: `step_size`, `trials`, `batch_size`, ….

    Raises:
      ValueError: an argument is out of its range, before the first run begins.

    Example:

        curves = compare(logistic(20, heterogeneity=1), ["pga"], "ring", 16, 1000, step_size=0.2)
        transient(curves["pga"], curves["parallel"])    # steps, or None: not within the run
    """
    whole(iterations, "iterations")
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
    """The first step looked at from which on `curve` stays below `factor` times Parallel SGD's.

    Both are means over trials. None where it is not below at the end of the run.
    """
    return joins(curve.steps, curve.mean, parallel.mean, factor)


def joins(steps, mean, parallel, factor: float) -> int | None:
    """The first of `steps` from which on `mean` stays at most `factor * parallel`; else None."""
    apart = np.flatnonzero(~(mean <= factor * parallel))  # NaN is apart, too
    first = apart[-1] + 1 if len(apart) else 0
    return int(steps[first]) if first < len(steps) else None
