"""Define every exception of this package, in one tree.

    GossipError
    ├── WorkerLost (RuntimeError)        another worker died, left or did not answer
    ├── CheckpointError (ValueError)     a checkpoint cannot be used
    ├── LaunchError (RuntimeError)       a local worker process failed
    └── ExchangeInterrupted              internal, never leaves the package
        ├── ExchangeBroken               an exchange failed
        ├── ViewChanged                  an exchange failed, and the survivors have a new view
        ├── ViewAbandoned                a wanted view cannot be formed; the next one may
        └── TrainingFinished             another worker has trained to the end

Users catch the first three. A wrong argument is a plain `ValueError` or `TypeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf_gossip_pga.coordination.diagnosis import Findings
    from tf_gossip_pga.launch import Outcome


class GossipError(Exception):
    """Base class of the exceptions of this package."""


class WorkerLost(GossipError, RuntimeError):  # noqa: N818 (the name that users know)
    """Another worker died, left, or did not answer before the deadline; the exchange is lost.

    Where `fit` raises it, the process cannot exchange any more: end it and start the job again.
    Where `cluster.gather` or `cluster.barrier` raises it between fits, a script may catch it: the
    next `fit` with `on_worker_lost="continue"` goes on with the surviving workers.
    """


class CheckpointError(GossipError, ValueError):
    """A checkpoint cannot be used; the message names the file and what is wrong with it."""


class LaunchError(GossipError, RuntimeError):
    """A worker process failed, or too many did, or the deadline passed.

    Attributes:
      outcomes: one `launch.Outcome` for each rank.
    """

    def __init__(self, message: str, outcomes: list[Outcome]):
        super().__init__(message)
        self.outcomes = outcomes


class ExchangeInterrupted(GossipError):  # noqa: N818 (says what happened, as do the next four)
    """Base class of what interrupts an exchange. Internal: users see `WorkerLost`, or nothing."""


class ExchangeBroken(ExchangeInterrupted):
    """An exchange failed.

    Attributes:
      doing: what was exchanged, e.g. `"the gossip of step 7"`.
      reason: why it failed, in words.
      peer: the worker that TensorFlow blames, in words, or None.
      findings: what the watchdog found before it aborted the exchange; None where TensorFlow or
        another rank noticed first.
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

    Whatever was built for the old view must be built again.
    """


class ViewAbandoned(ExchangeInterrupted):
    """The wanted view cannot be formed, since another worker was lost; the next view may."""


class TrainingFinished(ExchangeInterrupted):
    """Another worker has trained to the end, so that no exchange is left to take part in."""
