"""Carry questions between workers, next to the exchanges of TensorFlow, which wait in silence.

Each process listens on a TCP port that the operating system chooses. A request is one line of JSON
with the listener's token, the answer another line, and then the connection is closed; anything
else is dropped. Nothing is sent unless somebody asks.

The kinds of requests are the rows of a table, `Channel.handlers`. A handler runs on the channel's
only thread: it must be quick and must not wait for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing

_Result = TypeVar("_Result")

Message = dict[str, Any]
Endpoint = dict[str, Any]  # {"port": int, "token": str}, as JSON can hold it
Handler = Callable[[Message], Message]

_LINE_BYTES = 1 << 16  # endpoints of hundreds of workers

# What a restarted worker sends to those that connect to its main port; see `joining`.
JOINING_GREETING = b"tf_gossip_pga joining"

# How a connection may end: it fails, takes too long, or brings what is not JSON.
_BROKEN = (OSError, ValueError, RecursionError)


@dataclasses.dataclass(frozen=True)
class _Peer:
    hosts: tuple[str, ...]  # numeric addresses, to be tried in this order
    port: int
    token: str
    main_port: int  # TensorFlow's


class Channel:
    """Answer the questions of other workers, and ask them.

    Args:
      addresses: `"host:port"` of all workers' TensorFlow servers, in rank order.
      rank: this worker's.
      status: what it answers to the question where it is.
      timing: how long to wait for answers, and how often to probe.

    Attributes:
      endpoint: what others need to ask this process.
      endpoints: that of this process and of those that it asks, by rank.
      handlers: kind of request -> function of the request that returns the answer.
    """

    def __init__(
        self, addresses: Sequence[str], rank: int, status: Status, timing: Timing | None = None
    ) -> None:
        self._addresses = addresses
        self._rank = rank
        self._timing = timing or Timing()
        self._token = secrets.token_hex(16)
        self._peers: dict[int, _Peer] = {}
        self._probed: tuple[int, ...] = ()
        self._heard: dict[int, float] = {}  # when a rank last answered
        self._heard_all = time.monotonic()  # when an exchange with all ranks last succeeded
        self.handlers: dict[str, Handler] = {
            "status": lambda request: dataclasses.asdict(status.tell())
        }
        hosts = [addresses_lib.split(address)[0] for address in addresses]
        listener = addresses_lib.listener(hosts, rank)
        self.endpoint: Endpoint = {"port": listener.getsockname()[1], "token": self._token}
        self.endpoints = {rank: self.endpoint}
        # An event loop of its own: the thread that makes the channel may have another.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="gossip-channel", daemon=True
        )
        self._thread.start()

    def learn_all(self, endpoints: Iterable[Endpoint]) -> None:
        """Learn how to ask every worker, from their endpoints in rank order."""
        for rank, endpoint in enumerate(endpoints):
            self.learn(rank, endpoint)

    def learn(self, rank: int, endpoint: Endpoint) -> None:
        """Learn how to ask one worker.

        Raises:
          OSError: its host name cannot be resolved.
        """
        self.endpoints = {**self.endpoints, rank: endpoint}
        if rank != self._rank:
            host, main_port = addresses_lib.split(self._addresses[rank])
            peer = _Peer(addresses_lib.look_up(host), main_port=main_port, **endpoint)
            # Replaced as a whole: the channel's thread may be asking.
            self._peers = {**self._peers, rank: peer}

    def keep(self, ranks: Collection[int]) -> None:
        """Forget all workers but these."""
        self._peers = {rank: peer for rank, peer in self._peers.items() if rank in ranks}
        self.endpoints = {rank: each for rank, each in self.endpoints.items() if rank in ranks}

    def probe(self, ranks: Iterable[int]) -> None:
        """Probe the main ports of these ranks from now on, and leave all endpoints there.

        A restarted worker listens there; see `joining`.
        """
        self._probed = tuple(ranks)

    def heard_all(self) -> None:
        """Record that all others lived just now, as an exchange with them has shown."""
        self._heard_all = time.monotonic()

    def last_heard_s(self) -> dict[int, float]:
        """Return how many seconds ago each of the others showed that it lives."""
        now = time.monotonic()
        return {
            rank: now - max(self._heard_all, self._heard.get(rank, self._heard_all))
            for rank in self._peers
        }

    def ask_all(
        self, kind: str, timeout_s: float | None = None, **details: Any
    ) -> dict[int, Message | Absence]:
        """Return the answers of all others to one request, by rank, or why there is none.

        Args:
          kind: one of their `handlers`.
          timeout_s: how long to wait for them; by default `Timing.ask_s`.
          **details: what else the request holds, as JSON can hold it.
        """
        timeout_s = self._timing.ask_s if timeout_s is None else timeout_s
        return self._on_loop(self._ask_all(kind, timeout_s, details))

    def unreachable(self) -> list[int]:
        """Return the others that live and give no answer now, though there is plenty of time."""
        answers = self.ask_all("status", timeout_s=self._timing.reachable_s)
        return [rank for rank, answer in answers.items() if answer is Absence.SUSPECTED]

    def close(self) -> None:
        """End the thread, and close its sockets."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()

    # ---- On the channel's thread ----------------------------------------------------------------

    def _run(self, listener: socket.socket) -> None:
        with self._runner:
            self._runner.run(self._listen(listener))

    def _on_loop(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self, listener: socket.socket) -> None:
        async with await asyncio.start_server(self._serve, sock=listener, limit=_LINE_BYTES):
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.probe_every_s):
                        await self._closed.wait()
                await asyncio.gather(*map(self._probe, self._probed))

    async def _probe(self, rank: int) -> None:
        host, port = addresses_lib.split(self._addresses[rank])
        with contextlib.suppress(*_BROKEN):
            async with asyncio.timeout(self._timing.serve_s):
                _, writer = await asyncio.open_connection(host, port)
                with contextlib.closing(writer):
                    writer.write(_to_line({"endpoints": self.endpoints}))
                    await writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_BROKEN), contextlib.closing(writer):
            async with asyncio.timeout(self._timing.serve_s):
                request = _from_line(await reader.readline())
                token = str(request.pop("token", "")).encode()
                handler = self.handlers.get(str(request.get("kind")))
                if handler and secrets.compare_digest(token, self._token.encode()):
                    writer.write(_to_line(handler(request)))
                    await writer.drain()

    async def _ask_all(
        self, kind: str, timeout_s: float, details: Message
    ) -> dict[int, Message | Absence]:
        peers = self._peers
        asked = (self._ask(*each, kind, timeout_s, details) for each in peers.items())
        return dict(zip(peers, await asyncio.gather(*asked), strict=True))

    async def _ask(
        self, rank: int, peer: _Peer, kind: str, timeout_s: float, details: Message
    ) -> Message | Absence:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _request(peer, {**details, "token": peer.token, "kind": kind})
        except ConnectionRefusedError:
            return await _refused(peer, timeout_s)
        except _BROKEN:
            return Absence.SUSPECTED
        self._heard[rank] = time.monotonic()
        return answer


async def _request(peer: _Peer, request: Message) -> Message:
    reader, writer = await _connected(peer.hosts, peer.port)
    with contextlib.closing(writer):
        writer.write(_to_line(request))
        return _from_line(await reader.readline())


async def _refused(peer: _Peer, timeout_s: float) -> Absence:
    """Return what a refused connection means: a firewall may refuse this port and pass the main."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connected(peer.hosts, peer.main_port)
            with contextlib.closing(writer):
                # TensorFlow's server does not begin like a worker that waits for a probe.
                greeting = await reader.read(len(JOINING_GREETING))
    except ConnectionRefusedError:
        return Absence.DEAD
    except OSError:
        return Absence.SUSPECTED
    return Absence.DEAD if greeting == JOINING_GREETING else Absence.SUSPECTED


async def _connected(
    hosts: tuple[str, ...], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port, limit=_LINE_BYTES)
    return await asyncio.open_connection(hosts[-1], port, limit=_LINE_BYTES)


def _to_line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _from_line(line: bytes) -> Message:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message  # pyright: ignore[reportUnknownVariableType]
