"""Define the greetings: the first bytes that this package sends on a connection it accepts.

A worker's *main port* is the port of its address in `TF_CONFIG`. TensorFlow's server later listens
on this port, and sends different first bytes.
"""

from __future__ import annotations

_OWN = b"tf_gossip_pga "

# A worker's control channel sends CHANNEL on the channel's own port. On its main port, a worker
# sends JOINING while it waits for a probe (see `joining`), and ROLL_CALL while it takes part in a
# roll call. On its main port, rank 0 sends RENDEZVOUS while it collects the workers' addresses.
CHANNEL = _OWN + b"channel"
JOINING = _OWN + b"joining"
ROLL_CALL = _OWN + b"roll call\n"
RENDEZVOUS = _OWN + b"rendezvous\n"

LONGEST = max(map(len, (CHANNEL, JOINING, ROLL_CALL, RENDEZVOUS)))


def is_own(greeting: bytes | None) -> bool:
    """Return whether a listener is a process of this package, and not TensorFlow's server.

    Args:
      greeting: the first bytes that the listener sent, or None if nothing listens there.
    """
    return greeting is not None and greeting.startswith(_OWN)


def is_joining(greeting: bytes | None) -> bool:
    """Return whether a listener waits for a probe in order to join a job (see `is_own`)."""
    return greeting is not None and greeting.startswith(JOINING)
