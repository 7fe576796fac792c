"""WHO comes back: how a worker that was lost, and started again, finds the others.

It knows their addresses in `TF_CONFIG`, but there TensorFlow listens, and the ports of their
channels are the operating system's choice. They know its address, where nobody listens yet. So it
waits at its own door before TensorFlow does, and the first of those that are left knocks there
again and again (`Channel.knock`), leaves their contacts and goes. From then on it can ask all of
them, and does: it is a guest until they take it in, at the beginning of an epoch.
"""

import contextlib
import dataclasses
import json
import socket
import time

from tf_gossip_pga.coordination import channel, watch

# How long to wait for a knock before it is worth a word; how often to look whether anybody is left
# to knock, and how often in vain before that is the end.
_SAY_S = 10.0
_LOOK_S = 5.0
_LOOKS = 4

# How long to listen for a knock where nobody has said that there will be one.
_MISSED_S = 0.8

# How long a stranger may hold the door, and to try another address.
_SERVE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Invitation:
    """What a guest is told when it is taken in.

    Attributes:
      generation: the one that it is to be a member of.
      completed: exchanges that the veterans have completed.
      veterans: the ranks that were members before.
      guests: those that are taken in.
      contacts: of all of these, by rank in decimal digits; see `Channel.contact`.
      epoch: the one that begins, counted from 0.
      facts: a digest of what must be equal on all ranks.
      state: the callback's.
    """

    generation: int
    completed: int
    veterans: list[int]
    guests: list[int]
    contacts: dict[str, dict]
    epoch: int
    facts: str
    state: dict


def await_knock(addresses, rank: int) -> dict[int, dict]:
    """Waits at this worker's own port; the contacts of those that are left, by rank.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's.

    Raises:
      RuntimeError: another process has the port.
      WorkerLost: nobody is left who could knock: there is no job to join.
    """
    others = [address for other, address in enumerate(addresses) if other != rank]
    waiting, look_at, in_vain = watch.Waiting(_SAY_S), time.monotonic() + _LOOK_S, 0
    try:
        door = _door(addresses[rank])
    except OSError as error:
        raise RuntimeError(
            f"Rank {rank} cannot wait for the others at {addresses[rank]}: {error}. Does the "
            "process that it replaces still run?"
        ) from None
    with door:
        while in_vain < _LOOKS:
            if contacts := _knocked(door):
                return contacts
            if time.monotonic() > look_at:
                in_vain = 0 if any(map(_trains, others)) else in_vain + 1
                look_at = time.monotonic() + _LOOK_S
            if waited_s := waiting.due():
                watch.say(
                    f"Rank {rank} has waited {waited_s:.0f} s at {addresses[rank]} for those "
                    "that are left to find it."
                )
    raise watch.WorkerLost(
        f"Rank {rank} was started to join a running job again, but nobody trains at the other "
        "addresses of TF_CONFIG: the job has ended."
    )


def contacts_if_missed(addresses, rank: int) -> dict[int, dict] | None:
    """The contacts of those that have lost this worker and look for it; None of a job that starts.

    It hardly waits unless TensorFlow listens at all other addresses already, as it does where this
    worker alone was started again, without a word that it is to join.
    """
    others = [address for other, address in enumerate(addresses) if other != rank]
    with contextlib.suppress(OSError):  # the port is taken: TensorFlow will say so
        if others and all(_listens(address) for address in others):
            ends = time.monotonic() + _MISSED_S
            with _door(addresses[rank]) as door:
                while time.monotonic() < ends:
                    if contacts := _knocked(door):
                        return contacts
    return None


def _door(address: str) -> socket.socket:
    """A socket at this worker's port, on all interfaces, as TensorFlow's server will be."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    door = socket.create_server(("", channel.split(address)[1]), family=family, dualstack_ipv6=dual)
    door.settimeout(0.25)
    return door


def _knocked(door: socket.socket) -> dict[int, dict] | None:
    """What a visitor has left, if one came."""
    with contextlib.suppress(OSError):
        knocking, _ = door.accept()
        with knocking:
            return _contacts(knocking)
    return None


def _contacts(knocking: socket.socket) -> dict[int, dict] | None:
    """What a visitor leaves; None of one that only wants to know whether somebody lives here."""
    knocking.settimeout(_SERVE_S)
    knocking.sendall(channel.GREETING)
    with knocking.makefile("rb") as lines:
        line = lines.readline(1 << 20)
    try:
        return {
            int(rank): {"port": int(contact["port"]), "token": str(contact["token"])}
            for rank, contact in json.loads(line)["contacts"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _trains(address: str) -> bool:
    """Whether TensorFlow listens there, or something else that is no guest."""
    try:
        with socket.create_connection(channel.split(address), timeout=_SERVE_S) as connection:
            return connection.recv(len(channel.GREETING)) != channel.GREETING
    except TimeoutError:  # it may be cut off
        return True
    except OSError:
        return False


def _listens(address: str) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(channel.split(address), timeout=_SERVE_S).close()
        return True
    return False
