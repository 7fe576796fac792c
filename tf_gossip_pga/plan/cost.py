"""WHAT A STEP COSTS: who waits for whom, and for how many steps an algorithm lags behind.

**Time.** Every worker is followed from step to step. Its computation is drawn (a gamma distribution
of the given mean and standard deviation, anew for each rank and step); then

  a gossip    begins for each pair when both have computed. Each host has one link, full duplex;
              messages that are ready share it, whoever is late is waited for by its neighbours
              alone.
  overlap     is `GossipPGA(overlap=True)`: the gossip of step k is waited for after the
              computation of step k+1, and the one before a global average is left out.
  an average  begins when the last has computed, and ends for all at once.

**Accuracy** is another question: how many steps pass until an algorithm has caught up with Parallel
SGD, its transient stage, grows as follows, for alike and for different data on the ranks. Constants
are unknown: compare orders with one another, not with the length of a run.

    Gossip SGD   n^3 b^4 / (1-b)^2         n^3 b^4 / (1-b)^4        b: norm of W - 11'/n
    Gossip-PGA   n^3 b^4 C^2               n^3 b^4 C^2 D^2          C = (1 - b^H) / (1-b)
    Local SGD    n^3 H^2                   n^3 H^4                  D = min(H, 1 / (1-b))

Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021. How sure:
the column of different data for Gossip and Local SGD, and the bound n^3 b^4 H^4 for PGA, were found
quoted; the rest was written without the text at hand, and agrees with it. One-peer exponential and
hypercube graphs have no b of one round; they are given the static exponential graph's, since Ying
et al. ("Exponential Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021)
prove the same rate for the one-peer graph of a power of two of ranks (for the hypercube it is a
guess). For other numbers the one-peer graph may be slower: up to 512 ranks its b is at least the
mean of a round in its cycle; above, nothing is known.
"""

import math

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib

_STEPS = 240  # whose mean is taken, or a little more: whole periods
_LARGEST_DENSE = 512  # ranks up to which the spectral norm of any matrix is computed: O(n^3)
_ROUNDING = 1e-9  # of a b that is 0 or 1


def step_ms(topology, schedule, costs: dict, overlap: bool, seed: int = 0) -> float:
    """Milliseconds of a step, from one computation to the next: the mean over ranks and steps.

    Args:
      topology: a `Topology`.
      schedule: what `schedule.resolve` gives, with a fixed period.
      costs: `compute_ms` and its `straggler_ms`; `message_ms`, that a message occupies a link;
        `latency_ms`, until it has arrived; `average_ms` of a global average, all in all.
      overlap: whether a gossip is waited for after the next computation.
      seed: of the computations drawn.
    """
    period = schedule.H or topology.rounds
    steps = period * math.ceil(_STEPS / period)
    rounds = [peers(topology, round) for round in range(topology.rounds)]
    draw = _draws(costs["compute_ms"], costs["straggler_ms"], topology.size, seed)
    ready = arrived = np.zeros(topology.size)  # of each rank: when it can compute, and has received
    for step in range(1, period + steps + 1):
        ready = ready + draw()
        if schedule.is_global(step):
            ready = np.full_like(ready, ready.max() + costs["average_ms"])
        elif not overlap:
            ready = gossip_ends(ready, rounds[(step - 1) % len(rounds)], costs)
        else:
            ready = np.maximum(ready, arrived)
            if not schedule.is_global(step + 1):
                arrived = gossip_ends(ready, rounds[(step - 1) % len(rounds)], costs)
        if step == period:  # the first has nobody to wait for
            started = ready.mean()
    return float(ready.mean() - started) / steps


def _draws(mean: float, deviation: float, n: int, seed: int):
    """A function that draws the computations of one step, `[n]`; the same for each method."""
    if not deviation:
        return lambda: mean
    generator, shape = np.random.default_rng(seed), (mean / deviation) ** 2
    return lambda: generator.gamma(shape, mean / shape, n)


def peers(topology, round: int) -> list[np.ndarray]:
    """Whom each rank receives from and sends to in a round: two `[n, most]`, -1 for nobody."""
    each = topology.cycle[round]
    tables = []
    for mine, theirs in ((each.receivers, each.senders), (each.senders, each.receivers)):
        order = np.argsort(mine, kind="stable")
        degree = np.bincount(mine, minlength=topology.size)
        column = np.arange(len(mine)) - np.repeat(np.cumsum(degree) - degree, degree)
        table = np.full((topology.size, degree.max()), -1)
        table[mine[order], column] = theirs[order]
        tables.append(table)
    return tables


def gossip_ends(ready: np.ndarray, peers: list[np.ndarray], costs: dict) -> np.ndarray:
    """When each rank has sent and received all its messages, `[n]`.

    A message begins when both its ends are ready. A link is never idle while one could travel: the
    p-th to last to begin leaves it at least p messages of work, and the worst of these is its end.
    """
    ends = ready
    for table in peers:
        begins = np.maximum(ready[:, np.newaxis], ready[table])
        begins = -np.sort(np.where(table < 0, np.inf, -begins), axis=1)  # the last one first
        work = costs["message_ms"] * np.arange(1, table.shape[1] + 1)
        last = (begins + work).max(axis=1, initial=-np.inf) + costs["latency_ms"]
        ends = np.maximum(ends, last)
    return ends


def beta_of(graph) -> float | None:
    """The b of a `Topology` that the transient stage depends on; None where it would take long."""
    if graph.name in ("one_peer_exponential", "hypercube"):
        static = beta_of(topology_lib.static_exponential(graph.size))
        proven = graph.size & (graph.size - 1) == 0  # a power of two
        return static if proven else max(static, _beta_of_a_round(graph) or 0.0)
    if graph.name in ("static_exponential", "ring", "complete"):
        # Each rank's weights are those of rank 0, shifted: a Fourier transform gives eigenvalues.
        weights, row = graph.neighbors(0, 0)[0], np.zeros(graph.size)
        row[list(weights)] = list(weights.values())
        row[0] = graph.neighbors(0, 0)[1]
        return _exact(float(np.abs(np.fft.fft(row))[1:].max()))
    return _beta_of_a_round(graph)


def _beta_of_a_round(graph) -> float | None:
    """The geometric mean over a cycle; None for many ranks."""
    if graph.size > _LARGEST_DENSE:
        return None
    return _exact(graph.beta) ** (1 / graph.rounds)


def _exact(beta: float) -> float:
    return 0.0 if beta < _ROUNDING else beta


def between_averages(beta: float, H: int | None) -> tuple[float, float]:  # noqa: N803
    """C and D, as above; of Gossip SGD, where H is None, both 1 / (1-b)."""
    if beta >= 1 - _ROUNDING:  # disconnected, for gossip alone: never
        never = math.inf if H is None else H
        return never, never
    limit = 1 / (1 - beta)
    return (limit, limit) if H is None else ((1 - beta**H) * limit, min(H, limit))


def transient(method: str, n: int, beta: float | None, H: int | None):  # noqa: N803
    """Orders of the transient stage, `(for alike, for different data)`, as above; or Nones."""
    if method == "Parallel SGD":
        return 0.0, 0.0
    if method == "Local SGD":
        return float(n**3 * H**2), float(n**3 * H**4)
    if beta is None:
        return None, None
    c, d = between_averages(beta, H)
    orders = n**3 * beta**4 * c**2, n**3 * beta**4 * c**2 * d**2
    return tuple(each if math.isfinite(each) else None for each in orders)
