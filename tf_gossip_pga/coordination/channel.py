"""Send requests to other workers and answer theirs, independently of TensorFlow's exchanges.

Each process listens on a TCP port of its own (`server`). Each connection carries one request and
its answer, each as one line of JSON. Both sides prove that they belong to the job (`secret`).

A worker sends requests only for these purposes:

- to find out which ranks an exchange waits for (`watchdog`),
- to form a view (`protocol`),
- to check that the others are alive (`Protocol.ping`) and reachable (`Channel.unreachable`),
- to join a job (`admission`),
- to report that an exception has ended its `fit` or process (`departures`),
- to report that it ends because it has lost another worker (`watchdog`),
- to probe the addresses of lost workers (`Channel.probe`).

`Channel.handlers` maps each kind of request to the function that answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.tf_config import SECRET
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, messages
from tf_gossip_pga.coordination import secret as secret_lib
from tf_gossip_pga.coordination.messages import Message, Port
from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.coordination.server import BROKEN, MESSAGE_BYTES, Server
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing


@dataclasses.dataclass(frozen=True)
class Introduction:
    """The data that the other workers need in order to send requests to a starting worker.

    Workers gather it over TensorFlow's transport at startup.

    Attributes:
      port: the port of the starting worker's channel.
      key: the key that authenticates requests to the starting worker (see `secret`), as hexadecimal
        text. None if the job has a secret: the others then derive the key from the secret.
      fingerprint: fingerprint of the job's secret, which must be the same on all workers. None if
        the job has no secret.
    """

    port: Port
    key: str | None
    fingerprint: str | None


@dataclasses.dataclass(frozen=True)
class _Peer:
    hosts: tuple[str, ...]  # numeric addresses, in the order to try
    port: int
    key: bytes
    main_port: int  # the port of TensorFlow's server


class Channel:
    """Send requests to other workers, and answer theirs.

    Args:
      addresses: `"host:port"` of all workers' TensorFlow servers, in rank order.
      rank: this worker's rank.
      status: this worker's status, the answer to the request `"status"`.
      timing: how long to wait for answers, and how often to probe.
      secret: the job's secret. Without one, each worker generates a key and sends it to the others
        in its introduction, and lost workers cannot rejoin.
      port: the port to listen on. Default: see `addresses.channel_listener`.

    Attributes:
      endpoint: the port of this process's channel.
      endpoints: the ports of this process and of the workers it can send requests to, by rank.
      introduction: this process's `Introduction`, as a JSON-serializable dict.
      handlers: functions by kind of request. Each takes a request and returns the answer (see
        `Server`).
    """

    def __init__(
        self,
        addresses: Sequence[str],
        rank: int,
        status: Status,
        timing: Timing | None = None,
        secret: bytes | None = None,
        port: int | None = None,
    ) -> None:
        self._addresses = addresses
        self._rank = rank
        self._timing = timing or Timing()
        self._secret = secret
        self._peers: dict[int, _Peer] = {}
        self._lost: tuple[int, ...] = ()
        self._probed: tuple[int, ...] = ()
        self._heard: dict[int, float] = {}  # when a rank last answered
        self._heard_all = time.monotonic()  # when an exchange with all members last succeeded
        listener = addresses_lib.channel_listener(addresses, rank, port)
        self.endpoint: int = listener.getsockname()[1]
        self.endpoints = {rank: self.endpoint}
        if secret is None:
            key = secrets.token_bytes(32)
            introduction = Introduction(self.endpoint, key.hex(), None)
        else:
            key = secret_lib.key_of(secret, addresses, rank)
            fingerprint = secret_lib.fingerprint(secret, addresses)
            introduction = Introduction(self.endpoint, None, fingerprint)
        self.introduction: Message = dataclasses.asdict(introduction)
        self._server = Server(
            listener, key, greetings.CHANNEL, len(addresses), self._timing.serve_s
        )
        self.handlers = self._server.handlers
        self.handlers["status"] = lambda request: dataclasses.asdict(status.tell())
        self._server.start(self._probe_until_closed())

    def learn_all(self, introductions: Iterable[Message]) -> None:
        """Learn the endpoint and key of every worker from their introductions.

        Args:
          introductions: those of all workers, in rank order.

        Raises:
          OSError: the host name of a worker cannot be resolved.
          ValueError: the workers do not all have the same secret.
        """
        parsed = [messages.parse(Introduction, each, 0) for each in introductions]
        fingerprints = [each.fingerprint for each in parsed]
        if len(set(fingerprints)) > 1:
            raise secret_lib.differing(fingerprints)
        for rank, each in enumerate(parsed):
            self._learn(rank, each.port, each.key)

    def learn(self, rank: int, endpoint: int) -> None:
        """Learn the endpoint of a joining worker, or of a member if this worker is joining.

        Raises:
          OSError: the worker's host name cannot be resolved.
          ValueError: the job has no secret.
        """
        self._learn(rank, endpoint, None)

    def _learn(self, rank: int, port: int, key: str | None) -> None:
        self.endpoints = {**self.endpoints, rank: port}
        if rank != self._rank:
            host, main_port = addresses_lib.split(self._addresses[rank])
            peer = _Peer(
                addresses_lib.look_up(host),
                port,
                bytes.fromhex(key) if key else self._key_of(rank),
                main_port,
            )
            # Replace the whole dict: the channel's thread may be iterating over the old one.
            self._peers = {**self._peers, rank: peer}

    def _key_of(self, rank: int) -> bytes:
        if self._secret is None:
            raise secret_lib.missing(self._rank)
        return secret_lib.key_of(self._secret, self._addresses, rank)

    def keep(self, ranks: Collection[int]) -> None:
        """Forget all workers except these ranks."""
        self._peers = {rank: peer for rank, peer in self._peers.items() if rank in ranks}
        self.endpoints = {rank: each for rank, each in self.endpoints.items() if rank in ranks}

    def probe(self, ranks: Iterable[int]) -> None:
        """Start sending the endpoints of the members to these lost ranks, again and again.

        A restarted worker listens at its address in `TF_CONFIG` (see `joining`). If the job has no
        secret, a restarted worker could not prove that it belongs to the job. In that case, send
        nothing, and log once that these ranks cannot rejoin.
        """
        before, self._lost = self._lost, tuple(ranks)
        if self._secret is not None:
            self._probed = self._lost
        elif new := [rank for rank in self._lost if rank not in before]:
            logger.info(
                f"{named(new).capitalize()} cannot rejoin after a restart: the workers were "
                f"started without a common {SECRET}."
            )

    def heard_all(self) -> None:
        """Record that an exchange has just shown all other members to be alive."""
        self._heard_all = time.monotonic()

    def last_heard_s(self) -> dict[int, float]:
        """Return, by rank, how many seconds ago each other worker last showed a sign of life."""
        now = time.monotonic()
        return {
            rank: now - max(self._heard_all, self._heard.get(rank, self._heard_all))
            for rank in self._peers
        }

    def ask_all(
        self, kind: str, timeout_s: float | None = None, **details: Any
    ) -> dict[int, Message | Absence]:
        """Send a request to all other workers, and return each answer, or why it is missing.

        Args:
          kind: the kind of request, a key of the other workers' `handlers`.
          timeout_s: seconds to wait for each answer. Default `Timing.ask_s`.
          **details: additional JSON-serializable fields of the request.
        """
        timeout_s = self._timing.ask_s if timeout_s is None else timeout_s
        return self._server.run(self._ask_all(timeout_s, {**details, "kind": kind}))

    def tell_at_exit(self, kind: str, **details: Any) -> None:
        """Send a request to all other workers while this process ends. Wait only briefly.

        Args:
          kind: the kind of request, a key of the other workers' `handlers`.
          **details: additional JSON-serializable fields of the request.
        """
        ask_s = self._timing.ask_s
        with contextlib.suppress(TimeoutError):
            self._server.run(self._ask_all(ask_s, {**details, "kind": kind}), ask_s + 1.0)

    def unreachable(self) -> list[int]:
        """Return the workers that may be alive but do not answer within `Timing.reachable_s`."""
        answers = self.ask_all("status", timeout_s=self._timing.reachable_s)
        return [rank for rank, answer in answers.items() if answer is Absence.SUSPECTED]

    def close(self) -> None:
        """End the channel's thread, and close its sockets."""
        self._server.close()

    # ---- On the channel's thread ----------------------------------------------------------------

    async def _probe_until_closed(self) -> None:
        while True:
            await asyncio.sleep(self._timing.probe_every_s)
            await asyncio.gather(*map(self._probe, self._probed))

    async def _probe(self, rank: int) -> None:
        host, port = addresses_lib.split(self._addresses[rank])
        request = {"kind": "probe", "endpoints": self.endpoints}
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(self._timing.serve_s):
                await _ask((host,), port, self._key_of(rank), greetings.JOINING, request)

    async def _ask_all(self, timeout_s: float, request: Message) -> dict[int, Message | Absence]:
        peers = self._peers
        asked = (self._ask(*each, timeout_s, request) for each in peers.items())
        return dict(zip(peers, await asyncio.gather(*asked), strict=True))

    async def _ask(
        self, rank: int, peer: _Peer, timeout_s: float, request: Message
    ) -> Message | Absence:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _ask(peer.hosts, peer.port, peer.key, greetings.CHANNEL, request)
        except ConnectionRefusedError:
            return await _refused(peer, timeout_s)
        except BROKEN:
            return Absence.SUSPECTED
        self._heard[rank] = time.monotonic()
        return answer


async def _ask(
    hosts: Sequence[str], port: int, key: bytes, greeting: bytes, request: Message
) -> Message:
    """Send a request to a `Server`, and return the answer.

    Args:
      hosts: the server's addresses, in the order to try.
      port: the server's port.
      key: the server's key. Both sides prove that they know it.
      greeting: the greeting that the server must start with.
      request: the request, with its `"kind"`.

    Raises:
      OSError: the connection failed.
      ValueError: the listener is not a process of this job, or has dropped the request.
    """
    reader, writer = await _connected(hosts, port)
    with contextlib.closing(writer):
        *words, nonce = (await reader.readline()).decode().split() or [""]
        if words != greeting.decode().split():
            raise ValueError("not a process of this job")
        line, to = secret_lib.seal_request(key, nonce, request)
        writer.write(line)
        return secret_lib.open_answer(key, to, await reader.readline())


async def _refused(peer: _Peer, timeout_s: float) -> Absence:
    """Return whether a worker whose channel refused a connection is dead or only suspected.

    A firewall may block the channel's port but not the main port, the one in `TF_CONFIG`. Therefore
    try the main port too.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connected(peer.hosts, peer.main_port)
            with contextlib.closing(writer):
                greeting = await reader.read(greetings.LONGEST)
    except ConnectionRefusedError:
        return Absence.DEAD
    except OSError:
        return Absence.SUSPECTED
    # If a new process of this rank is starting or joining at the main port, the old one is dead.
    return Absence.DEAD if greetings.is_own(greeting) else Absence.SUSPECTED


async def _connected(
    hosts: Sequence[str], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port, limit=MESSAGE_BYTES)
    return await asyncio.open_connection(hosts[-1], port, limit=MESSAGE_BYTES)
