"""Model what a step costs: who waits for whom, and for how many steps an algorithm lags behind.

**Time.** `step_ms` follows every worker from step to step. Computations are drawn for each rank and
step, from a gamma distribution of the given mean and standard deviation. Then

  a gossip    begins for each pair when both have computed. Each host has one full-duplex link.
              Messages that are ready share it; only its neighbors wait for a late rank.
  overlap     is `GossipPGA(overlap=True)`: ranks wait for the gossip of step k after the
              computation of step k+1, and leave out the gossip before a global average.
  an average  begins when the last rank has computed, and ends for all at once.

**Accuracy.** The transient stage is the number of steps until an algorithm has caught up with
Parallel SGD. It grows as follows, for iid and for non-iid data on the ranks. Constants are unknown:
compare orders with one another, not with the length of a run.

                 iid                   non-iid
    Gossip SGD   n^3 b^4 / (1-b)^2     n^3 b^4 / (1-b)^4        b: norm of W - 11'/n
    Gossip-PGA   n^3 b^4 C^2           n^3 b^4 C^2 D^2          C = (1 - b^H) / (1-b)
    Local SGD    n^3 H^2               n^3 H^4                  D = min(H, 1 / (1-b))

Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021. How sure:
the non-iid column for Gossip and Local SGD, and the bound n^3 b^4 H^4 for PGA, were found quoted;
the rest was written without the text at hand, and agrees with it. One-peer exponential and
hypercube graphs have no b of one round. They get that of the static exponential graph, since Ying
et al. ("Exponential Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021)
prove the same rate for the one-peer graph of a power of two of ranks; for the hypercube it is a
guess. For other numbers of ranks the one-peer graph may be slower: up to 512 ranks its b is at
least the mean of a round in its cycle; above, nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Round, Topology
from tf_gossip_pga.algorithm.schedule import AdaptiveSchedule, FixedPeriod

_STEPS = 240  # at least, in whole periods: their mean is taken
_LARGEST_DENSE = 512  # ranks up to which the spectral norm of any matrix is computed: O(n^3)
_ROUNDING = 1e-9  # by which a b of 0 or 1 may be wrong


def step_ms(
    topology: Topology,
    schedule: FixedPeriod | AdaptiveSchedule,
    costs: Mapping[str, float],
    overlap: bool,
    seed: int = 0,
) -> float:
    """Return the time of a step in ms: the mean over ranks and steps.

    Args:
      topology: who gossips with whom.
      schedule: when to average globally, with a fixed period.
      costs: `compute_ms` and its standard deviation `straggler_ms`; `message_ms`, for which a
        message occupies a link; `latency_ms`, until it has arrived; `average_ms`, for all of a
        global average.
      overlap: whether ranks wait for a gossip after the next computation.
      seed: seed of the computations.
    """
    period = schedule.H or topology.rounds
    steps = period * math.ceil(_STEPS / period)
    rounds = [peers(topology, round) for round in range(topology.rounds)]
    draw = _draws(costs["compute_ms"], costs["straggler_ms"], topology.size, seed)
    ready = arrived = np.zeros(topology.size)  # of each rank: when it can compute, and has received
    started = 0.0
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
        if step == period:  # the first period has nobody to wait for
            started = float(ready.mean())
    return (float(ready.mean()) - started) / steps


def _draws(mean: float, deviation: float, n: int, seed: int) -> Callable[[], np.ndarray | float]:
    """Return a function that draws the computations of one step, `[n]`, equal for each method."""
    if not deviation:
        return lambda: mean
    generator, shape = np.random.default_rng(seed), (mean / deviation) ** 2
    return lambda: generator.gamma(shape, mean / shape, n)


def peers(topology: Topology, round: int) -> list[np.ndarray]:
    """Return whom each rank receives from and sends to: two `[n, most]`, -1 for nobody."""
    each = topology.cycle[round]
    return [
        _table(topology.size, each.receivers, each.senders),
        _table(topology.size, each.senders, each.receivers),
    ]


def _table(size: int, ranks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return a row for each rank with its partners, -1 where there are fewer."""
    order = np.argsort(ranks, kind="stable")
    degree = np.bincount(ranks, minlength=size)
    column = np.arange(len(ranks)) - np.repeat(np.cumsum(degree) - degree, degree)
    table = np.full((size, degree.max()), -1)
    table[ranks[order], column] = others[order]
    return table


def gossip_ends(
    ready: np.ndarray, peers: list[np.ndarray], costs: Mapping[str, float]
) -> np.ndarray:
    """Return when each rank has sent and received all its messages, `[n]`.

    A message begins when both its ends are ready. A link is never idle while a message could use
    it. The p-th to last message to begin leaves it at least p messages of work, and the worst of
    these is its end.
    """
    ends = ready
    for table in peers:
        begins = np.maximum(ready[:, np.newaxis], ready[table])
        begins = -np.sort(np.where(table < 0, np.inf, -begins), axis=1)  # latest first
        work = costs["message_ms"] * np.arange(1, table.shape[1] + 1)
        last = (begins + work).max(axis=1, initial=-np.inf) + costs["latency_ms"]
        ends = np.maximum(ends, last)
    return ends


def beta_of(graph: Topology) -> float | None:
    """Return the b that the transient stage depends on; None where it would take long."""
    if graph.name in ("one_peer_exponential", "hypercube"):
        static = _beta_of_circulant(topology_lib.static_exponential(graph.size).cycle[0])
        proven = graph.size & (graph.size - 1) == 0  # a power of two
        return static if proven else max(static, _beta_of_a_round(graph) or 0.0)
    if graph.name in ("static_exponential", "ring", "complete"):
        return _beta_of_circulant(graph.cycle[0])
    return _beta_of_a_round(graph)


def _beta_of_circulant(each: Round) -> float:
    """Return b where every row of W is that of rank 0, shifted.

    The eigenvalues of W are then the Fourier transform of that row.
    """
    own = each.receivers == 0
    row = np.zeros(len(each.self_weights))
    row[each.senders[own]] = each.edge_weights[own]
    row[0] = each.self_weights[0]
    return _exact(float(np.abs(np.fft.fft(row))[1:].max()))


def _beta_of_a_round(graph: Topology) -> float | None:
    """Return the geometric mean over a cycle; None for many ranks."""
    if graph.size > _LARGEST_DENSE:
        return None
    return _exact(graph.beta) ** (1 / graph.rounds)


def _exact(beta: float) -> float:
    return 0.0 if beta < _ROUNDING else beta


def between_averages(beta: float, H: int | None) -> tuple[float, float]:  # noqa: N803
    """Return C and D, as above; of Gossip SGD, where H is None, both 1 / (1-b)."""
    if beta >= 1 - _ROUNDING:  # disconnected: gossip alone never catches up
        never = math.inf if H is None else H
        return never, never
    limit = 1 / (1 - beta)
    return (limit, limit) if H is None else ((1 - beta**H) * limit, min(H, limit))


def transient(
    method: str,
    n: int,
    beta: float | None,
    H: int | None,  # noqa: N803 (the paper's name)
) -> tuple[float | None, float | None]:
    """Return the orders of the transient stage, `(iid, non-iid)`, as above.

    None stands for an order that is infinite, or not known where `beta` is None.
    """
    if method == "Parallel SGD":
        return 0.0, 0.0
    if method == "Local SGD" and H is not None:
        return float(n**3 * H**2), float(n**3 * H**4)
    if beta is None:
        return None, None
    c, d = between_averages(beta, H)
    iid, non_iid = n**3 * beta**4 * c**2, n**3 * beta**4 * c**2 * d**2
    return (
        iid if math.isfinite(iid) else None,
        non_iid if math.isfinite(non_iid) else None,
    )
