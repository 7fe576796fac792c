"""Tell TensorFlow errors caused by the network or another process from errors in our own code."""

from __future__ import annotations

import re

import tensorflow as tf

from tf_gossip_pga.coordination.diagnosis import Findings
from tf_gossip_pga.errors import ExchangeBroken

# Errors that TensorFlow raises if another process ends or the connection to it is lost.
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
    """Convert TensorFlow's error in an exchange to `ExchangeBroken`.

    Args:
      error: the error that TensorFlow raised.
      doing: name of the exchange, for log and error messages.
      findings: the watchdog's findings if it aborted the exchange, else None.

    Returns:
      The exception to raise, or None if neither the network nor another process failed.
    """
    aborted = re.search("aborted by: (.*)", error.message)
    if not aborted and not isinstance(error, _OF_THE_NETWORK):
        return None
    reason = (aborted[1] if aborted else error.message).partition(" [type.")[0]
    return ExchangeBroken(doing, reason.strip(" .:"), _peer(error.message), findings)


def _peer(message: str) -> str | None:
    """Return a description of the worker that TensorFlow's message blames, or None."""
    task = re.search(r"Error reported from /job:(\w+)/task:(\d+)", message)
    task = task or re.search(r"target /job:(\w+)/replica:0/task:(\d+)", message)
    return f"the {task[1]} with index {task[2]}" if task else None
