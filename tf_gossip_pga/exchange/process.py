"""Connect this process with its cluster: `initialize`, and the one session of the process."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import threading

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster import detect, devices, tf_config
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import joining
from tf_gossip_pga.coordination import secret as secret_lib
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.departures import Departures
from tf_gossip_pga.coordination.membership import Membership
from tf_gossip_pga.coordination.roll_call import RollCall
from tf_gossip_pga.coordination.roster import Report
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
    """Connect this process to the cluster that `TF_CONFIG` describes.

    Call it before the first model, variable, tensor or dataset; imports may come earlier. It meets
    all other workers, starts TensorFlow's server, and waits until theirs have started. While that
    takes long, it reports which workers are missing. Without `TF_CONFIG`, or with one that names a
    single worker, it starts no server. Calling it again returns the same cluster.

    Args:
      join: whether to join a running job, as a worker that was lost and restarted. All workers of
        the job need the same secret (SECURITY.md). Their script needs a `pga.GossipPGA` with
        `on_worker_lost="continue"`, and a `pga.Checkpoint` whose `restore` returns the epoch to
        begin with. The worker waits until the surviving workers find it, and joins their first
        `fit` at the beginning of an epoch. If the other workers are only starting, it starts with
        them. False: join only if all other workers run and look for this one. Default None: True if
        the environment variable `TF_GOSSIP_PGA_JOIN` is 1, else False.

    Returns:
      The `Cluster`: `rank`, `size`, `addresses`, `members`, `is_chief`, `shard(dataset)`,
      `gather(value)`, `barrier()`, and the `strategy` for a worker with several devices.

    Raises:
      ValueError: `TF_CONFIG` cannot be used; the message quotes it and shows an example. The
        workers differ in their lists of addresses, in the versions of TensorFlow, Keras or this
        package, or in the secret. A worker is to join, but has no secret or no other workers. There
        is no `TF_CONFIG`, but `srun`, `mpirun` or a similar program started this process as one of
        several (set `TF_GOSSIP_PGA_CLUSTER=none` to train alone on purpose).
      RuntimeError: this worker's port is taken; or TensorFlow already runs, which is too late to
        configure its server (the message names the line to move).
      WorkerLost: another worker cannot start, or did not arrive within five minutes; or this worker
        was to join a job that has ended.

    Example:
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()
        >>> cluster.rank, cluster.size  # without TF_CONFIG
        (0, 1)
    """
    global _active
    if _active is None:
        cluster = detect.find()
        if join is None:
            join = os.environ.get(tf_config.JOIN) == "1"
        if join and cluster.size == 1:
            raise ValueError(
                f"A worker that joins a running job ({tf_config.JOIN}=1, or join=True) needs the "
                "TF_CONFIG of its first start, with the addresses of all workers. Here TF_CONFIG "
                "is unset, or names one worker."
            )
        session = SoloSession(cluster) if cluster.size == 1 else _connect(cluster, join, Timing())
        session.cluster = dataclasses.replace(
            cluster, strategy=devices.local_strategy(), exchange_values=session.gather
        )
        _active = session
    return _active.cluster


def active() -> Session:
    """Return the session of this process; without a cluster, the session of a single worker.

    Raises:
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called.
    """
    if _active is not None:
        return _active
    cluster = detect.find()
    if cluster.size > 1:
        raise RuntimeError(
            f"TF_CONFIG names {cluster.size} workers, but this process is not connected. Put\n"
            "    cluster = tf_gossip_pga.initialize()\n"
            "at the top of the program, before the first model, tensor or dataset."
        )
    return SoloSession(cluster)


def _connect(cluster: Cluster, joins: bool, timing: Timing) -> ElasticSession:
    """Meet the other workers, and start this worker's server and its control plane."""
    # Check before waiting: another rank may have ended with this same error.
    if runtime_lib.is_running():
        raise startup.too_late()
    secret = secret_lib.find()
    transport = runtime_lib.find_transport()
    known, met = _find_others(cluster, joins, secret, transport, timing)
    is_joining = known is not None
    if is_joining:
        logger.info(f"Rank {cluster.rank} joins the other workers, which are already training.")
    startup.bypass_proxies(cluster)
    runtime = runtime_lib.Runtime(cluster, transport)
    if is_joining:
        runtime.start_alone()
    else:
        startup.start(runtime, cluster, timing)
    status = Status()
    channel = Channel(cluster.addresses, cluster.rank, status, timing, secret)
    watchdog = Watchdog(cluster.rank, cluster.size, channel, status, timing, runtime_lib.abort)
    membership = Membership(channel, status, cluster.rank, cluster.size, timing, watchdog.call_off)
    if is_joining:
        membership.restrict((cluster.rank,))  # the loss of another worker does not concern it yet
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
        # Here and not in the first `fit`: the others learn if a rank never calls fit.
        channel.learn_all(session.gather(channel.introduction, "the start", timing.start_s))
    session.has_exchanged = False  # count only exchanges of the script
    atexit.register(_warn_of_no_average, session, os.getpid())
    _tell_of_exceptions(watchdog.departures)
    if met and cluster.rank == 0:
        hosts = len({report.host for report in met})
        logger.info(
            f"{cluster.size} workers on {hosts} host{'s' * (hosts > 1)} are connected over "
            f"{transport.name}."
        )
    return session


def _find_others(
    cluster: Cluster,
    joins: bool,
    secret: bytes | None,
    transport: runtime_lib.Transport,
    timing: Timing,
) -> tuple[dict[int, int] | None, list[Report] | None]:
    """Return the endpoints of workers that already train, or the reports of starting workers."""
    roll = RollCall(cluster.addresses, cluster.rank, startup.facts(transport.name), timing)
    find = joining.await_probe if joins else joining.endpoints_if_probed
    while (known := find(cluster.addresses, cluster.rank, secret, timing)) is None:
        if met := roll.run():
            return None, met
        if secret is None:  # the others already train, and cannot look for this worker
            raise secret_lib.missing(cluster.rank)
    return known, None


def _tell_of_exceptions(departures: Departures):
    """Report the exception that ends this process or one of its threads to the other workers.

    The report is sent before the process closes its sockets. The watchdog reports exceptions that
    leave `fit` and are caught.
    """
    atexit.register(departures.tell, ends=True)
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs):
        departures.tell()  # before the exception is discarded
        before(args)

    threading.excepthook = tell


def _warn_of_no_average(session: ElasticSession, pid: int):
    """Warn at the end of the process if each worker may have trained for itself."""
    has_failed = getattr(sys, "last_value", None) is not None
    is_child = os.getpid() != pid
    if session.has_exchanged or has_failed or is_child or not session.cluster.is_chief:
        return
    logger.warning(
        f"{session.cluster.size} workers were connected, but nothing was averaged: no fit of this "
        "script used GossipPGA. If the script trains, each worker trained alone. Pass "
        "callbacks=[pga.GossipPGA()] to model.fit. If you call train_on_batch, call the hooks of "
        "a keras.callbacks.CallbackList that contains it."
    )
