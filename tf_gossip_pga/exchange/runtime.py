"""Start, re-target and abort TensorFlow's collective runtime: the only room with private API.

Public API starts the server (`tf.distribute.MultiWorkerMirroredStrategy`) and can only wait for an
exchange that hangs. Everything private is an attribute of `context.context()`, and each one is
tested in `tests/integration/test_collectives.py` and `tests/integration/test_survival.py`:

- `abort_collective_ops(code, message)` fails every pending collective of this process, and every
  later one.
- `enable_collective_ops(server)` gives the running server another cluster, which also undoes an
  abort. `_collective_ops_server_def` is the definition that the strategy gave it. With public API a
  new process would be needed.
- `configure_coordination_service(…)` sets how long a worker may be silent.
- `_context_handle` is set once TensorFlow runs, when it is too late to start a server. Public API
  reports this only after rank 0 has answered.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.view import View

_Implementation = tf.distribute.experimental.CommunicationImplementation

_JOB = "worker"

# TensorFlow's coordination service drops a worker whose heartbeats (sent every half of this
# interval) stop, and then breaks the exchanges of all others: by default 10 s after a worker is
# stopped, and once more when the surviving workers have formed a cluster of their own. We therefore
# disable it. gRPC reports closed sockets; the watchdog detects silent workers.
_HEARTBEAT_S = 10 * 365 * 86400.0


@dataclasses.dataclass(frozen=True)
class Transport:
    """How exchanges travel.

    Attributes:
      device: the device that exchanges, the first of this worker.
      implementation: what the strategy and the collective ops are asked for.
      messages_in_flight: how many collectives a rank has under way at once.
    """

    device: str
    implementation: tf.distribute.experimental.CommunicationImplementation
    messages_in_flight: int

    @property
    def name(self) -> str:
        """Return what carries the exchanges, in words."""
        return "NCCL between GPUs" if "GPU" in self.device else "gRPC between CPUs"

    @property
    def hint(self) -> str:
        """Return the `communication_hint` of collective ops."""
        return self.implementation.value.lower()


def _context() -> Any:
    """Return TensorFlow's context, which has no public type."""
    return context.context()


def find_transport() -> Transport:
    """Return the transport for the devices that this process sees."""
    if tf.config.get_visible_devices("GPU"):
        # One stream per device is what NCCL's order amounts to.
        return Transport("/device:GPU:0", _Implementation.AUTO, messages_in_flight=1)
    # RING is TensorFlow's own, over gRPC. Two chunks, each sent and received.
    return Transport("/device:CPU:0", _Implementation.RING, messages_in_flight=4)


def is_running() -> bool:
    """Return whether TensorFlow runs already, so that no server can be started."""
    return _context()._context_handle is not None


def abort(reason: str):
    """Make every collective of this process fail, until `Runtime.set_view` is called."""
    _context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, reason)


class Runtime:
    """TensorFlow's server in this process.

    Args:
      cluster: this process's place among the workers.
      transport: how exchanges travel.

    Attributes:
      strategy: the `tf.distribute.MultiWorkerMirroredStrategy` that started the server; None where
        the server was started without the other workers.
    """

    def __init__(self, cluster: Cluster, transport: Transport):
        self.strategy: tf.distribute.Strategy | None = None
        self._rank = cluster.rank
        self._workers = cluster.size
        self._transport = transport
        # One job of workers, whatever roles the starter gave them: TensorFlow only needs all
        # workers to use the same names. One accelerator, instead of all that are visible.
        self._resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({_JOB: list(cluster.addresses)}),
            task_type=_JOB,
            task_id=cluster.rank,
            num_accelerators={"GPU": 1} if "GPU" in transport.device else {},
        )
        self._server = tf.train.ServerDef()  # until the server starts

    def start(self, timeout_s: float):
        """Start the server together with all other workers; wait until theirs have started.

        Raises:
          tf.errors.OpError: the port is taken, or not all have started in time.
        """
        _configure_coordination(self._workers, timeout_s)
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=self._transport.implementation
        )
        with _interruptible(), _without_remarks():
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(self._resolver, options)
        self._server = copy.deepcopy(_context()._collective_ops_server_def)

    def start_alone(self):
        """Start the server of a joining worker, whose cluster is itself alone at first."""
        self._server = tf.train.ServerDef(
            cluster=self._resolver.cluster_spec().as_cluster_def(),
            default_session_config=_context().config,
            job_name=_JOB,
            task_index=self._rank,
            protocol="grpc",
        )
        self.set_view(View(0, (self._rank,)))

    def set_view(self, view: View):
        """Give the server the cluster of this view's members; also ends an abort."""
        server = copy.deepcopy(self._server)
        for rank in set(server.cluster.job[0].tasks) - set(view.members):
            del server.cluster.job[0].tasks[rank]
        config = server.default_session_config.experimental
        config.collective_group_leader = f"/job:{_JOB}/replica:0/task:{view.members[0]}"
        config.ClearField("coordination_config")
        with _without_startup_warning():
            _context().enable_collective_ops(server)


def _configure_coordination(workers: int, timeout_s: float):
    """Configure the coordination service as the strategy would, without its heartbeats."""
    config = tf.compat.v1.ConfigProto().experimental.coordination_config
    config.coordinated_job_list.add(name=_JOB, num_tasks=workers)
    _context().configure_coordination_service(
        "standalone",
        f"/job:{_JOB}/replica:0/task:0",
        coordinated_jobs=list(config.coordinated_job_list),
        cluster_register_timeout_in_ms=int(1000 * timeout_s),
        heartbeat_timeout_in_ms=int(1000 * _HEARTBEAT_S),
    )


def _without_startup_warning() -> contextlib.AbstractContextManager[None]:
    """Suppress TensorFlow's warning that tensors made before may not be found again."""
    text = "Enabling collective ops after program startup"
    return _filtered("absl", lambda record: text not in record.getMessage())


def _without_remarks() -> contextlib.AbstractContextManager[None]:
    """Suppress what the strategy says of itself, in notebooks for example."""
    return _filtered("tensorflow", lambda record: record.levelno > logging.INFO)


@contextlib.contextmanager
def _filtered(name: str, keeps: Callable[[logging.LogRecord], bool]) -> Generator[None, None, None]:
    logger = logging.getLogger(name)
    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)


@contextlib.contextmanager
def _interruptible() -> Generator[None, None, None]:
    """Let SIGINT and SIGTERM end the process while TensorFlow waits for the other workers.

    Python's handlers cannot run before TensorFlow returns. TensorFlow also installs a SIGTERM
    handler that swallows the signal, so Python's handlers are put back afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not Python that set it
                signal.signal(number, handler)
