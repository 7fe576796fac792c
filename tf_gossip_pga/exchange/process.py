"""Connect this process to its cluster (`initialize`), and keep the only session of the process."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import threading

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster import cluster_file, detect, devices, gpus, ports, tf_config
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.place import CLUSTER, Place
from tf_gossip_pga.coordination import joining, rendezvous
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
from tf_gossip_pga.exchange import transport as transport_lib
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.exchange.session import SoloSession

Session = SoloSession | ElasticSession

_active: Session | None = None


def initialize(join: bool | None = None, communication: str | None = None) -> Cluster:
    """Connect this process to its cluster, which `TF_CONFIG` or other variables describe.

    Without `TF_CONFIG`, the cluster is found from the variables that `srun`, Open MPI's `mpirun`,
    `torchrun`, Kubernetes, SageMaker and others set (see the reference of environment variables).
    Call `initialize` before creating any model, variable, tensor, or dataset; imports may come
    earlier. It waits until all other workers are reachable, starts TensorFlow's server, and waits
    until the other workers' servers have started. If it waits long, it reports which workers are
    missing. If this process is the only worker, it starts no server. A second call returns the same
    cluster.

    Args:
      join: whether to join a running job, as a restarted worker that the job had lost. All workers
        of the job need the same secret (SECURITY.md). Their script needs a `pga.GossipPGA` with
        `on_worker_lost="continue"`, and a `pga.Checkpoint` whose `restore` returns the epoch to
        begin with. The worker waits until the surviving workers find it, and joins their first
        `fit` at the beginning of an epoch. If the other workers are still starting, it starts with
        them. With False, the worker joins only if all other workers are running and looking for it.
        Default None: True if the environment variable `TF_GOSSIP_PGA_JOIN` is 1, else False.
      communication: how exchanges travel. `"nccl"`: over NCCL, between one GPU of each worker.
        `"ring"`: over gRPC, between CPUs. `"auto"`: NCCL if each worker has a GPU that no other
        worker uses, else gRPC. All workers need the same value. Default None: the value of the
        environment variable `TF_GOSSIP_PGA_COMMUNICATION`, or `"auto"`.

    Returns:
      The `Cluster`, with `rank`, `size`, `addresses`, `members`, `is_chief`, `shard(dataset)`,
      `gather(value)`, `barrier()`, and, for a worker with several devices, the `strategy`.

    Raises:
      ValueError: if `TF_CONFIG` or another variable is invalid (the message quotes it); if the
        workers differ in their lists of addresses, in the versions of TensorFlow, Keras, or this
        package, in `communication`, or in the secret; if NCCL was requested, but a worker has no
        GPU of its own; if a joining worker has no secret or no other workers; or if
        this process was started as one of several, but the others cannot be found (set
        `TF_GOSSIP_PGA_CLUSTER=none` to train alone on purpose).
      RuntimeError: if this worker's port is taken, or if TensorFlow is already running, so its
        server can no longer be configured (the message names the line to move).
      WorkerLost: if another worker cannot start or did not arrive within five minutes, or if the
        job that this worker was to join has ended.

    Example:
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()
        >>> cluster.rank, cluster.size  # without TF_CONFIG
        (0, 1)
    """
    global _active
    if _active is None:
        session = _session_of(detect.find(), join, transport_lib.requested(communication))
        session.cluster = dataclasses.replace(
            session.cluster, strategy=devices.local_strategy(), exchange_values=session.gather
        )
        _active = session
    return _active.cluster


def _session_of(place: Place, join: bool | None, communication: str) -> Session:
    """Return the session of this process at its place. For `join`, see `initialize`."""
    joins = os.environ.get(tf_config.JOIN) == "1" if join is None else join
    if joins and not (place.size > 1 and place.addresses):
        raise ValueError(
            f"A worker that joins a running job ({tf_config.JOIN}=1, or join=True) needs the "
            "TF_CONFIG of its first start, with the addresses of all workers. Here TF_CONFIG is "
            "unset or names one worker, and no other variables list the addresses. If the job "
            f"started without a TF_CONFIG, set {CLUSTER} to the path of the {cluster_file.NAME} in "
            f"the directory of pga.Checkpoint, and {cluster_file.RANK} to the rank of the lost "
            "worker."
        )
    if place.size > 1:
        return _connect(place, joins, communication, Timing())
    return SoloSession(Cluster(addresses=place.addresses))


def active() -> Session:
    """Return the session of this process. Without a cluster, return a single-worker session.

    Raises:
      RuntimeError: if this process is one of several workers but `initialize` was not called.
    """
    if _active is not None:
        return _active
    place = detect.find()
    if place.size > 1:
        raise RuntimeError(
            f"This process is one of {place.size} workers (found by {place.found_by}), but it is "
            "not connected. Put\n"
            "    cluster = tf_gossip_pga.initialize()\n"
            "at the top of the program, before the first model, tensor or dataset."
        )
    return SoloSession(Cluster(addresses=place.addresses))


def _connect(place: Place, joins: bool, communication: str, timing: Timing) -> ElasticSession:
    """Contact the other workers, and start this worker's server and control plane."""
    # Check this before waiting for the other ranks, which may have ended with the same error.
    if runtime_lib.is_running():
        raise startup.too_late()
    secret, channel_port = secret_lib.find(), ports.channel(os.environ)
    cluster = rendezvous.cluster_of(place, timing)
    facts = startup.facts(communication, place.job)
    known, met = _find_others(cluster, joins, secret, facts, timing)
    is_joining = known is not None
    if is_joining:
        logger.info(f"Rank {cluster.rank} joins the other workers, which are already training.")
        # Not the lost worker's port: there, a member that has not noticed the loss would take this
        # process for the lost one. 0: the operating system chooses a port.
        channel_port = 0
    choice = transport_lib.Choice(transport_lib.RING)  # a joining worker's until it is invited
    offers = [transport_lib.Offer(each.host, each.gpu, each.machine) for each in met or ()]
    if offers:
        choice = transport_lib.choose(communication, offers)
    if not offers or transport_lib.shares_gpu(cluster.rank, offers):
        devices.grow_memory()
    startup.bypass_proxies(cluster)
    runtime = runtime_lib.Runtime(cluster, choice.transport)
    if is_joining:
        runtime.start_alone()
    else:
        startup.start(runtime, cluster, timing)
    status = Status()
    channel = Channel(cluster.addresses, cluster.rank, status, timing, secret, channel_port)
    watchdog = Watchdog(cluster.rank, cluster.size, channel, status, timing, runtime_lib.abort)
    membership = Membership(channel, status, cluster.rank, cluster.size, timing, watchdog.call_off)
    if is_joining:
        membership.restrict((cluster.rank,))  # ignore losses of other workers for now
    session = ElasticSession(
        cluster,
        transport=choice.transport,
        runtime=runtime,
        channel=channel,
        status=status,
        watchdog=watchdog,
        membership=membership,
        timing=timing,
        is_joining=is_joining,
    )
    session.all_workers, session.communication = runtime.strategy, communication
    if known is not None:
        for rank, endpoint in known.items():
            channel.learn(rank, endpoint)
    else:
        session.admission.listen()
        # Share the endpoints here, not in the first `fit`: knowing them, the other ranks can notice
        # that a rank never calls `fit`.
        channel.learn_all(session.gather(channel.introduction, "the start", timing.start_s))
    session.has_exchanged = False  # count only the script's own exchanges
    atexit.register(_warn_of_no_average, session, os.getpid())
    _tell_of_exceptions(watchdog.departures)
    if met and cluster.rank == 0:
        _tell_of_cluster(place, choice, len({(each.host, each.machine) for each in met}))
    return session


def _tell_of_cluster(place: Place, choice: transport_lib.Choice, hosts: int) -> None:
    """Report that all workers are connected, and how the cluster was found."""
    reason = choice.reason and f": {choice.reason}"
    logger.info(
        f"{place.size} workers on {hosts} host{'s' * (hosts > 1)} are connected over "
        f"{choice.transport.name}{reason}. Found by {place.found_by}."
    )


def _find_others(
    cluster: Cluster,
    joins: bool,
    secret: bytes | None,
    facts: dict[str, str],
    timing: Timing,
) -> tuple[dict[int, int] | None, list[Report] | None]:
    """Find the other workers, whether they are training already or are starting too.

    Returns:
      The endpoints of the training workers by rank, and None; or None, and the reports of all
      starting workers.
    """
    roll = RollCall(cluster.addresses, cluster.rank, facts, timing, gpus.own_gpu())
    find = joining.await_probe if joins else joining.endpoints_if_probed
    while (known := find(cluster.addresses, cluster.rank, secret, timing)) is None:
        if met := roll.run():
            return None, met
        if secret is None:  # the others are training, and without a secret cannot probe this one
            raise secret_lib.missing(cluster.rank)
    return known, None


def _tell_of_exceptions(departures: Departures):
    """Tell the other workers which exception ended this process or one of its threads.

    The report is sent before the process closes its sockets. If an exception leaves `fit` and is
    then caught, the watchdog reports it instead.
    """
    atexit.register(departures.tell, ends=True)
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs):
        departures.tell()  # before the exception is discarded
        before(args)

    threading.excepthook = tell


def _warn_of_no_average(session: ElasticSession, pid: int):
    """Warn at the end of the process if each worker may have trained on its own."""
    has_failed = getattr(sys, "last_value", None) is not None
    is_child = os.getpid() != pid
    if session.has_exchanged or has_failed or is_child or not session.cluster.is_chief:
        return
    logger.warning(
        f"{session.cluster.size} workers were connected, but nothing was averaged: no fit of this "
        "script used GossipPGA. If the script trains, each worker trained alone. Pass "
        "callbacks=[pga.GossipPGA()] to model.fit. If you call train_on_batch, call the hooks of "
        "a keras.callbacks.CallbackList that contains the GossipPGA."
    )
