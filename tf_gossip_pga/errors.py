"""Define all exceptions of this package, and the exit code of a preempted job.

Built-in base classes are in parentheses::

    GossipError
    ├── WorkerLost (RuntimeError)        another worker died, left or did not answer
    ├── CheckpointError (ValueError)     a checkpoint cannot be used
    ├── LaunchError (RuntimeError)       a local worker process failed
    └── ExchangeInterrupted              internal, never leaves the package
        ├── ExchangeBroken               an exchange failed
        ├── ViewChanged                  an exchange failed, and the survivors have a new view
        ├── ViewAbandoned                the wanted view cannot be formed, but a later one may be
        └── TrainingFinished             another worker has finished training

User code may catch all of these except `ExchangeInterrupted` and its subclasses. An invalid
argument raises a plain `ValueError` or `TypeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf_gossip_pga.coordination.diagnosis import Findings
    from tf_gossip_pga.launch import Outcome

# Exit code of a job that saved a checkpoint after SIGTERM and can continue: EX_TEMPFAIL of BSD's
# sysexits.h. `Checkpoint.exit_if_preempted` ends workers with it, and the launcher passes it on.
PREEMPTED = 75


class GossipError(Exception):
    """Base class of this package's exceptions."""


class WorkerLost(GossipError, RuntimeError):  # noqa: N818 (the name that users know)
    """Another worker died, left, or did not answer before the deadline, so the exchange failed.

    If `fit` raises this error, this process can no longer take part in exchanges: end all processes
    and restart the job. If `cluster.gather` or `cluster.barrier` raises this error between two
    `fit` calls, a script may catch it. The next `fit` with `on_worker_lost="continue"` then
    continues with the surviving workers.

    Example:
      >>> import tf_gossip_pga as pga
      >>> cluster = pga.Cluster()  # in a script: pga.initialize()
      >>> try:
      ...     losses = cluster.gather(0.25, timeout_s=60)
      ... except pga.WorkerLost as error:
      ...     print(error)
      >>> losses
      [0.25]
    """


class CheckpointError(GossipError, ValueError):
    """A checkpoint cannot be used. The message names the file and the problem."""


class LaunchError(GossipError, RuntimeError):
    """Too many local workers failed, one ended before the job had started, or time ran out.

    The local launcher (`launch`) and `pga.run` raise this error.

    Attributes:
      outcomes: one `launch.Outcome` per rank.
    """

    def __init__(self, message: str, outcomes: list[Outcome]):
        super().__init__(message)
        self.outcomes = outcomes


class ExchangeInterrupted(GossipError):  # noqa: N818 (its name says what happened)
    """Base class of exceptions that interrupt an exchange.

    Internal: the package either handles these exceptions or converts them to `WorkerLost`.
    """


class ExchangeBroken(ExchangeInterrupted):
    """An exchange failed.

    Attributes:
      doing: the exchange that failed, e.g. `"the gossip of step 7"`.
      reason: why it failed, as text for messages.
      peer: description of the worker that TensorFlow blames, or None.
      findings: what the watchdog found before it aborted the exchange. None if TensorFlow or
        another rank noticed the failure first.
    """

    def __init__(
        self, doing: str, reason: str, peer: str | None = None, findings: Findings | None = None
    ):
        super().__init__(reason)
        self.doing = doing
        self.reason = reason
        self.peer = peer
        self.findings = findings


class ViewChanged(ExchangeInterrupted):
    """An exchange failed, and the surviving workers have formed a new view.

    Everything that was built for the old view must be rebuilt.
    """


class ViewAbandoned(ExchangeInterrupted):
    """The wanted view cannot be formed: another worker was lost or did not join in time.

    The workers may form a later view.
    """


class TrainingFinished(ExchangeInterrupted):
    """Another worker has finished training, so there is nothing left to exchange."""
