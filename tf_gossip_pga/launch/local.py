"""Start workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tf_gossip_pga.launch import environment, gpus
from tf_gossip_pga.launch.environment import Shared
from tf_gossip_pga.launch.workers import Team, Worker

_ANSWER_S = 0.2  # deadline for a worker to answer whether it waits for others to start


def team(
    command: Sequence[str],
    count: int,
    shared: Shared,
    gpus_per_worker: int,
    share_gpus: bool,
    terminal: bool,
) -> Team:
    """Return the team of workers on this machine.

    Args:
      command: program and arguments.
      count: number of workers.
      shared: the settings that all workers share.
      gpus_per_worker: number of GPUs for each worker, if this machine has GPUs.
      share_gpus: whether several workers may use one GPU.
      terminal: whether the launcher prints to a terminal. Rank 0 then gets one too, so that Keras
        draws a progress bar.

    Raises:
      ValueError: this machine has too few GPUs.
    """
    visible = gpus.visible({**os.environ, **shared.chosen})
    shares = gpus.divide(visible, count, gpus_per_worker, share_gpus)
    addresses = environment.free_addresses(count)

    def start(rank: int, joins: bool) -> Worker:
        variables = environment.of_worker(addresses, rank, shared, joins=joins)
        whole = environment.on_this_host(variables, count, shares[rank])
        return Worker(command, rank, whole, terminal and rank == 0)

    return Team(addresses, start, _ANSWER_S)
