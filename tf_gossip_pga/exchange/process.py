"""Connect this process with its cluster: `initialize`, and the one session of the process."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster import detect, devices, tf_config
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import joining
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.membership import Membership
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.watchdog import Watchdog
from tf_gossip_pga.exchange import runtime as runtime_lib
from tf_gossip_pga.exchange import startup
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.exchange.session import SoloSession

Session = SoloSession | ElasticSession

_active: Session | None = None


def initialize(join: bool | None = None) -> Cluster:
    """Join the cluster that `TF_CONFIG` describes; call it before anything else of TensorFlow.

    Start TensorFlow's server and wait until all workers have started theirs. Without a `TF_CONFIG`
    (or with one of a single worker) start no server. Calling it again returns the same cluster.

    Args:
      join: whether the other workers train already, without this one, and shall take it in again.
        It then waits until they have found it. None: whether `TF_GOSSIP_PGA_JOIN` is set to 1, or
        all others are running and look for this worker. See `GossipPGA`, `on_worker_lost`.

    Returns:
      The `Cluster`: `rank`, `size`, `addresses`, `is_chief`, `shard(dataset)`, `gather(value)`,
      `barrier()`, and the `strategy` for a worker with several devices.

    Raises:
      ValueError: `TF_CONFIG` cannot be used; the message quotes it and shows an example. Also if a
        single worker is to join others.
      RuntimeError: TensorFlow is already running, so its server can no longer be configured; the
        message names the line to move.
      WorkerLost: nobody has looked for this worker, which was to join again.

    Example:

        import tf_gossip_pga as pga
        cluster = pga.initialize()
    """
    global _active
    if _active is None:
        cluster = detect.find()
        if join is None:
            join = os.environ.get(tf_config.JOIN) == "1"
        if join and cluster.size == 1:
            raise ValueError(
                f"A worker that is to join others ({tf_config.JOIN}=1, or join=True) needs the "
                "TF_CONFIG that it had, with the addresses of all workers; it has none of several."
            )
        session = SoloSession(cluster) if cluster.size == 1 else _connect(cluster, join, Timing())
        session.cluster = dataclasses.replace(
            cluster, strategy=devices.local_strategy(), exchange_values=session.gather
        )
        _active = session
    return _active.cluster


def active() -> Session:
    """Return the session of this process; that of a single worker where there is no cluster.

    Raises:
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called.
    """
    if _active is not None:
        return _active
    cluster = detect.find()
    if cluster.size > 1:
        raise RuntimeError(
            f"TF_CONFIG names {cluster.size} workers, but this process has not joined them. Put\n"
            "    cluster = tf_gossip_pga.initialize()\n"
            "at the top of the program, before the first model, tensor or dataset."
        )
    return SoloSession(cluster)


def _connect(cluster: Cluster, joins: bool, timing: Timing) -> ElasticSession:
    """Start this worker's server and its control plane, and meet the other workers."""
    # Before any waiting: rank 0 may have ended with this same error.
    if runtime_lib.is_running():
        raise startup.too_late()
    transport = runtime_lib.find_transport()
    find = joining.await_probe if joins else joining.endpoints_if_probed
    known = find(cluster.addresses, cluster.rank, timing)
    is_joining = known is not None
    if is_joining:
        logger.info(f"Rank {cluster.rank} is to join the others, who train already.")
    else:
        startup.await_chief(cluster, timing)
    runtime = runtime_lib.Runtime(cluster, transport)
    if is_joining:
        runtime.start_alone()
    else:
        runtime.start()
    status = Status()
    channel = Channel(cluster.addresses, cluster.rank, status, timing)
    watchdog = Watchdog(cluster.rank, cluster.size, channel, status, timing, runtime_lib.abort)
    membership = Membership(channel, status, cluster.rank, cluster.size, timing, watchdog.call_off)
    if is_joining:
        membership.restrict((cluster.rank,))  # no other worker's loss concerns it yet
    session = ElasticSession(
        cluster,
        transport=transport,
        runtime=runtime,
        channel=channel,
        status=status,
        watchdog=watchdog,
        membership=membership,
        timing=timing,
        is_joining=is_joining,
    )
    if known is not None:
        session.admission.await_members()
        for rank, endpoint in known.items():
            channel.learn(rank, endpoint)
    else:
        session.admission.listen()
        # Here and not in the first `fit`: the others are told if a rank never calls fit.
        channel.learn_all(session.gather(channel.endpoint, "the start", timing.start_s))
    session.has_exchanged = False  # by the script
    atexit.register(_warn_of_no_average, session, os.getpid())
    return session


def _warn_of_no_average(session: ElasticSession, pid: int):
    """Warn, when the process ends, where the workers may have trained each for itself."""
    has_failed = getattr(sys, "last_value", None) is not None
    is_child = os.getpid() != pid
    if session.has_exchanged or has_failed or is_child or not session.cluster.is_chief:
        return
    logger.warning(
        f"Joined {session.cluster.size} workers, but nothing was averaged: no fit of this script "
        "has called a GossipPGA. Where it trains, each worker has trained for itself. Pass "
        "callbacks=[pga.GossipPGA()] to model.fit; where you call train_on_batch, call the "
        "hooks of a keras.callbacks.CallbackList with it too."
    )
