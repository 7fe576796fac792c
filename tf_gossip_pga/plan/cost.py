"""Model the cost of an algorithm: its step time, and its steps to catch up with Parallel SGD.

**Time.** `step_ms` simulates every rank step by step. For each rank and step, it draws the time of
the computation from a gamma distribution, whose mean and standard deviation are arguments. The time
of exchanges follows these rules:

    gossip          A message starts once both its sender and its receiver have finished computing.
                    Messages that are ready share the one full-duplex link of a host. Only the
                    neighbors of a late rank wait for it.
    overlap         As with `GossipPGA(overlap=True)`: a rank waits for a gossip only when the next
                    one is due, and skips the last gossip before a global average.
    global average  Starts once the last rank has finished computing, and ends on all ranks at once.

**Accuracy.** The transient stage is the number of steps until an algorithm has caught up with
Parallel SGD. The table below gives its order of magnitude for iid and non-iid data on the ranks.
The constant factors are unknown, so compare the orders only with each other, not with the length of
a run.

                 iid                   non-iid
    Gossip SGD   n^3 b^4 / (1-b)^2     n^3 b^4 / (1-b)^4        b: spectral norm of W - 11'/n
    Gossip-PGA   n^3 b^4 C^2           n^3 b^4 C^2 D^2          C = (1 - b^H) / (1-b)
    Local SGD    n^3 H^2               n^3 H^4                  D = min(H, 1 / (1-b))

Here, n is the number of ranks, H the period, W the mixing matrix, and 11' the matrix of ones.

Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021.

Reliability: the non-iid orders of Gossip SGD and Local SGD were taken from quotations of the paper.
So was the bound n^3 b^4 H^4 for Gossip-PGA, which follows from the table because C and D are at
most H. The other orders were derived without access to the paper's text, and are consistent with
the quoted ones.

A single round of the one-peer exponential graph has no useful b, because each rank receives from
only one other. `beta_of` uses the b of the static exponential graph. Ying et al. ("Exponential
Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021) prove that the one-peer
graph achieves the same rate as the static one if the number of ranks is a power of two.

The hypercube and the Base-(k+1) graphs average exactly after a cycle of r rounds. For them,
`beta_of` returns b = (r-1) / (r+1), so that 1 / (1-b) is the mean number of rounds, (r+1) / 2,
until a cycle ends. This is a guess. If the number of ranks is a power of two, it equals the b of
the static exponential graph.

If the number of ranks is not a power of two, the one-peer graph may be slower than the static one.
For the one-peer graph, `beta_of` then returns the larger of two values for up to 512 ranks: the b
of the static exponential graph, and the r-th root of the spectral norm of P - 11'/n. Here, P is the
product of the r mixing matrices of one cycle of the one-peer graph. The root turns the b of a cycle
into a b per round. Above 512 ranks, `beta_of` returns the b of the static exponential graph,
because no better value is available.

If there are g steps from one gossip to the next, `beta_of` returns 1 - (1 - b) / g, with which the
number of steps 1 / (1-b) is g times as large. This, too, is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Round, Topology
from tf_gossip_pga.algorithm.schedule import FixedPeriod

_STEPS = 240  # minimum number of steps to average over, rounded up to whole periods
_LARGEST_DENSE = 512  # maximum number of ranks for a dense spectral norm, which takes O(n^3)
_ROUNDING = 1e-9  # a b that is this close to 0 or 1 counts as 0 or 1


def step_ms(
    topology: Topology,
    schedule: FixedPeriod,
    costs: Mapping[str, float],
    overlap: bool,
    seed: int = 0,
) -> float:
    """Return the step time in ms, averaged over all ranks and at least 240 steps.

    Args:
      topology: who gossips with whom.
      schedule: when to gossip and to average globally.
      costs: times in ms. `compute_ms` and `straggler_ms`: mean and standard deviation of a step's
        computation. `message_ms`: how long a message occupies a link. `latency_ms`: added to the
        arrival time of a rank's last message. `average_ms`: duration of a global average.
      overlap: whether ranks wait for a gossip only when the next exchange is due.
      seed: random seed for the computation times. Default 0.
    """
    period = schedule.H or topology.rounds * schedule.gossip_every
    steps = period * math.ceil(_STEPS / period)
    rounds = [peers(topology, round) for round in range(topology.rounds)]
    draw = _draws(costs["compute_ms"], costs["straggler_ms"], topology.size, seed)
    # ms, for each rank: when it can compute next; when its last gossip has ended (for `overlap`)
    ready = arrived = np.zeros(topology.size)
    started = 0.0
    for step in range(1, period + steps + 1):
        ready = ready + draw()
        if schedule.is_global(step):
            ready = np.full_like(ready, ready.max() + costs["average_ms"])
        elif (round := schedule.round_after(step)) is None:
            pass
        elif not overlap:
            ready = gossip_ends(ready, rounds[round % len(rounds)], costs)
        else:
            ready = np.maximum(ready, arrived)
            if schedule.ends_before_average(step):
                arrived = gossip_ends(ready, rounds[round % len(rounds)], costs)
        if step == period:  # exclude the first period, which starts with all ranks in sync
            started = float(ready.mean())
    return (float(ready.mean()) - started) / steps


def mb_per_step(
    topology: Topology,
    schedule: FixedPeriod,
    costs: Mapping[str, float],
    overlap: bool,
) -> float:
    """Return how many MB a rank sends per step, averaged over ranks and whole periods.

    Args:
      topology: who gossips with whom.
      schedule: when to gossip and to average globally.
      costs: sizes in MB. `message_mb`: a message. `average_mb`: what a rank sends in a global
        average.
      overlap: whether gossips that end after the next global average are skipped.
    """
    steps = range(1, 1 + math.lcm(schedule.H or 1, topology.rounds * schedule.gossip_every))
    messages = averages = 0
    for step in steps:
        if schedule.is_global(step):
            averages += 1
        elif (round := schedule.round_after(step)) is None:
            continue
        elif not overlap or schedule.ends_before_average(step):
            messages += len(topology.cycle[round % topology.rounds].receivers)
    sent = messages / topology.size * costs["message_mb"] + averages * costs["average_mb"]
    return sent / len(steps)


def _draws(mean: float, deviation: float, n: int, seed: int) -> Callable[[], np.ndarray | float]:
    """Return a function that draws one step's computation times, `[n]` in ms.

    If `deviation` is 0, the function returns `mean` itself. The draws depend only on the arguments,
    so every algorithm gets the same times.
    """
    if not deviation:
        return lambda: mean
    generator, shape = np.random.default_rng(seed), (mean / deviation) ** 2
    return lambda: generator.gamma(shape, mean / shape, n)


def peers(topology: Topology, round: int) -> list[np.ndarray]:
    """Return which ranks each rank receives from and sends to in one round.

    Args:
      topology: who gossips with whom.
      round: index of the round in the cycle, from 0.

    Returns:
      Two int arrays `[n, largest degree]`: the ranks that each rank receives from, and those that
      it sends to. Shorter rows are padded with -1.
    """
    each = topology.cycle[round]
    return [
        _table(topology.size, each.receivers, each.senders),
        _table(topology.size, each.senders, each.receivers),
    ]


def _table(size: int, ranks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return one row per rank: the `others` at its edges, padded with -1."""
    order = np.argsort(ranks, kind="stable")
    degree = np.bincount(ranks, minlength=size)
    column = np.arange(len(ranks)) - np.repeat(np.cumsum(degree) - degree, degree)
    table = np.full((size, degree.max()), -1)
    table[ranks[order], column] = others[order]
    return table


def gossip_ends(
    ready: np.ndarray, peers: list[np.ndarray], costs: Mapping[str, float]
) -> np.ndarray:
    """Return the time at which each rank has sent and received all its messages.

    A message can start once both its sender and its receiver are ready, and a link is never idle
    while a message could use it. Order the messages of a link by the time at which they can start,
    and number them from the end: when message p can start, the link still has at least p messages
    to carry. The link therefore finishes no earlier than p message times after that moment. It
    finishes exactly at the latest of these bounds over all p.

    Args:
      ready: `[n]`, the time at which each rank is ready to exchange, in ms.
      peers: the result of the function `peers` for the round.
      costs: `message_ms` and `latency_ms`, in ms.

    Returns:
      `[n]`, the time at which each rank's last message has ended, in ms.
    """
    ends = ready
    for table in peers:
        begins = np.maximum(ready[:, np.newaxis], ready[table])
        begins = -np.sort(np.where(table < 0, np.inf, -begins), axis=1)  # latest first
        work = costs["message_ms"] * np.arange(1, table.shape[1] + 1)
        last = (begins + work).max(axis=1, initial=-np.inf) + costs["latency_ms"]
        ends = np.maximum(ends, last)
    return ends


def beta_of(graph: Topology, gossip_every: int = 1) -> float | None:
    """Return b of a graph, on which the transient stage depends (see the docstring of this module).

    Return None for a graph of more than 512 ranks for which this module has no formula, because
    computing b would take too long.

    Args:
      graph: who gossips with whom.
      gossip_every: number of steps from one gossip to the next. Default 1.
    """
    beta = _beta_of_gossip(graph)
    return None if beta is None else 1 - (1 - beta) / gossip_every


def _beta_of_gossip(graph: Topology) -> float | None:
    if graph.name in ("hypercube", "base_2", "base_graph"):
        return (graph.rounds - 1) / (graph.rounds + 1)
    if graph.name == "one_peer_exponential":
        static = _beta_of_circulant(topology_lib.static_exponential(graph.size).cycle[0])
        proven = graph.size & (graph.size - 1) == 0  # a power of two
        return static if proven else max(static, _beta_of_a_round(graph) or 0.0)
    if graph.name in ("static_exponential", "ring", "complete"):
        return _beta_of_circulant(graph.cycle[0])
    return _beta_of_a_round(graph)


def _beta_of_circulant(each: Round) -> float:
    """Return b of a circulant W, in which each row is the row of rank 0, shifted.

    The eigenvalues of such a matrix are the Fourier transform of that row.
    """
    own = each.receivers == 0
    row = np.zeros(len(each.self_weights))
    row[each.senders[own]] = each.edge_weights[own]
    row[0] = each.self_weights[0]
    return _exact(float(np.abs(np.fft.fft(row))[1:].max()))


def _beta_of_a_round(graph: Topology) -> float | None:
    """Return the per-round geometric mean of b over a cycle, or None above 512 ranks."""
    if graph.size > _LARGEST_DENSE:
        return None
    return _exact(graph.beta) ** (1 / graph.rounds)


def _exact(beta: float) -> float:
    return 0.0 if beta < _ROUNDING else beta


def between_averages(beta: float, H: int | None) -> tuple[float, float]:  # noqa: N803
    """Return C and D of this module's docstring. For Gossip SGD (`H=None`), both are 1 / (1-b)."""
    if beta >= 1 - _ROUNDING:  # the graph is disconnected: gossip alone never catches up
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
    """Return the orders of the transient stage for iid and non-iid data.

    This module's docstring contains their formulas.

    Args:
      method: `"Parallel SGD"`, `"Local SGD"`, `"Gossip SGD"` or `"Gossip-PGA"`.
      n: number of ranks.
      beta: b of the graph; None if unknown. Not used for Parallel SGD and Local SGD.
      H: period in steps; None for Gossip SGD.

    Returns:
      `(iid, non-iid)`, two dimensionless numbers. None means that the order is infinite, or unknown
      because `beta` is None.
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
