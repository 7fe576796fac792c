"""Set the environment variables that give each worker its rank, its GPUs and its threads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import socket
from collections.abc import Mapping, Sequence

from tf_gossip_pga.cluster import cluster_file, place, ports, tf_config

# Variables that workers on other hosts get from the launcher's environment, in addition to those of
# this package.
_PASSED = ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS")
_OWN = "TF_GOSSIP_PGA_"

# Variables whose values are different for each worker. (CLUSTER would take precedence over
# TF_CONFIG, and the workers of one host cannot share CHANNEL_PORT.)
OF_ONE_WORKER = (
    "TF_CONFIG",
    tf_config.JOIN,
    place.CLUSTER,
    cluster_file.RANK,
    ports.CHANNEL_PORT,
)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Settings that all workers of a job share.

    Attributes:
      verbose: whether to show TensorFlow's start-up messages.
      chosen: variables that the user has chosen for all workers.
      secret: the job's secret, a random one by default. A secret that the user has set in the
        environment takes precedence.
    """

    verbose: bool
    chosen: Mapping[str, str]
    secret: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))


def of_worker(addresses: list[str], rank: int, shared: Shared, *, joins: bool) -> dict[str, str]:
    """Return the variables that one worker needs from the launcher, on whichever host it runs.

    Args:
      addresses: `host:port` of all workers, in rank order.
      rank: the worker's rank.
      shared: the settings that all workers share.
      joins: whether the worker joins a running job.
    """
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_OWN)
    }
    given = {**passed, **shared.chosen}
    environment = {name: value for name, value in given.items() if name not in OF_ONE_WORKER}
    environment["TF_CONFIG"] = tf_config.to_tf_config(addresses, rank)
    environment["PYTHONUNBUFFERED"] = "1"
    if tf_config.SECRET_FILE not in environment:
        environment.setdefault(tf_config.SECRET, shared.secret)
    if joins:
        environment[tf_config.JOIN] = "1"
    if not shared.verbose:
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return environment


def on_this_host(variables: Mapping[str, str], workers: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return all environment variables of a worker that is about to start on this host.

    Args:
      variables: the variables from `of_worker`, which replace those of this process.
      workers: number of workers on this host.
      gpus: the GPUs of this worker (see `gpus.visible`). If the list is empty, hide no GPU.
    """
    # This package's variables come from the launcher only, so that they are the same on all hosts.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    environment.update(variables)
    # By default, TensorFlow starts a thread for every core in each worker. Together, the workers
    # would have more threads than cores, which slows them all down.
    share = max(1, (os.cpu_count() or 1) // workers)
    environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


def free_addresses(count: int) -> list[str]:
    """Return addresses on this machine whose ports are currently free.

    No port is reserved: another process may take it before a worker listens on it.

    Args:
      count: number of addresses.

    Returns:
      `count` distinct strings, `"127.0.0.1:PORT"`.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
