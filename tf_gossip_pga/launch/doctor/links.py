"""Measure the connections between this host and others, for the examiner on this host.

The examiners of all hosts share a random text, the token. The examiner that connects to another one
first sends one line: the token, and the name of a task. The other examiner answers with the token
and the name of its host. What it does then depends on the task:

- `HELLO`: it closes the connection.
- `ECHO`: it returns each byte until the caller closes the connection.
- `RATE`: it receives for up to `SENDING_S`, and reports how fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import pathlib
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.launch.doctor.measurements import (
    DROPPED,
    ELSEWHERE,
    OPEN,
    REFUSED,
    STRANGER,
    UNREACHABLE,
    Attempt,
)

HELLO, ECHO, RATE = "hello", "echo", "rate"

# To wait for a connection, and for the first line. If the first packets to connect are lost, the
# kernel sends others after 1 s and 3 s.
CONNECT_S = 5.0
SENDING_S = 0.5
_SENT_BYTES = 1 << 28  # end a `RATE` after so many bytes, even before `SENDING_S` is up
_ROUND_TRIPS = 25
_ROUND_TRIPS_S = 0.5
_END_S = 5.0  # for everything else on a connection
_ACCEPT_S = 0.1  # to wait after a failure to accept a connection
_CHUNK = bytes(1 << 16)
_LINE_BYTES = 1000

_GET_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h
_INET6 = pathlib.Path("/proc/net/if_inet6")


class Listener:
    """Answer other examiners on this host's ports, until the process ends.

    Args:
      name: this host's name.
      token: a random text that all examiners share.
      ports: the ports to listen on.

    Attributes:
      ports: the ports on which the examiner listens. Where it cannot listen on one of the given
        ports, one that the system has chosen.
      taken: for each given port on which the examiner cannot listen, the reason.
    """

    def __init__(self, name: str, token: str, ports: Sequence[int]):
        self._answer = f"{token} {name}\n".encode()
        self._token = token
        self._closed = threading.Event()
        self.ports: list[int] = []
        self.taken: dict[int, str] = {}
        self._listeners = [self._listen(port) for port in ports]
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # accept() returns when the socket is shut down
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(self, port: int) -> socket.socket:
        try:
            listener = addresses_lib.listener_everywhere(port)
        except OSError as error:
            self.taken[port] = addresses_lib.reason(error)
            listener = addresses_lib.listener_everywhere(0)
        self.ports.append(listener.getsockname()[1])
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed, out of descriptors, or the caller has hung up
                if self._closed.wait(_ACCEPT_S):
                    return
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            token, task = _line(connection, CONNECT_S).split()
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(self._answer)
            if task == ECHO:
                _echo(connection)
            elif task == RATE:
                connection.sendall(f"{_receive(connection)}\n".encode())
                _drain(connection)


def attempt(host: str, port: int, token: str) -> Attempt:
    """Connect to a port of another host, and return what happened.

    Args:
      host: the host's name.
      port: the port.
      token: the examiners' token.
    """
    found = Attempt(port, OPEN)
    try:
        with _call(host, port, token, HELLO) as (connection, name):
            found.local = str(connection.getsockname()[0]).removeprefix("::ffff:")
            found.interface = interface_of(found.local)
            if name != host:
                found.outcome, found.detail = ELSEWHERE, name
    except (OSError, ValueError) as error:
        found.outcome = _outcome(error)
        found.detail = getattr(error, "strerror", None) or str(error)
    return found


def _outcome(error: Exception) -> str:
    if isinstance(error, ValueError | ConnectionResetError):  # no examiner's first line
        return STRANGER
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    return DROPPED if isinstance(error, TimeoutError) else UNREACHABLE


def round_trip_ms(host: str, port: int, token: str) -> float:
    """Return the median time of a byte to another host and back, in ms.

    Raises:
      OSError: the connection failed.
      ValueError: no examiner answers.
    """
    times: list[float] = []
    with _call(host, port, token, ECHO) as (connection, _):
        ends = time.monotonic() + _ROUND_TRIPS_S
        while len(times) < _ROUND_TRIPS and (not times or time.monotonic() < ends):
            began = time.perf_counter()
            connection.sendall(b"x")
            if not connection.recv(1):
                raise ValueError("the connection was closed")
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def mbit(host: str, port: int, token: str) -> float:
    """Send for up to `SENDING_S`, and return the rate at which another host receives, in Mbit/s.

    Raises:
      OSError: the connection failed.
      ValueError: no examiner answers.
    """
    with _call(host, port, token, RATE) as (connection, _):
        # On closing, drop what is still in the buffer, or it would disturb the next measurement.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.setblocking(False)
        ends = time.monotonic() + SENDING_S + _END_S
        writers = [connection]
        while (left := ends - time.monotonic()) > 0:
            readable, writable, _ = select.select([connection], writers, [], left)
            if readable:
                return float(_line(connection, _END_S))
            if writable:
                with contextlib.suppress(BlockingIOError):
                    connection.send(_CHUNK)
    raise TimeoutError("no result")


@contextlib.contextmanager
def _call(host: str, port: int, token: str, task: str) -> Any:
    """Connect to an examiner. Yield the connection, and the name of the host that answers."""
    hosts = addresses_lib.look_up(host)
    with addresses_lib.connect(hosts, port, CONNECT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(f"{token} {task}\n".encode())
        try:
            answered, name = _line(connection, CONNECT_S).split()
        except TimeoutError:
            raise ValueError("it accepts the connection but does not answer") from None
        if answered != token:
            raise ValueError("it does not answer as an examiner")
        connection.settimeout(_END_S)
        yield connection, name


def _line(connection: socket.socket, timeout_s: float) -> str:
    """Receive one line, and leave what follows it in the connection."""
    ends = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(1e-3, ends - time.monotonic()))
        piece = connection.recv(1)
        if not piece or len(data) > _LINE_BYTES:
            raise ValueError("it closes the connection without an answer")
        data += piece
    return data.decode()


def _echo(connection: socket.socket) -> None:
    connection.settimeout(_END_S)
    while data := connection.recv(1):
        connection.sendall(data)


def _receive(connection: socket.socket) -> float:
    """Receive for a while, and return the rate in Mbit/s."""
    connection.settimeout(_END_S)
    buffer = bytearray(len(_CHUNK))
    connection.recv_into(buffer)  # the clock starts when the first bytes are here
    began = time.perf_counter()
    passed, size = 0.0, 0
    while passed < SENDING_S and size < _SENT_BYTES:
        received = connection.recv_into(buffer)
        if not received:
            break
        size += received
        passed = time.perf_counter() - began
    return 8e-6 * size / passed if passed else 0.0


def _drain(connection: socket.socket) -> None:
    """Receive until the caller closes the connection.

    Closing a socket with unread data resets the connection, so the caller could lose the result if
    this end closed the connection first.
    """
    ends = time.monotonic() + _END_S
    while time.monotonic() < ends and connection.recv(len(_CHUNK)):
        pass


def interface_of(address: str) -> str:
    """Return the network interface that has an address, or an empty string if none has it."""
    address, _, zone = address.partition("%")
    if zone:
        return zone
    if ":" in address:
        return _interface_v6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket.fileno(), _GET_ADDRESS, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def _interface_v6(address: str) -> str:
    wanted = socket.inet_pton(socket.AF_INET6, address).hex()
    with contextlib.suppress(OSError):
        for line in _INET6.read_text().splitlines():
            if line.split()[0] == wanted:
                return line.split()[-1]
    return ""
