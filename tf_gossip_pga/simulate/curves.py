"""Record how far a simulation is from the minimum; find when it catches up with Parallel SGD.

The distance from the minimum is f(mean of the nodes) - f*. Here, f is the mean loss over the data
of all nodes, f* is the minimum of f, and "mean of the nodes" is the mean of their parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm.auto import AutoPeriod
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.simulate.problem import Problem
from tf_gossip_pga.simulate.simulation import Simulation

# An algorithm has caught up once its curve stays at or below FACTOR times that of Parallel SGD.
FACTOR = 1.1
_LOOKS = 200  # maximum number of measurements per run, by default

ALGORITHMS = (
    "parallel",
    "gossip",
    "local",
    "pga",
    "aga",
    "auto",
    "slowmo",
    "diloco",
    "gossip_final",
)

_SLOWMO = Outer(learning_rate=1.0, momentum=0.5, nesterov=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Measurements recorded by one `run`.

    Attributes:
      steps: `[points]` int, the step after which each measurement was taken.
      excess: `[points, trials]`, f(mean of the nodes) - f*.
      consensus_distance: `[points, trials]`, how far the nodes are from their mean; see
        `Simulation.consensus_distance`.
      global_averages: `[trials]` int, number of global averages since the simulation began.
    """

    steps: np.ndarray
    excess: np.ndarray
    consensus_distance: np.ndarray
    global_averages: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean of `excess` over trials, `[points]`."""
        return self.excess.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of `mean`, `[points]`; 0 with one trial."""
        trials = self.excess.shape[1]
        with np.errstate(invalid="ignore"):  # a diverged run contains inf or NaN
            return self.excess.std(axis=1, ddof=min(1, trials - 1)) / math.sqrt(trials)


def run(
    simulation: Simulation, iterations: int, every: int | None = None, verbose: int = 0
) -> Curve:
    """Advance a simulation, and regularly measure its loss f at the mean of its nodes.

    Args:
      simulation: a `Simulation`. A second `run` of the same simulation continues from the step at
        which the first one ended.
      iterations: number of steps, >= 1.
      every: number of steps between measurements, >= 1. The last step is always measured. Each
        measurement computes the loss of all samples. Default None: the smallest number that gives
        at most 200 measurements.
      verbose: 0 prints nothing, 1 shows a progress bar, 2 prints a line at the end. Default 0.

    Returns:
      The measurements, as a `Curve`.

    Raises:
      ValueError: `iterations` or `every` is not a whole number >= 1.

    Example:
      >>> from tf_gossip_pga import simulate
      >>> simulation = simulate.Simulation(simulate.quadratic(nodes=4), "ring", H=2)
      >>> simulate.run(simulation, iterations=10, every=4).steps.tolist()
      [4, 8, 10]
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
    """Return the smallest interval between measurements that covers all positions in a period.

    The interval gives at most `_LOOKS` measurements in `iterations` steps. It shares no factor with
    the period `H`: otherwise, some positions between two global averages would never be measured.
    The positions matter because f(mean of the nodes) is highest right after a global average, and
    falls within a few steps.
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
    gossip_every: int = 1,
) -> dict[str, Any]:
    """Return the arguments of `Simulation` for an algorithm.

    Args:
      algorithm: one of `ALGORITHMS`. `"parallel"`, `"gossip"` and `"local"` are Parallel SGD,
        Gossip SGD and Local SGD. `"pga"` is Gossip-PGA. `"aga"` is Gossip-AGA, which starts with
        the period `H` and keeps it for the first third of the run. `"auto"` is Gossip-PGA with an
        `AutoPeriod`, which needs one trial. `"slowmo"` is Gossip-PGA with SlowMo, whose slow
        momentum is 0.5, and `"diloco"` is Local SGD with the outer optimizer of DiLoCo (see
        `pga.Outer`). `"gossip_final"` is Gossip SGD that averages globally once, at the last step.
      topology: who gossips with whom, as in `Simulation`. `"parallel"`, `"local"` and `"diloco"`
        ignore this argument.
      H: period of the global average in steps, >= 1. `"parallel"`, `"gossip"`, `"auto"` and
        `"gossip_final"` ignore this argument.
      iterations: number of steps of the run.
      gossip_every: number of steps from one gossip to the next, as in `Simulation`, which checks
        it. `"parallel"`, `"local"`, `"diloco"` and `"auto"` ignore this argument. Default 1.

    Returns:
      A dict of arguments: `topology` and `H`; for algorithms that gossip `gossip_every`; for
      `"slowmo"` and `"diloco"` also `outer_optimizer`.

    Raises:
      ValueError: the algorithm is unknown, or `H` is not a valid period.

    Example:
      >>> from tf_gossip_pga import simulate
      >>> simulate.settings_of("local", "ring", H=16, iterations=1000)
      {'topology': 'disconnected', 'H': 16}
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"Unknown algorithm {algorithm!r}. Known algorithms: {', '.join(sorted(ALGORITHMS))}."
        )
    schedule.resolve(H)
    if algorithm in ("parallel", "local"):
        return {"topology": "disconnected", "H": 1 if algorithm == "parallel" else H}
    gossip = {"topology": topology, "gossip_every": gossip_every}
    if algorithm == "aga":
        first = _validate.check_whole("H, the first period of aga,", H, 1)
        longest = max(schedule.AdaptivePeriod.maximum, first)
        period = schedule.AdaptivePeriod(first, warmup_steps=iterations // 3, maximum=longest)
        return {**gossip, "H": period}
    if algorithm == "auto":
        return {"topology": topology, "H": AutoPeriod()}
    return {
        "gossip": {**gossip, "H": None},
        "pga": {**gossip, "H": H},
        "slowmo": {**gossip, "H": H, "outer_optimizer": _SLOWMO},
        "diloco": {"topology": "disconnected", "H": H, "outer_optimizer": Outer()},
        "gossip_final": {**gossip, "H": iterations},
    }[algorithm]


def compare(
    problem: Problem,
    algorithms: Iterable[str],
    topology: str | Topology,
    H: int,  # noqa: N803 (the paper's name)
    iterations: int,
    every: int | None = None,
    verbose: int = 0,
    gossip_every: int = 1,
    **arguments: Any,
) -> dict[str, Curve]:
    """Run Parallel SGD and each of the given algorithms, all on the same batches.

    Args:
      problem: a `Problem`.
      algorithms: names from `ALGORITHMS`. Parallel SGD always runs first, even if it is not listed.
      topology: who gossips with whom, as in `Simulation`.
      H: period of the global average in steps, >= 1. `settings_of` says which algorithms ignore it.
      iterations: number of steps of each run, >= 1.
      every: number of steps between measurements, >= 1. Default None: the smallest number that
        gives at most 200 measurements and shares no factor with `H`, so that measurements cover
        every position between two global averages.
      verbose: 0 prints nothing. 1 prints the name of each algorithm and shows a progress bar. 2
        prints the name and a line at the end of each run. Default 0.
      gossip_every: number of steps from one gossip to the next, for the algorithms that gossip.
        Default 1.
      **arguments: further arguments of `Simulation`: `step_size`, `trials`, `batch_size`, ….

    Returns:
      A dict from each name to its `Curve`, `"parallel"` first.

    Raises:
      ValueError: an argument is out of range. Raised before the first run begins.
      TypeError: the topology is neither a name nor a `Topology`.
      MemoryError: a simulation would not fit into this machine's memory.

    Example:
      >>> from tf_gossip_pga import simulate
      >>> problem = simulate.quadratic(nodes=8, heterogeneity=1)
      >>> curves = simulate.compare(problem, ["pga", "local"], "ring", H=4, iterations=30)
      >>> list(curves)
      ['parallel', 'pga', 'local']
      >>> int(curves["pga"].global_averages[0])  # steps 4, 8, … 28
      7
    """
    _validate.check_whole("iterations", iterations, 1)
    every = _interval(iterations, _validate.whole(H, 1) or 1) if every is None else every
    simulations = {
        name: Simulation(
            problem, **settings_of(name, topology, H, iterations, gossip_every), **arguments
        )
        for name in dict.fromkeys(["parallel", *algorithms])
    }
    curves = {}
    for name in list(simulations):
        if verbose:
            print(name, flush=True)
        curves[name] = run(simulations.pop(name), iterations, every, verbose)
    return curves


def transient(curve: Curve, parallel: Curve, factor: float = FACTOR) -> int | None:
    """Return the transient stage: the measured step from which a curve stays near Parallel SGD's.

    The two curves must be measured at the same steps. The function compares their means over
    trials.

    Args:
      curve: the curve of an algorithm.
      parallel: the curve of Parallel SGD on the same problem.
      factor: the largest ratio of `curve` to `parallel` that counts as near. Default 1.1.

    Returns:
      The first measured step from which `curve <= factor * parallel` holds until the end of the
      run; None if it does not hold at the end.
    """
    return joins(curve.steps, curve.mean, parallel.mean, factor)


def is_reached(transient: int, last: int) -> bool:
    """Return whether a transient stage ended at least a tenth of the run before the last step.

    A curve that gets close to Parallel SGD's only in its last measurements may do so by chance.

    Args:
      transient: the transient stage, in steps.
      last: the last step of the run.
    """
    return 10 * transient <= 9 * last


def joins(steps: np.ndarray, mean: np.ndarray, parallel: np.ndarray, factor: float) -> int | None:
    """Return the first of `steps` from which `mean <= factor * parallel` holds to the end, or None.

    Args:
      steps: `[points]` int.
      mean: `[points]`, the curve of an algorithm, as a mean over trials.
      parallel: `[points]`, the same for Parallel SGD.
      factor: the largest ratio of `mean` to `parallel` that counts as caught up.
    """
    apart = np.flatnonzero(~(mean <= factor * parallel))  # NaN counts as not caught up
    first = apart[-1] + 1 if len(apart) else 0
    return int(steps[first]) if first < len(steps) else None
