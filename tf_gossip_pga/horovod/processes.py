"""Connect this process to the other workers, and find its place among them and on its host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_gossip_pga.cluster import detect
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.place import Place, number
from tf_gossip_pga.exchange import process


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of one worker among the workers of its host, and of its host among the hosts.

    Attributes:
      local_rank: number of workers of the same host with lower ranks.
      local_size: number of workers of the same host.
      cross_rank: number of hosts, in the order of their lowest ranks, that come before this
        worker's host and also have a worker with this local rank.
      cross_size: number of hosts that have a worker with this local rank.
    """

    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def layout(hosts: Sequence[str], rank: int) -> Layout:
    """Return the layout of one worker.

    Args:
      hosts: the name of each worker's host, in rank order.
      rank: the worker's rank.

    Example:
      >>> layout(["a", "a", "b", "a", "b"], rank=4)
      Layout(local_rank=1, local_size=2, cross_rank=1, cross_size=2)
    """
    own = hosts[rank]
    local_rank = hosts[:rank].count(own)
    across = [host for host in dict.fromkeys(hosts) if hosts.count(host) > local_rank]
    return Layout(local_rank, hosts.count(own), across.index(own), len(across))


_cluster: Cluster | None = None  # between `init` and `shutdown`
_layout = Layout(0, 1, 0, 1)


def init(comm: None = None, process_sets: None = None) -> None:
    """Connect this process to the other workers.

    `init` does what `pga.initialize` does. Before, it lets TensorFlow see only one GPU, the one
    that a Horovod script chooses with `tf.config.set_visible_devices(gpus[hvd.local_rank()])`, and
    lets GPU memory grow. The lines of the script that do the same after `init` then change nothing.
    If the script has chosen devices before `init`, `init` keeps its choice.

    Call `init` before creating any model, variable, tensor, or dataset. A second call does nothing.

    Args:
      comm: only None. There are no communicators of MPI.
      process_sets: only None. There are no subsets of workers.

    Raises:
      ValueError: if another argument than None is passed. For others, see `pga.initialize`.
      RuntimeError: see `pga.initialize`.
      WorkerLost: see `pga.initialize`.

    Example:
      >>> import tf_gossip_pga.horovod as hvd
      >>> hvd.init()
      >>> hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()  # started alone
      (0, 1, 0, 1)
    """
    global _cluster, _layout
    if comm is not None or process_sets is not None:
        raise ValueError(
            "hvd.init accepts neither comm nor process_sets: all workers train together. Call "
            "hvd.init() without arguments."
        )
    _pin_gpu(local_rank_before(detect.find(), os.environ))
    cluster = process.initialize()
    hosts = [_host(address) for address in cluster.addresses]
    _layout = layout(hosts, cluster.rank) if cluster.size > 1 else Layout(0, 1, 0, 1)
    _cluster = cluster


def local_rank_before(place: Place, environment: Mapping[str, str]) -> int:
    """Return this worker's local rank as far as it is known before the workers are connected.

    Args:
      place: this process's place among the workers. With Open MPI and `torchrun`, it has no
        addresses.
      environment: the environment variables of this process.
    """
    if place.size > 1 and place.addresses:
        return layout([_host(address) for address in place.addresses], place.rank).local_rank
    known = environment.get("OMPI_COMM_WORLD_LOCAL_RANK") or environment.get("LOCAL_RANK")
    return number(known) if place.size > 1 else 0


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _pin_gpu(local_rank: int) -> None:
    """Let TensorFlow see one GPU, unless the script has chosen its devices already."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or tf.config.get_visible_devices("GPU") != gpus:
        return
    # If TensorFlow is running already, it refuses, and `initialize` says which line to move.
    with contextlib.suppress(RuntimeError):
        for gpu in gpus:
            if not tf.config.get_logical_device_configuration(gpu):
                tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.set_visible_devices(gpus[local_rank % len(gpus)], "GPU")


def shutdown() -> None:
    """Make `rank` and all other functions raise until `init` is called again.

    The connections to the other workers stay open until the process ends.
    """
    global _cluster
    _cluster = None


def is_initialized() -> bool:
    """Return whether `init` was called, and `shutdown` was not called since."""
    return _cluster is not None


def cluster() -> Cluster:
    """Return this process's place among the workers.

    Raises:
      RuntimeError: `init` was not called.
    """
    if _cluster is None:
        raise RuntimeError(
            "Horovod's API is not initialized. Call hvd.init() at the top of the script, before "
            "the first model, tensor or dataset."
        )
    return _cluster


def rank() -> int:
    """Return this worker's rank, 0 … size-1. Raise `RuntimeError` before `init`."""
    return cluster().rank


def workers() -> int:
    """Return the number of workers to which this process is connected, also after `shutdown`."""
    return process.active().cluster.size


def size() -> int:
    """Return the number of workers. Raise `RuntimeError` before `init`."""
    return cluster().size


def _known(name: str) -> Any:
    cluster()
    return getattr(_layout, name)


def local_rank() -> int:
    """Return this worker's number on its host, in rank order. Raise `RuntimeError` before `init`.

    Workers are on the same host if their addresses name the same host.
    """
    return _known("local_rank")


def local_size() -> int:
    """Return the number of workers on this host. Raise `RuntimeError` before `init`."""
    return _known("local_size")


def cross_rank() -> int:
    """Return this host's number among those with this local rank. Raise before `init`."""
    return _known("cross_rank")


def cross_size() -> int:
    """Return the number of hosts that have a worker with this local rank. Raise before `init`."""
    return _known("cross_size")
