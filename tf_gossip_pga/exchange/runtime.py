"""Start, reconfigure, and abort TensorFlow's collective runtime. Only this module uses private API.

The public API can start the server (`tf.distribute.MultiWorkerMirroredStrategy`), but it cannot
abort an exchange that hangs. All private names used here are attributes of `context.context()`.
Each is tested in `tests/integration/test_collectives.py` and `tests/integration/test_survival.py`:

- `abort_collective_ops(code, message)` fails every pending and every subsequent collective of this
  process.
- `enable_collective_ops(server)` gives the running server a different cluster, and lets collectives
  run again after an abort. The only public alternative is to start a new process.
- `_collective_ops_server_def` is the definition with which the strategy started the server.
- `configure_coordination_service(…)` sets how long a silent worker is kept in the cluster.
- `_context_handle` is set once TensorFlow is running, when it is too late to start a server. The
  public API reports this only after rank 0 has answered.

Importing this module raises ImportError if TensorFlow is not one of the versions with which these
names were tested (`supported`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

import tensorflow as tf

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange import supported
from tf_gossip_pga.exchange.transport import Transport

supported.check(tf.__version__)

from tensorflow.python.eager import context  # noqa: E402 (an untested version may not have it)

_Implementation = tf.distribute.experimental.CommunicationImplementation

_JOB = "worker"

# TensorFlow's coordination service drops a worker whose heartbeats stop, and then fails the
# exchanges of all other workers. By default it does so 10 s after the worker stops, and again after
# the surviving workers have formed a smaller cluster. We therefore disable heartbeats with a
# timeout of ten years. They are not needed, because gRPC reports closed sockets, and the watchdog
# (`coordination.watchdog`) detects silent workers.
_HEARTBEAT_S = 10 * 365 * 86400.0


def _context() -> Any:
    """Return TensorFlow's eager context, which has no public type."""
    return context.context()


def is_running() -> bool:
    """Return whether TensorFlow is already running. If so, it is too late to start a server."""
    return _context()._context_handle is not None


def abort(reason: str):
    """Fail every collective of this process until `Runtime.set_view` is called.

    Args:
      reason: the reason to include in TensorFlow's error message.
    """
    _context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, reason)


class Runtime:
    """TensorFlow's server in this process.

    Args:
      cluster: this process's place among the workers.
      transport: the transport of exchanges.

    Attributes:
      strategy: the `tf.distribute.MultiWorkerMirroredStrategy` that started the server. None before
        `start`, and on a joining worker, which starts its server alone.
    """

    def __init__(self, cluster: Cluster, transport: Transport):
        """Describe the cluster. The server is started by `start` or `start_alone`."""
        self.strategy: tf.distribute.Strategy | None = None
        self._rank = cluster.rank
        self._workers = cluster.size
        self._transport = transport
        # All workers form one job, regardless of their roles in TF_CONFIG: TensorFlow requires only
        # that all workers use the same names. Use one accelerator instead of all visible ones.
        self._resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({_JOB: list(cluster.addresses)}),
            task_type=_JOB,
            task_id=cluster.rank,
            num_accelerators={"GPU": 1} if "GPU" in transport.device else {},
        )
        self._server = tf.train.ServerDef()  # empty until the server starts

    def start(self, timeout_s: float):
        """Start the server, and wait until all other workers' servers have started.

        Args:
          timeout_s: seconds to wait for the other workers.

        Raises:
          tf.errors.OpError: the port is taken, or a worker did not start in time.
        """
        _configure_coordination(self._workers, timeout_s)
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=_Implementation(self._transport.hint.upper())
        )
        with _interruptible(), _without_remarks():
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(self._resolver, options)
        self._server = copy.deepcopy(_context()._collective_ops_server_def)

    def start_alone(self):
        """Start a joining worker's server, with a cluster that initially has only this worker."""
        self._server = tf.train.ServerDef(
            cluster=self._resolver.cluster_spec().as_cluster_def(),
            default_session_config=_context().config,
            job_name=_JOB,
            task_index=self._rank,
            protocol="grpc",
        )
        self.set_view(View(0, (self._rank,)))

    def set_view(self, view: View):
        """Restrict the server's cluster to the members of a view.

        After `abort`, this lets collectives run again.
        """
        server = copy.deepcopy(self._server)
        for rank in set(server.cluster.job[0].tasks) - set(view.members):
            del server.cluster.job[0].tasks[rank]
        config = server.default_session_config.experimental
        config.collective_group_leader = f"/job:{_JOB}/replica:0/task:{view.members[0]}"
        config.ClearField("coordination_config")
        with _without_startup_warning():
            _context().enable_collective_ops(server)


def _configure_coordination(workers: int, timeout_s: float):
    """Configure the coordination service as the strategy would, but without heartbeats."""
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
    """Suppress TensorFlow's warning that collective ops are enabled after startup."""
    text = "Enabling collective ops after program startup"
    return _filtered("absl", lambda record: text not in record.getMessage())


def _without_remarks() -> contextlib.AbstractContextManager[None]:
    """Suppress the strategy's informational messages, which would appear in notebooks."""
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

    Python's handlers cannot run until TensorFlow returns, so the signals get their default effect
    in the meantime. TensorFlow also installs a SIGTERM handler that swallows the signal, so
    Python's handlers are restored afterward.
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
            if handler is not None:  # None: the handler was not set by Python
                signal.signal(number, handler)
