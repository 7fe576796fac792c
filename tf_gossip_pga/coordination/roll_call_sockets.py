"""Make and answer the calls of the roll call (`roll_call`).

In the roll call, each starting worker calls the addresses of all workers. In each call, both ends
of the connection send their `Report` as a line of JSON::

    listener sends     `greetings.ROLL_CALL`, then its report
    caller sends       its report, then reads one byte that confirms receipt
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from tf_gossip_pga.cluster.machine import boot_id
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, roster
from tf_gossip_pga.coordination.roster import Report
from tf_gossip_pga.coordination.timing import Timing

# TensorFlow's server begins with an HTTP/2 SETTINGS frame. These bytes follow the frame's first
# three, which state its length.
_SETTINGS = b"\x04\0\0\0\0\0"

# How many connections to serve at once, and how many processes to remember, in addition to those of
# the workers.
STRANGERS = 64


@dataclasses.dataclass
class Seat:
    """The results of calls to the address of one rank.

    Attributes:
      report: report of the worker that answers there, or None if none does.
      left: report of the last worker that answered there, if none answers now.
      absence: why no worker answers, as a sentence without its final period.
      is_server: whether TensorFlow's server, or another gRPC server, listens there.
      called_by: nonce (see `Report`) of the last process that has called this worker as that rank
        without answering at the address.
      received: this worker's last report that the process at the address has received.
      wake: event to set in order to call the address immediately.
    """

    report: Report | None = None
    left: Report | None = None
    absence: str = "it has not been called yet"
    is_server: bool = False
    called_by: str = ""
    received: Report | None = None
    wake: threading.Event = dataclasses.field(default_factory=threading.Event)


class Calls:
    """This worker's calls to all addresses, and its answers to calls at its own address.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's rank.
      gpu: the GPU that this worker can exchange from (see `Report`).
      facts: facts that must be equal on all ranks, by name (see `Report`).
      timing: how often to call, and how long to wait for answers.

    Attributes:
      own: this worker's current report.
      seats: the results of calls, by rank. This worker calls its own address too.
      others: the ranks of all other workers.
      changed: event that is set when a worker has reported something new.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        rank: int,
        gpu: str,
        facts: Mapping[str, str],
        timing: Timing,
    ) -> None:
        self._timing = timing
        self._rank = rank
        self.seats = [Seat() for _ in addresses]
        self.others = [each for each in range(len(addresses)) if each != rank]
        self.own = Report(
            rank=rank,
            nonce=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            addresses=tuple(addresses),
            gpu=gpu,
            machine=boot_id().partition("-")[0],
            facts=facts,
            missing=tuple(self.others),
        )
        self.changed = threading.Event()
        self._heard: dict[str, Report] = {}  # by nonce
        self._lock = threading.Lock()

    def heard(self) -> list[Report]:
        """Return the last report of every other process that has sent one."""
        with self._lock:
            return list(self._heard.values())

    @contextlib.contextmanager
    def under_way(self) -> Generator[OSError | None, None, None]:
        """Make and answer calls until the context ends. Yield an error in listening, or None."""
        over = threading.Event()
        with contextlib.ExitStack() as stack:
            failed = None
            try:
                listener = stack.enter_context(self._listener())
                most = len(self.seats) + STRANGERS
                thread = start(accept, listener, most, self._serve, over, self._timing.poll_s)
                stack.callback(thread.join)
            except OSError as error:
                failed = error
            # Callbacks run in reverse order, so `_end` runs before the thread is joined.
            stack.callback(self._end, over)
            for rank in range(len(self.seats)):
                start(self._call_again, rank, over)
            yield failed

    def _end(self, over: threading.Event) -> None:
        """Tell all threads to end."""
        over.set()
        for seat in self.seats:
            seat.wake.set()

    def say(self, **changes: Any) -> None:
        """Change this worker's report, and send it to all others."""
        self.own = dataclasses.replace(self.own, **changes)
        for seat in self.seats:
            seat.wake.set()

    def tell(self, seconds: float, **changes: Any) -> None:
        """Send a last report to all others. Return when they have received it or the time is up.

        Args:
          seconds: how long to wait, at most, until the others have received it.
          **changes: the fields of the report to change.
        """
        self.say(**changes)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and any(map(self._lacks_report, self.others)):
            time.sleep(self._timing.poll_s / 10)

    def _lacks_report(self, rank: int) -> bool:
        seat = self.seats[rank]
        if seat.received is self.own:
            return False
        if self.own.complete:  # a worker that has left or is complete needs no report
            return seat.report is not None and not seat.report.complete
        return not any(each.rank == rank and each.failure for each in self.heard())

    def _call_again(self, rank: int, over: threading.Event) -> None:
        """Call one address, which may be this worker's own, until the event `over` is set."""
        # With hundreds of workers, call less often.
        every_s = max(self._timing.start_call_s, 0.01 * len(self.seats))
        while not over.is_set():
            self._call(rank)
            self.seats[rank].wake.wait(every_s)
            self.seats[rank].wake.clear()

    def _call(self, rank: int) -> None:
        address = self.own.addresses[rank]
        try:
            connection, where = addresses_lib.call(address, self._timing.ask_s)
        except addresses_lib.UnreachableError as error:
            return self._miss(rank, str(error))
        with connection:
            return self._talk(rank, connection, where)

    def _talk(self, rank: int, connection: socket.socket, where: str) -> None:
        ends = time.monotonic() + self._timing.ask_s
        own, greeting = self.own, b""
        try:
            greeting = read_greeting(connection, ends)
            if greeting == greetings.ROLL_CALL:
                report = roster.from_line(read_line(connection, ends))
                connection.sendall(own.to_line())
                if read(connection, ends, 1):
                    self.seats[rank].received = own
                return self._found(rank, report, where)
        except (OSError, ValueError):
            pass
        if greeting and greeting.startswith(greetings.JOINING[: len(greeting)]):
            return self._miss(rank, f"at {where} it is still looking for a job to join")
        if greeting[3:].startswith(_SETTINGS):
            text = (
                f"a gRPC server listens at {where} but does not answer as rank {rank} of this "
                "job: it belongs to another program, or to a job that is already running (set "
                "TF_GOSSIP_PGA_JOIN=1 to join a running job)"
            )
            return self._miss(rank, text, is_server=True)
        return self._miss(
            rank,
            f"something listens at {where} but does not answer as rank {rank} of this job: "
            "it belongs to another program, or to a job that is already running",
        )

    def _miss(self, rank: int, absence: str, is_server: bool = False) -> None:
        """Record why no worker answers at a rank's address."""
        seat = self.seats[rank]
        with self._lock:
            seat.left, seat.report = seat.report or seat.left, None
            seat.absence, seat.is_server = absence, is_server

    def _found(self, rank: int, report: Report, where: str) -> None:
        """Record which process answers at a rank's address."""
        self._hear(report)
        if rank != self._rank:
            if report.addresses != self.own.addresses:
                return self._miss(
                    rank, f"{report.process} at {where} has a different list of addresses"
                )
            if report.nonce == self.own.nonce:
                return self._miss(rank, f"{where} leads to this worker itself")
            if report.rank != rank:
                text = f"{report.process} answers at {where} as rank {report.rank} instead"
                return self._miss(rank, text)
        seat = self.seats[rank]
        with self._lock:
            is_new = report != seat.report
            seat.report, seat.is_server = report, False
        if is_new:
            self.changed.set()
        return None

    def _hear(self, report: Report) -> None:
        if report.nonce == self.own.nonce:
            return
        with self._lock:
            if report.nonce in self._heard or len(self._heard) < 4 * len(self.seats) + STRANGERS:
                self._heard[report.nonce] = report

    def _serve(self, connection: socket.socket) -> None:
        ends = time.monotonic() + self._timing.serve_s
        own = self.own
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(self._timing.serve_s)
            connection.sendall(greetings.ROLL_CALL + own.to_line())
            report = roster.from_line(read_line(connection, ends))
            self._hear(report)
            if report.addresses == own.addresses:
                self._called(self.seats[report.rank], report, own)
            connection.sendall(b"\n")

    def _called(self, seat: Seat, report: Report, own: Report) -> None:
        """Record that a worker has called and has received this worker's report."""
        with self._lock:
            seat.received = own
            if seat.report and seat.report.nonce == report.nonce:
                seat.report = report
                self.changed.set()
            elif report.nonce != own.nonce:
                seat.called_by = report.nonce
                seat.wake.set()

    def _listener(self) -> socket.socket:
        """Return a socket that listens on this worker's port.

        Raises:
          OSError: the port is taken, or listening fails.
        """
        _, port = addresses_lib.split(self.own.addresses[self._rank])
        return addresses_lib.listener_once_free(port, self._timing)


def accept(
    listener: socket.socket,
    most: int,
    serve: Callable[[socket.socket], None],
    over: threading.Event,
    pause_s: float,
) -> None:
    """Accept connections until an event is set, and serve each on a thread of its own.

    Args:
      listener: a listening socket with a timeout, after which the event is checked.
      most: how many connections to serve at once. Further connections are closed.
      serve: function that serves a connection, which is closed afterwards.
      over: the event.
      pause_s: seconds to wait after accepting has failed.
    """
    slots = threading.BoundedSemaphore(most)

    def serve_and_close(connection: socket.socket) -> None:
        try:
            with connection:
                serve(connection)
        finally:
            slots.release()

    while not over.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:  # no file descriptor is left, or the peer has hung up
            over.wait(pause_s)
            continue
        if slots.acquire(blocking=False):
            start(serve_and_close, connection)
        else:
            connection.close()


def greeting_at(address: str, timeout_s: float) -> bytes | None:
    """Return the greeting of the listener at an address.

    Returns:
      The first bytes that the listener sends; b"" if the address does not answer in time; None if
      nothing listens.
    """
    host, port = addresses_lib.split(address)
    try:
        with addresses_lib.connect((host,), port, timeout_s) as connection:
            return read_greeting(connection, time.monotonic() + timeout_s)
    except TimeoutError:  # the network may be cut
        return b""
    except (OSError, UnicodeError):
        return None


def read_greeting(
    connection: socket.socket, ends: float, expected: bytes = greetings.ROLL_CALL
) -> bytes:
    """Return the first bytes that the other end sends, as many as `expected` has.

    Return fewer if they already differ from `expected`, or if the other end closes the connection.

    Args:
      connection: the connection.
      ends: when to stop waiting, by `time.monotonic`.
      expected: the greeting to recognize.
    """
    data = b""
    while expected.startswith(data) and len(data) < len(expected):
        chunk = read(connection, ends, len(expected) - len(data))
        if not chunk:
            break
        data += chunk
    return data


def read_line(connection: socket.socket, ends: float) -> bytes:
    """Return a line that arrives before `ends` (by `time.monotonic`).

    Raises:
      OSError: the connection failed, or the time is up.
      ValueError: the line is too long or incomplete.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = read(connection, ends, 1 << 16)
        if not chunk or len(data) > roster.REPORT_BYTES:
            raise ValueError("not a line")
        data += chunk
    return bytes(data)


def read(connection: socket.socket, ends: float, size: int) -> bytes:
    """Return up to `size` bytes that arrive before `ends` (by `time.monotonic`)."""
    connection.settimeout(max(1e-3, ends - time.monotonic()))
    return connection.recv(size)


def start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Call a function on another thread, and return the thread."""
    # Daemon thread, because resolving a name may take longer than an ending process should wait.
    thread = threading.Thread(target=function, args=arguments, name="roll-call", daemon=True)
    thread.start()
    return thread
