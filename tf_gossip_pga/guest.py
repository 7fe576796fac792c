"""WHO comes back: how a worker that was lost, and started again, finds the others.

It knows their addresses in `TF_CONFIG`, but there TensorFlow listens, and the ports of their
channels are the operating system's choice. They know its address, where nobody listens yet. So it
waits at its own door before TensorFlow does, and the first of those that are left knocks there once
a second (`Channel.knock`), leaves their contacts and goes. From then on it can ask all of them, and
does: it is a guest until they take it in, at the beginning of an epoch.
"""

import contextlib
import dataclasses
import json
import socket
import time

from tf_gossip_pga import channel, watch

# How long to wait for a knock before it is worth a word, and before that is the end.
_SAY_S = 10.0
_ALONE_S = 600.0

# How long a stranger may hold the door.
_SERVE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Invitation:
    """What a guest is told when it is taken in.

    Attributes:
      generation: the one that it is to be a member of.
      veterans: the ranks that were members before.
      guests: those that are taken in.
      contacts: of all of these, by rank in decimal digits; see `Channel.contact`.
      epoch: the one that begins, counted from 0.
      facts: a digest of what must be equal on all ranks.
      state: the callback's.
    """

    generation: int
    veterans: list[int]
    guests: list[int]
    contacts: dict[str, dict]
    epoch: int
    facts: str
    state: dict


def await_knock(address: str, rank: int) -> dict[int, dict]:
    """Waits at this worker's own port; the contacts of those that are left, by rank.

    Raises:
      OSError: another process has the port.
      WorkerLost: nobody knocks: there is no job to join.
    """
    port, dual = int(address.rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    began = time.monotonic()
    say_at = began + _SAY_S
    # On all interfaces, as TensorFlow's server will be.
    with socket.create_server(("", port), family=family, dualstack_ipv6=dual) as door:
        door.settimeout(1.0)
        while time.monotonic() < began + _ALONE_S:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                knocking, _ = door.accept()
                with knocking:
                    return _contacts(knocking)
            if time.monotonic() > say_at:
                watch.say(
                    f"Rank {rank} has waited {time.monotonic() - began:.0f} s at {address} for "
                    "those that are left to find it."
                )
                say_at = began + 2 * (time.monotonic() - began)
    raise watch.WorkerLost(
        f"Rank {rank} was started to join a running job again, but nobody has looked for it at "
        f"{address} for {_ALONE_S:g} s. Has the job ended, or does its GossipPGA not have "
        "on_worker_lost='continue'?"
    )


def _contacts(knocking: socket.socket) -> dict[int, dict]:
    knocking.settimeout(_SERVE_S)
    knocking.sendall(channel.GREETING)  # who only wants to know whether it lives goes again
    with knocking.makefile("rb") as lines:
        message = json.loads(lines.readline(1 << 20))
    return {
        int(rank): {"port": int(contact["port"]), "token": str(contact["token"])}
        for rank, contact in message["contacts"].items()
    }
