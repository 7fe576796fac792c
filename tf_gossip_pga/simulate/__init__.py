r"""Simulate many virtual workers ("nodes") in one process, to compare algorithms.

    from tf_gossip_pga import simulate

    problem = simulate.logistic(nodes=50, heterogeneity=1)
    pga = simulate.Simulation(problem, "ring", H=16, step_size=0.2, trials=10)
    curve = simulate.run(pga, iterations=1000)
    curve.mean                                     # f(mean of the nodes) - f*, mean over trials

A simulation needs no cluster: one tensor holds the parameters of all nodes. A step is the same as
in real training: each node takes a gradient step on a batch of its own data, and then the nodes
average.

    y_i <- x_i - step_size * gradient of f_i(x_i, batch)
    x_i <- 1/n sum_j y_j            if k % H == 0, k counted from 1
    x_i <- sum_j W[i, j] * y_j      otherwise, if k % gossip_every == 0
    x_i <- y_i                      otherwise

With an outer optimizer (`pga.Outer`), a global average is followed by an outer step.
f_i is the mean loss over the data of node i, f is the mean of all f_i, and f* is the minimum of f.
W is the mixing matrix of round k / gossip_every - 1 of the topology.

Topologies and periods are the same objects as in real training. A gossip reads O(edges * d)
numbers, where d is the number of parameters.

Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021.

This command runs simulations, and writes the curves to a JSON file and a figure next to that file:

    python -m tf_gossip_pga.simulate --problem=logistic --nodes=50 --topology=ring --H=16 \
        --algorithm=pga --algorithm=gossip --heterogeneity=1 --output=output/simulation.json

Contents:
  Problem: a loss in TensorFlow, and the data of each node.
  logistic, quadratic, digits: ready-made problems. from_keras: the problem of a Keras model.
  Simulation: one algorithm on one problem.
  run, Curve: f(mean of the nodes) - f* during one simulation.
  compare: the curves of several algorithms on the same batches.
  ALGORITHMS, settings_of: names of algorithms, and the arguments of `Simulation` for each name.
  transient: the step from which an algorithm keeps up with Parallel SGD.
  FACTOR: an algorithm keeps up while its curve is at most FACTOR times that of Parallel SGD.
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
