"""WHO is late: workers ask one another where they are, beside the exchanges that wait in silence.

Each process listens on a TCP port that the operating system gives it. A request is one line of JSON
with the listener's token, the answer another, and the connection is over; whatever does not look so
is dropped. Nothing is sent unless somebody asks.

The kinds of requests are the rows of a table, `Channel.handlers`. A handler runs on the channel's
only thread: it must be quick, and wait for nothing.
"""

import asyncio
import contextlib
import dataclasses
import enum
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
import traceback
import types

_LINE_BYTES = 1 << 16  # contacts of hundreds of workers

# How many late ranks are named.
_NAMED = 8

# How long a stranger may hold a connection.
_SERVE_S = 2.0

# How often to look for lost workers that have been started again.
_KNOCK_S = 0.25

# What a worker says that has been started again and waits at its main port; see `guest`.
GREETING = b"tf_gossip_pga guest"

# How long to wait for answers: long for a process that lives, short beside any timeout.
_ASK_S = 2.0


class Absence(enum.Enum):
    """Why a worker gave no answer, as the end of a sentence."""

    SILENT = "does not answer (its process is stopped, or the network between is cut)"
    GONE = "has ended: its process does not listen any more"


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """Where a worker is, as it tells others.

    Attributes:
      where: what it does in `fit`, after "is": `"computing step 7"`; empty before its first `fit`.
      where_s: seconds since when.
      step: completed steps.
      exchanges: how many exchanges it has begun. All ranks take part in the same ones in one order,
        so that who has begun fewer is late.
      waits_at: the exchange that it waits in, or None.
      waits_s: seconds since when.
      fits: how many times it has called `fit`.
      in_fit: whether it is still inside the last of these.
    """

    where: str
    where_s: float
    step: int
    exchanges: int
    waits_at: str | None
    waits_s: float
    fits: int
    in_fit: bool


class Status:
    """What this process answers to "where are you"; kept by the threads that train.

    Attributes:
      exchanges: see `Whereabouts`.
    """

    def __init__(self):
        self.exchanges = 0
        # Each is replaced as a whole, so that the channel's thread never sees half of it.
        self._at = ("", 0, time.monotonic())
        self._waits: tuple[str, float] | None = None
        self._fit: tuple[int, types.CodeType] | None = None
        self._fits = 0

    def at(self, where: str, step: int):
        """Says what this process does now, and how many steps it has completed."""
        self._at = (where, step, time.monotonic())

    def enter_fit(self, code: types.CodeType):
        """Says that this thread trains, until the function with this code has returned.

        An exception leaves `fit` without a word to its callbacks; the thread's stack tells.
        """
        self._fit = (threading.get_ident(), code)
        self._fits += 1

    def wait(self, doing: str):
        """Says that an exchange begins."""
        self.exchanges += 1
        self._waits = (doing, time.monotonic())

    def arrive(self):
        """Says that the exchange is over."""
        self._waits = None

    def tell(self) -> Whereabouts:
        """Where this process is; for any thread."""
        now, (where, step, since), waits = time.monotonic(), self._at, self._waits
        return Whereabouts(
            where=where,
            where_s=now - since,
            step=step,
            exchanges=self.exchanges,
            waits_at=waits and waits[0],
            waits_s=now - waits[1] if waits else 0.0,
            fits=self._fits,
            in_fit=self._fit is not None and _runs(*self._fit),
        )


@dataclasses.dataclass(frozen=True)
class Findings:
    """What asking all others has shown.

    Attributes:
      ranks: those that keep this one waiting.
      never: whether one of them will never come, since it has ended or left `fit`.
      text: about each of them, in one line.
      silent: whether one of them gives no answer.
    """

    ranks: tuple[int, ...] = ()
    never: bool = False
    text: str = ""
    silent: bool = False

    @property
    def names(self) -> str:
        """`"rank 3"`, or `"rank 1 and rank 3"`."""
        return " and ".join(_shortened([f"rank {rank}" for rank in self.ranks]))


@dataclasses.dataclass(frozen=True)
class _Peer:
    hosts: tuple[str, ...]  # addresses in numbers, to be tried in this order
    port: int
    token: str
    main_port: int  # TensorFlow's


class Channel:
    """This process's ear for the questions of others, and its way to ask them.

    Args:
      addresses: `"host:port"` of all workers' TensorFlow servers, in rank order.
      rank: this worker's.
      status: what it tells those who ask.

    Attributes:
      contact: what others need to ask this process, as JSON can hold it.
      contacts: that of this process and of those that it asks, by rank.
      handlers: kind of request -> function of the request that returns the answer, both dicts.
    """

    def __init__(self, addresses, rank: int, status: Status):
        self._addresses = addresses
        self._rank = rank
        self._status = status
        self._token = secrets.token_hex(16)
        self._peers: dict[int, _Peer] = {}
        self._knocks_at: tuple[int, ...] = ()
        self._heard: dict[int, float] = {}  # by an answer
        self._heard_all = time.monotonic()  # by an exchange
        self.handlers = {"status": lambda request: dataclasses.asdict(status.tell())}
        listener = _listener([split(address)[0] for address in addresses], rank)
        self.contact = {"port": listener.getsockname()[1], "token": self._token}
        self.contacts = {rank: self.contact}
        # A loop of its own: the thread that makes it may have another.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="gossip-channel", daemon=True
        )
        self._thread.start()

    def join(self, contacts: list[dict]):
        """Makes the others known, by what their `contact` is, in rank order."""
        for rank, contact in enumerate(contacts):
            self.know(rank, contact)

    def know(self, rank: int, contact: dict):
        """Makes one other known, by what its `contact` is."""
        self.contacts = {**self.contacts, rank: contact}
        if rank != self._rank:
            host, main_port = split(self._addresses[rank])
            peer = _Peer(_numbers(host), main_port=main_port, **contact)
            self._peers = {**self._peers, rank: peer}  # at once: the channel's thread may be asking

    def keep(self, ranks):
        """Asks no others from now on."""
        self._peers = {rank: peer for rank, peer in self._peers.items() if rank in ranks}
        self.contacts = {rank: contact for rank, contact in self.contacts.items() if rank in ranks}

    def knock(self, ranks):
        """Looks for lost workers from now on, to leave the contacts of all; see `guest`."""
        self._knocks_at = tuple(ranks)

    def hear(self):
        """Notes that all others were alive just now, as an exchange with them has shown."""
        self._heard_all = time.monotonic()

    def ask_all(self, kind: str, timeout_s: float = _ASK_S, **details) -> dict[int, dict | Absence]:
        """The answers of all others to one request, by rank, or why there is none.

        Args:
          kind: one of their `handlers`.
          timeout_s: how long to wait for them.
          **details: what else the request holds, as JSON can hold it.
        """
        return self._on_loop(self._ask_all(kind, timeout_s, details))

    def findings(self, bereaved=()) -> Findings:
        """Asks all others where they are, and who of them keeps this process waiting.

        Args:
          bereaved: ranks that have said that they end because of another, who are not to blame.
        """
        if not self._peers:
            return Findings(text="the others cannot be asked before all have started")
        answers = self.ask_all("status")
        mine = self._status.tell()
        found = {rank: _parsed(answer) for rank, answer in answers.items()}
        late = {
            rank: where
            for rank, where in found.items()
            if isinstance(where, Absence) or where.exchanges < mine.exchanges
        }
        if not late:
            return _elsewhere(found, mine)
        # Those who wait themselves are late because of others.
        causes = {rank: where for rank, where in late.items() if not _waits(where)} or late
        never = any(_never_comes(where, mine) for where in causes.values())
        if never:  # then who only takes long is not to blame
            lost = {
                rank: where
                for rank, where in causes.items()
                if isinstance(where, Absence) or _never_comes(where, mine)
            }
            causes = {rank: where for rank, where in lost.items() if rank not in bereaved} or lost
        return Findings(
            ranks=tuple(causes),
            never=never,
            silent=Absence.SILENT in causes.values(),
            text="; ".join(_shortened([self._sentence(*each, mine) for each in causes.items()])),
        )

    def unreachable(self) -> list[int]:
        """The others that give no answer now, though there is plenty of time."""
        answers = self.ask_all("status", timeout_s=10 * _ASK_S)
        return [rank for rank, answer in answers.items() if isinstance(answer, Absence)]

    def close(self):
        """Ends the thread, and closes its sockets."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    def _sentence(self, rank: int, where: Whereabouts | Absence, mine: Whereabouts) -> str:
        if where is Absence.SILENT:
            heard = max(self._heard_all, self._heard.get(rank, self._heard_all))
            silent_s = time.monotonic() - heard
            return f"rank {rank} {where.value}; last heard from it {silent_s:.0f} s ago"
        if where is Absence.GONE:
            return f"rank {rank} {where.value}"
        return f"rank {rank} {_told(where, mine)}"

    # ---- On the channel's thread ----------------------------------------------------------------

    def _run(self, listener: socket.socket):
        with self._runner:
            self._runner.run(self._listen(listener))

    def _on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self, listener: socket.socket):
        async with await asyncio.start_server(self._serve, sock=listener, limit=_LINE_BYTES):
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KNOCK_S):
                        await self._closed.wait()
                await asyncio.gather(*map(self._knock, self._knocks_at))

    async def _knock(self, rank: int):
        host, port = split(self._addresses[rank])
        with contextlib.suppress(*_BROKEN):
            async with asyncio.timeout(_SERVE_S):
                _, writer = await asyncio.open_connection(host, port)
                with contextlib.closing(writer):
                    writer.write(_to_line({"contacts": self.contacts}))
                    await writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        with contextlib.suppress(*_BROKEN), contextlib.closing(writer):
            async with asyncio.timeout(_SERVE_S):
                request = _from_line(await reader.readline())
                token = str(request.pop("token", "")).encode()
                handler = self.handlers.get(str(request.get("kind")))
                if handler and secrets.compare_digest(token, self._token.encode()):
                    writer.write(_to_line(handler(request)))
                    await writer.drain()

    async def _ask_all(
        self, kind: str, timeout_s: float, details: dict
    ) -> dict[int, dict | Absence]:
        peers = self._peers
        asked = (self._ask(*each, kind, timeout_s, details) for each in peers.items())
        return dict(zip(peers, await asyncio.gather(*asked), strict=True))

    async def _ask(
        self, rank: int, peer: _Peer, kind: str, timeout_s: float, details: dict
    ) -> dict | Absence:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _request(peer, {**details, "token": peer.token, "kind": kind})
        except ConnectionRefusedError:
            return await _refused(peer, timeout_s)
        except _BROKEN:
            return Absence.SILENT
        self._heard[rank] = time.monotonic()
        return answer


# What a connection may end with: it fails or takes too long, or brings what is not JSON.
_BROKEN = (OSError, ValueError, RecursionError)


async def _request(peer: _Peer, request: dict) -> dict:
    reader, writer = await _connected(peer.hosts, peer.port)
    with contextlib.closing(writer):
        writer.write(_to_line(request))
        return _from_line(await reader.readline())


async def _refused(peer: _Peer, timeout_s: float) -> Absence:
    """What it means that nobody listens: a firewall may refuse this port and let the other pass."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connected(peer.hosts, peer.main_port)
            with contextlib.closing(writer):  # TensorFlow's server does not begin like this
                greeting = await reader.read(len(GREETING))
    except ConnectionRefusedError:
        return Absence.GONE
    except OSError:
        return Absence.SILENT
    return Absence.GONE if greeting == GREETING else Absence.SILENT


async def _connected(hosts: tuple[str, ...], port: int):
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port, limit=_LINE_BYTES)
    return await asyncio.open_connection(hosts[-1], port, limit=_LINE_BYTES)


def _to_line(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _from_line(line: bytes) -> dict:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


# ---- What an answer means -----------------------------------------------------------------------


def _parsed(answer: dict | Absence) -> Whereabouts | Absence:
    try:
        return answer if isinstance(answer, Absence) else Whereabouts(**answer)
    except TypeError:
        return Absence.SILENT  # somebody else listens there now


def _elsewhere(found: dict[int, Whereabouts], mine: Whereabouts) -> Findings:
    """Those who wait at another exchange, though they have begun as many: neither will ever end."""
    there = {
        rank: where.waits_at
        for rank, where in found.items()
        if where.exchanges == mine.exchanges and _waits(where) and where.waits_at != mine.waits_at
    }
    if not there or mine.waits_at is None:
        return Findings()
    text = "; ".join(_shortened([f"rank {rank} waits at {place}" for rank, place in there.items()]))
    return Findings(tuple(there), never=True, text=f"{text}: the ranks took different ways")


def _shortened(texts: list[str]) -> list[str]:
    more = len(texts) - _NAMED
    return [*texts[:_NAMED], f"{more} more"] if more > 0 else texts


def _waits(where: Whereabouts | Absence) -> bool:
    return isinstance(where, Whereabouts) and where.waits_at is not None


def _never_comes(where: Whereabouts | Absence, mine: Whereabouts) -> bool:
    """Whether a late worker will not take part in what this one waits for."""
    if isinstance(where, Absence):
        return where is Absence.GONE
    left = where.fits == mine.fits and not where.in_fit
    return mine.in_fit and (left or where.fits > mine.fits)


def _told(where: Whereabouts, mine: Whereabouts) -> str:
    if _never_comes(where, mine):
        return f"has left fit; {where.where_s:.0f} s ago it was {where.where}"
    if where.waits_at is not None:
        return f"has not reached it; it has waited {where.waits_s:.0f} s at {where.waits_at}"
    if not where.in_fit:
        return f"has not called fit with GossipPGA {'again' if where.fits else 'yet'}"
    return f"has not reached it; for {where.where_s:.0f} s it has been {where.where}"


def _runs(thread: int, code: types.CodeType) -> bool:
    """Whether a function is on a thread's stack."""
    frame = sys._current_frames().get(thread)
    return frame is not None and any(each.f_code is code for each, _ in traceback.walk_stack(frame))


# ---- Addresses ----------------------------------------------------------------------------------


def split(address: str) -> tuple[str, int]:
    """Host and port of an address as in `TF_CONFIG`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _numbers(host: str) -> tuple[str, ...]:
    """A host's addresses; looked up at the start, when nothing is wrong yet."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(each[4][0] for each in found))


def _listener(hosts: list[str], rank: int) -> socket.socket:
    """A socket on the interface of this worker's own address, where it has one."""
    with contextlib.suppress(OSError):  # it has none: behind NAT, or in a container
        address = _numbers(hosts[rank])[0]
        # Some machines call themselves 127.0.1.1, which no other could reach.
        if not ipaddress.ip_address(address).is_loopback or len(set(hosts)) == 1:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return socket.create_server((address, 0), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
