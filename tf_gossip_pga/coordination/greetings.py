"""How the listeners of this package begin, before a nonce or a report.

TensorFlow's server, which listens at the same main port later, begins otherwise.
"""

from __future__ import annotations

_OWN = b"tf_gossip_pga "

# Of a channel, at a port of its own; and at a worker's main port while it waits for a probe, and
# while it takes part in a roll call.
CHANNEL = _OWN + b"channel"
JOINING = _OWN + b"joining"
ROLL_CALL = _OWN + b"roll call\n"

LONGEST = max(map(len, (CHANNEL, JOINING, ROLL_CALL)))


def is_own(greeting: bytes | None) -> bool:
    """Return whether who begins so is a process of this package, and not TensorFlow's server.

    Args:
      greeting: what it has said first; None: nobody listens.
    """
    return greeting is not None and greeting.startswith(_OWN)


def is_joining(greeting: bytes | None) -> bool:
    """Return whether who begins so waits for a probe, to join a job; see `is_own`."""
    return greeting is not None and greeting.startswith(JOINING)
