"""Tell failures of the network and of other processes from our own errors."""

from __future__ import annotations

import re

import tensorflow as tf

from tf_gossip_pga.coordination.diagnosis import Findings
from tf_gossip_pga.errors import ExchangeBroken

# What TensorFlow raises where another process ends or the network to it is cut.
_OF_THE_NETWORK = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnknownError,
)


def broken(
    error: tf.errors.OpError, doing: str, findings: Findings | None
) -> ExchangeBroken | None:
    """Return what an error of an exchange means; None where it is not a failure of the network.

    Args:
      error: what TensorFlow has raised.
      doing: what was exchanged.
      findings: what the watchdog found, if it aborted the exchange.
    """
    aborted = re.search("aborted by: (.*)", error.message)
    if not aborted and not isinstance(error, _OF_THE_NETWORK):
        return None
    reason = (aborted[1] if aborted else error.message).partition(" [type.")[0]
    return ExchangeBroken(doing, reason.strip(" .:"), _peer(error.message), findings)


def _peer(message: str) -> str | None:
    """Return the worker that TensorFlow blames, in words."""
    task = re.search(r"Error reported from /job:(\w+)/task:(\d+)", message)
    task = task or re.search(r"target /job:(\w+)/replica:0/task:(\d+)", message)
    return f"the {task[1]} with index {task[2]}" if task else None
