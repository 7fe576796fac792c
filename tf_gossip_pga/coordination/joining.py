"""Let a worker that was lost and restarted find the surviving workers.

It knows their addresses from `TF_CONFIG`, but TensorFlow listens there, and their channels' ports
are chosen by the operating system. Before TensorFlow binds the port, the restarted worker therefore
listens on it; the lowest surviving rank probes it again and again (`Channel.probe`) and leaves the
endpoints of all surviving workers. From then on the joining worker can ask all of them, and
announces itself until they take it in, at the beginning of an epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Sequence
from typing import Any

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import calls
from tf_gossip_pga.coordination.channel import JOINING_GREETING, Endpoint
from tf_gossip_pga.coordination.reports import Waiting
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost

_LINE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Invitation:
    """What a joining worker learns when the members are ready to take it in.

    Attributes:
      view_number: of the view that it is to be a member of.
      completed: exchanges that the members have completed.
      members: the ranks of the present view.
      joining: the ranks that are taken in.
      endpoints: of all of these, by rank in decimal digits; see `Channel.endpoint`.
      epoch: the epoch that begins, counted from 0.
      facts: a digest of what must be equal on all ranks.
      state: the callback's.
    """

    view_number: int
    completed: int
    members: list[int]
    joining: list[int]
    endpoints: dict[str, Endpoint]
    epoch: int
    facts: str
    state: dict[str, Any]


def await_probe(
    addresses: Sequence[str], rank: int, timing: Timing | None = None
) -> dict[int, Endpoint] | None:
    """Wait at this worker's own port; return the endpoints of the surviving workers, by rank.

    Return None where there is no job yet that could be joined: another worker takes part in a roll
    call, or all others are to join too.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's.
      timing: how long to wait.

    Raises:
      RuntimeError: another process has the port.
      WorkerLost: nobody is left who could probe it: there is no job to join.
    """
    timing = timing or Timing()
    others = _others(addresses, rank)
    try:
        listener = _listener(addresses[rank], timing)
    except OSError as error:
        raise RuntimeError(
            f"Rank {rank} cannot wait for the others at {addresses[rank]}: {error}. Does the "
            "process that it replaces still run?"
        ) from None
    waiting, check_at, futile = Waiting(timing.join_report_s), time.monotonic(), -1
    with listener:
        while futile < timing.job_checks:
            if endpoints := _probed(listener, timing):
                return endpoints
            if time.monotonic() > check_at:
                found = [calls.greeting_at(address, timing.serve_s) for address in others]
                if calls.GREETING in found or all(map(_is_joining, found)):
                    return None
                alive = any(each is not None and not _is_joining(each) for each in found)
                futile = 0 if alive else futile + 1
                check_at = _check_at(timing)
            if waited_s := waiting.due():
                logger.info(
                    f"Rank {rank} has waited {waited_s:.0f} s at {addresses[rank]} for the "
                    "surviving workers to find it."
                )
    raise WorkerLost(
        f"Rank {rank} was started to join a running job again, but nobody trains at the other "
        "addresses of TF_CONFIG: the job has ended."
    )


def endpoints_if_probed(
    addresses: Sequence[str], rank: int, timing: Timing | None = None
) -> dict[int, Endpoint] | None:
    """Return the endpoints of those that have lost this worker; None where a job starts.

    It hardly waits unless TensorFlow already listens at all other addresses, as it does where this
    worker alone was restarted without being told that it is to join.

    Args:
      addresses: as in `await_probe`.
      rank: as in `await_probe`.
      timing: as in `await_probe`.
    """
    timing = timing or Timing()
    others = _others(addresses, rank)
    with contextlib.suppress(OSError):  # the port is taken: TensorFlow will report it
        if others and all(_listens(address, timing) for address in others):
            deadline = time.monotonic() + timing.unannounced_probe_s
            with _listener(addresses[rank], timing) as listener:
                while time.monotonic() < deadline:
                    if endpoints := _probed(listener, timing):
                        return endpoints
    return None


def _others(addresses: Sequence[str], rank: int) -> list[str]:
    return [address for other, address in enumerate(addresses) if other != rank]


def _check_at(timing: Timing) -> float:
    return time.monotonic() + timing.job_check_every_s


def _listener(address: str, timing: Timing) -> socket.socket:
    listener = addresses_lib.listener_everywhere(addresses_lib.split(address)[1])
    listener.settimeout(timing.probe_every_s)
    return listener


def _probed(listener: socket.socket, timing: Timing) -> dict[int, Endpoint] | None:
    """Return what a probe has brought, if one came."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(timing.serve_s)
            return _endpoints(connection)
    return None


def _endpoints(connection: socket.socket) -> dict[int, Endpoint] | None:
    """Return what a probe brings; None from a peer that only checks whether somebody listens."""
    connection.sendall(JOINING_GREETING)
    with connection.makefile("rb") as lines:
        line = lines.readline(_LINE_BYTES)
    try:
        return {
            int(rank): {"port": int(endpoint["port"]), "token": str(endpoint["token"])}
            for rank, endpoint in json.loads(line)["endpoints"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _is_joining(greeting: bytes | None) -> bool:
    return greeting is not None and greeting.startswith(JOINING_GREETING)


def _listens(address: str, timing: Timing) -> bool:
    with contextlib.suppress(OSError):
        _connected(address, timing).close()
        return True
    return False


def _connected(address: str, timing: Timing) -> socket.socket:
    return socket.create_connection(addresses_lib.split(address), timeout=timing.serve_s)
