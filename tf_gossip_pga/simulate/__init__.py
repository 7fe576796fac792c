"""Simulate many virtual workers on one device, to compare algorithms before there is a cluster.

    from tf_gossip_pga import simulate

    problem = simulate.logistic(nodes=50, heterogeneity=1)
    pga = simulate.Simulation(problem, "ring", H=16, step_size=0.2, trials=10)
    curve = simulate.run(pga, iterations=1000)
    curve.mean                                     # f(mean of the nodes) - f*, over the trials

The parameters of all nodes are one tensor, and a step is that of the real run: each node moves
along the gradient on a batch of its own data, and the results are averaged.

    y_i <- x_i - step_size * gradient of f_i(x_i, batch)
    x_i <- 1/n sum_j y_j            if k % H == 0, k counted from 1
    x_i <- sum_j W[i, j] * y_j      otherwise, W of round k - 1

Topologies and periods are the objects of the real run. A gossip reads O(edges * d) numbers.
Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021.

From the command line, with a figure next to the JSON file:

    python -m tf_gossip_pga.simulate --problem=logistic --nodes=50 --topology=ring --H=16 \\
        --algorithm=pga --algorithm=gossip --heterogeneity=1 --output=output/simulation.json

Contents:
  Problem: a loss in TensorFlow, and each node's data.
  logistic, quadratic, digits: problems that are ready; from_keras: that of a Keras model.
  Simulation: one algorithm.
  run, Curve: f along a simulation; compare: several algorithms, with the same batches.
  ALGORITHMS, settings_of: their names, and the arguments of `Simulation` that make them.
  transient, FACTOR: the step from which a method is as good as Parallel SGD.
"""

from tf_gossip_pga.simulate.curves import (
    ALGORITHMS,
    FACTOR,
    Curve,
    compare,
    run,
    settings_of,
    transient,
)
from tf_gossip_pga.simulate.problem import Problem, from_keras
from tf_gossip_pga.simulate.problems import digits, logistic, quadratic
from tf_gossip_pga.simulate.simulation import Simulation

__all__ = [
    "ALGORITHMS",
    "FACTOR",
    "Curve",
    "Problem",
    "Simulation",
    "compare",
    "digits",
    "from_keras",
    "logistic",
    "quadratic",
    "run",
    "settings_of",
    "transient",
]
