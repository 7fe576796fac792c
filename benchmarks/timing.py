"""Time actions that all workers of a benchmark run together."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tf_gossip_pga import Cluster

PATIENCE_S = 1800.0  # an exchange over slow links, or tracing it on a busy machine, takes minutes


def warm_up(size: int) -> int:
    """Return how often to run an exchange before it is timed.

    These runs trace all rounds of a one-peer graph. Decent-DP needs at least three.

    Args:
      size: number of workers.
    """
    return max(3, (size - 1).bit_length())


def measure(
    cluster: "Cluster", actions: Mapping[str, Callable[[], object]], repetitions: int, what: str
) -> dict[str, dict[str, list[float]]]:
    """Time actions that all ranks run together, in alternation, each from a common start.

    Args:
      cluster: the cluster.
      actions: name -> function.
      repetitions: how often to time each action.
      what: text that rank 0 prints before the number of the repetition.

    Returns:
      Name -> `{"seconds": […], "cpu": […]}`, each with one value per repetition.
    """
    measured = {name: {"seconds": [], "cpu": []} for name in actions}
    for repetition in range(repetitions):
        if cluster.is_chief:
            print(f"{what}: repetition {repetition + 1} of {repetitions}", flush=True)
        for name, action in actions.items():
            cluster.barrier(PATIENCE_S)
            started, cpu = time.perf_counter(), time.process_time()
            action()
            measured[name]["seconds"].append(time.perf_counter() - started)
            measured[name]["cpu"].append(time.process_time() - cpu)
    return measured


def last(ranks: list[dict], name: str) -> np.ndarray:
    """Return the time until the last rank finished, `[repetitions]` in seconds.

    Args:
      ranks: the result of `measure` on each rank.
      name: name of the action.
    """
    return np.max([rank[name]["seconds"] for rank in ranks], axis=0)
