"""Define all exceptions of this package, and the exit code of a preempted job.

Built-in base classes are in parentheses::

    GossipError
    ├── WorkerLost (RuntimeError)        another worker died, left or did not answer
    ├── CheckpointError (ValueError)     a checkpoint cannot be used
    ├── LaunchError (RuntimeError)       a worker of the launcher failed
    └── ExchangeInterrupted              internal, never leaves the package
        ├── ExchangeBroken               an exchange failed
        ├── ViewChanged                  an exchange failed, and the survivors formed a new view
        ├── ViewAbandoned                the workers cannot form this view, but may form a later one
        └── TrainingFinished             another worker has finished training

User code may catch all of these except `ExchangeInterrupted` and its subclasses. An invalid
argument raises none of them, but Python's own `ValueError` or `TypeError`.
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
    """Another worker ended, left `fit`, or did not answer in time, so an exchange failed.

    If `fit` raises this error, this process can no longer take part in exchanges: end it. With
    `GossipPGA(on_worker_lost="raise")`, the default, `fit` raises this error in all remaining
    workers: restart the job. With `GossipPGA(on_worker_lost="continue")`, the other workers may
    have continued without this one; the error message then says how this worker can rejoin them.

    If `cluster.gather` or `cluster.barrier` raises this error between two `fit` calls, a script may
    catch it. The next `fit` with `GossipPGA(on_worker_lost="continue")` then trains with the
    surviving workers.

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
    """Too many workers failed, one ended before the job had started, or the deadline passed.

    `launch.launch`, which starts the workers of a job, and `pga.run` raise this error.

    Attributes:
      outcomes: for each rank, a `launch.Outcome`, which says how its worker ended.
    """

    def __init__(self, message: str, outcomes: list[Outcome]):
        super().__init__(message)
        self.outcomes = outcomes


class ExchangeInterrupted(GossipError):  # noqa: N818 (its name says what happened)
    """Base class of the exceptions that say why an exchange could not be completed.

    Internal: the package either handles these exceptions or converts them to `WorkerLost`.
    """


class ExchangeBroken(ExchangeInterrupted):
    """An exchange failed.

    Attributes:
      doing: the exchange that failed, e.g. `"the gossip of step 7"`.
      reason: why the exchange failed, as text for messages.
      peer: description of the worker that TensorFlow blames, or None if it blames none.
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

    Everything that depends on the list of members must be rebuilt.
    """


class ViewAbandoned(ExchangeInterrupted):
    """The workers cannot form the view that they want: one was lost, or did not join in time.

    The workers may still form a view with a higher number.
    """


class TrainingFinished(ExchangeInterrupted):
    """Another worker has finished training, so there is nothing left to exchange."""
