"""Let a restarted worker find the surviving workers.

A worker that was lost and restarted knows only the addresses in `TF_CONFIG`, where TensorFlow's
servers listen. It does not know the ports of the surviving workers' channels. The restarted worker
therefore listens on its own address until its TensorFlow server needs that port. The lowest
surviving rank repeatedly *probes* this address: it sends the endpoints of all surviving workers
there (`Channel.probe`). The joining worker can then send requests to all surviving workers. It
announces itself until they invite it, at the beginning of an epoch.

Both sides prove that they know the job's secret (`secret`). Without a secret, no worker can join.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import socket
import time
from collections.abc import Generator, Sequence
from typing import Any

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, messages, roll_call_sockets
from tf_gossip_pga.coordination import secret as secret_lib
from tf_gossip_pga.coordination.messages import Message, Port, Rank
from tf_gossip_pga.coordination.reports import Waiting
from tf_gossip_pga.coordination.server import Server
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost


@dataclasses.dataclass(frozen=True)
class Invitation:
    """Part of the answer to a joining worker's announcement once the members are ready to admit it.

    Attributes:
      view_number: number of the view that the joining worker will be a member of.
      completed: number of exchanges that the members have completed in their current `fit`.
      members: the ranks of the current view.
      joining: the ranks being admitted.
      transport: the transport of exchanges: `"ring"` or `"nccl"`.
      epoch: the epoch that begins, counted from 0.
      facts: digest of the facts that must be equal on all ranks, such as package
        versions and the model's variables.
      state: the members' `GossipPGA.state`, which the joining worker adopts.
    """

    view_number: int
    completed: int
    members: list[Rank]
    joining: list[Rank]
    transport: str
    epoch: int
    facts: str
    state: dict[str, Any]


def await_probe(
    addresses: Sequence[str], rank: int, secret: bytes | None, timing: Timing | None = None
) -> dict[int, int] | None:
    """Wait on this worker's own port for a probe, and return the endpoints that it carries.

    Return None if there is no job to join yet. This is the case if no other address can belong to a
    training worker, and either another worker is taking part in the roll call of a starting job
    (`roll_call`) or all other workers are waiting to join too.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's rank.
      secret: the job's secret.
      timing: how long to wait.

    Returns:
      The endpoints of all surviving workers by rank, or None.

    Raises:
      ValueError: there is no secret.
      RuntimeError: another process uses this worker's port.
      WorkerLost: no worker is left that could probe this one, so there is no job to join.
    """
    if secret is None:
        raise secret_lib.missing(rank)
    timing = timing or Timing()
    others = _others(addresses, rank)
    try:
        listener = _listener(addresses[rank])
    except OSError as error:
        raise RuntimeError(
            f"Rank {rank} cannot listen on {addresses[rank]}: {error}. Is the process that it "
            "replaces still running?"
        ) from None
    waiting, check_at, futile = Waiting(timing.join_report_s), time.monotonic(), -1
    with _probed(listener, addresses, rank, secret, timing) as probe:
        while futile < timing.job_checks:
            with contextlib.suppress(TimeoutError):
                return probe.result(timing.probe_every_s)
            if time.monotonic() > check_at:
                found = [roll_call_sockets.greeting_at(each, timing.serve_s) for each in others]
                alive = any(each is not None and not greetings.is_own(each) for each in found)
                starting = greetings.ROLL_CALL in found or all(map(greetings.is_joining, found))
                if starting and not alive:
                    return None
                futile = 0 if alive else futile + 1
                check_at = _check_at(timing)
            if waited_s := waiting.due():
                logger.info(
                    f"Rank {rank} has waited {waited_s:.0f} s at {addresses[rank]} for the "
                    "surviving workers to probe it."
                )
    raise WorkerLost(
        f"Rank {rank} cannot join: no worker is training at the other addresses of TF_CONFIG, so "
        "the job has ended. Restart the whole job."
    )


def endpoints_if_probed(
    addresses: Sequence[str], rank: int, secret: bytes | None, timing: Timing | None = None
) -> dict[int, int] | None:
    """Return the endpoints that a probe brings to this worker, or None if no probe arrives.

    The workers of a running job probe a worker that they have lost, even if it was restarted
    without `TF_GOSSIP_PGA_JOIN=1`. Wait for a probe only if something, such as TensorFlow's server,
    already listens at every other address. Otherwise, the job is only starting.

    Args:
      addresses: as in `await_probe`.
      rank: as in `await_probe`.
      secret: as in `await_probe`, or None if the job has no secret. In that case, no worker can
        probe this one.
      timing: as in `await_probe`.
    """
    timing = timing or Timing()
    others = _others(addresses, rank)
    # OSError: no probe arrived in time, or the port is taken, which TensorFlow will report.
    with contextlib.suppress(OSError):
        if secret and others and all(_listens(address, timing) for address in others):
            listener = _listener(addresses[rank])
            with _probed(listener, addresses, rank, secret, timing) as probe:
                return probe.result(timing.unannounced_probe_s)
    return None


def _others(addresses: Sequence[str], rank: int) -> list[str]:
    return [address for other, address in enumerate(addresses) if other != rank]


def _check_at(timing: Timing) -> float:
    return time.monotonic() + timing.job_check_every_s


def _listener(address: str) -> socket.socket:
    return addresses_lib.listener_everywhere(addresses_lib.split(address)[1])


@contextlib.contextmanager
def _probed(
    listener: socket.socket, addresses: Sequence[str], rank: int, secret: bytes, timing: Timing
) -> Generator[concurrent.futures.Future[dict[int, int]], None, None]:
    """Listen, and yield a future for the endpoints that a probe will carry."""
    size, key = len(addresses), secret_lib.key_of(secret, addresses, rank)
    brought: concurrent.futures.Future[dict[int, int]] = concurrent.futures.Future()

    def take(request: Message) -> Message:
        endpoints = messages.checked(request, size, endpoints=dict[Rank, Port])["endpoints"]
        if not endpoints:
            raise ValueError("a probe must contain at least the endpoint of its sender")
        if not brought.done():
            brought.set_result(endpoints)
        return {}

    server = Server(listener, key, greetings.JOINING, size, timing.serve_s)
    server.handlers["probe"] = take
    with contextlib.closing(server):
        yield brought


def _listens(address: str, timing: Timing) -> bool:
    host, port = addresses_lib.split(address)
    with contextlib.suppress(OSError, UnicodeError):
        addresses_lib.connect((host,), port, timing.serve_s).close()
        return True
    return False
