"""Create the environment of each local worker: its rank, its GPUs and its CPU cores."""

from __future__ import annotations

import contextlib
import os
import socket

from tf_gossip_pga.cluster import cluster_file, place, tf_config


def of_worker(
    addresses: list[str],
    rank: int,
    gpus: list[str],
    *,
    verbose: bool,
    joins: bool,
    secret: str,
) -> dict[str, str]:
    """Return the environment variables of one worker.

    Args:
      addresses: `host:port` of all workers, in rank order.
      rank: the worker's rank.
      gpus: the GPUs of this worker (see `gpus.visible`). If it is empty, hide none.
      verbose: whether to show TensorFlow's start-up messages.
      joins: whether the worker joins a running job.
      secret: secret shared by the workers of this job. A secret that the user has set in the
        environment takes precedence.
    """
    environment = {
        **os.environ,
        "TF_CONFIG": tf_config.to_tf_config(addresses, rank),
        "PYTHONUNBUFFERED": "1",
    }
    if tf_config.SECRET_FILE not in environment:
        environment.setdefault(tf_config.SECRET, secret)
    environment.pop(tf_config.JOIN, None)
    environment.pop(place.CLUSTER, None)  # it would take precedence over TF_CONFIG
    environment.pop(cluster_file.RANK, None)
    if joins:
        environment[tf_config.JOIN] = "1"
    # By default, TensorFlow starts a thread for every core in each worker. Together, the workers
    # would have more threads than cores, which slows them all down.
    share = max(1, (os.cpu_count() or 1) // len(addresses))
    environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
    if not verbose:
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


def free_addresses(count: int) -> list[str]:
    """Return addresses on this machine whose ports are currently free.

    Another process may take a port before a worker listens on it.

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
