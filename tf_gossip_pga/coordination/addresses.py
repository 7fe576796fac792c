"""Parse `TF_CONFIG` addresses, resolve host names, connect and listen."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Sequence

from tf_gossip_pga.cluster.ports import CHANNEL_PORT
from tf_gossip_pga.coordination.timing import Timing


class UnreachableError(OSError):
    """Nothing can be reached at an address. The text says why, as a clause for messages."""


def split(address: str) -> tuple[str, int]:
    """Return the host and port of a `TF_CONFIG` address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    """Return the `TF_CONFIG` address of a host, which may be an IPv6 address, and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def look_up(host: str) -> tuple[str, ...]:
    """Return a host's numeric addresses, in the operating system's order of preference."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def connect(hosts: Sequence[str], port: int, timeout_s: float) -> socket.socket:
    """Connect to the first of the given hosts that accepts a connection, and return the connection.

    Args:
      hosts: names or numeric addresses, in the order to try.
      port: the port to connect to.
      timeout_s: seconds to wait for each attempt. This is also the timeout of the returned
        connection.

    Raises:
      OSError: no host accepts a connection. The error is that of the last attempt.
      UnicodeError: an entry of `hosts` is not a valid host name.
    """
    refused = OSError("no address")
    for host in hosts:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind)
            try:
                # The system may give this end of the connection a port on which a worker of this
                # machine will soon listen. With SO_REUSEADDR, that worker can still listen there.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.settimeout(timeout_s)
                connection.connect(address)
                # If nothing listens at the called port and that port is on this machine, the system
                # may even give this end the called port, so that the socket connects to itself.
                if connection.getsockname() == connection.getpeername():
                    raise ConnectionRefusedError("connected to itself")
                return connection
            except OSError as error:
                connection.close()
                refused = error
    raise refused


def call(address: str, timeout_s: float) -> tuple[socket.socket, str]:
    """Return a connection to a worker's `TF_CONFIG` address, and the address as messages show it.

    Args:
      address: the address, `"host:port"`.
      timeout_s: seconds to wait for the connection.

    Raises:
      UnreachableError: no connection could be made.
    """
    host, port = split(address)
    try:
        hosts = look_up(host)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UnreachableError(f"the name {host!r} in {address} does not resolve ({why})") from None
    where = address if hosts == (host,) else f"{address} ({', '.join(hosts)})"
    try:
        return connect(hosts, port, timeout_s), where
    except ConnectionRefusedError:
        raise UnreachableError(f"nothing listens at {where} (was it started?)") from None
    except TimeoutError:
        why = "does not answer (is the address correct, and does a firewall block its port?)"
        raise UnreachableError(f"{where} {why}") from None
    except OSError as error:
        why = error.strerror or error
        raise UnreachableError(f"{where} cannot be reached ({why})") from None


def is_here(host: str) -> bool:
    """Return whether this machine has one of a host's addresses.

    Raises:
      OSError: the host's name cannot be resolved.
      UnicodeError: `host` is not a valid host name.
    """
    for address in look_up(host):
        with contextlib.suppress(OSError):
            _create((address, 0)).close()
            return True
    return False


def channel_listener(addresses: Sequence[str], rank: int, port: int | None = None) -> socket.socket:
    """Return a socket for this worker's channel, on the interface of this worker's own address.

    If this machine does not have that address (e.g. behind NAT or in a container), the socket
    listens on all interfaces.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's rank.
      port: the port, or 0 if the operating system should choose one. Default: the port after that
        of this worker's own address. If this default port is taken, or is in another worker's
        address, the operating system chooses one.

    Raises:
      RuntimeError: this worker cannot listen on `port`.
    """
    hosts = [split(address)[0] for address in addresses]
    ports = [split(address)[1] for address in addresses]
    if port is not None:
        try:
            return _listener(hosts, rank, port)
        except OSError as error:
            raise RuntimeError(
                f"Rank {rank} cannot listen on port {port}, which {CHANNEL_PORT} sets: "
                f"{reason(error)}. Give each worker of a machine its own port."
            ) from None
    if ports[rank] + 1 < 65536 and ports[rank] + 1 not in ports:
        with contextlib.suppress(OSError):
            return _listener(hosts, rank, ports[rank] + 1)
    return _listener(hosts, rank, 0)


def _listener(hosts: Sequence[str], rank: int, port: int) -> socket.socket:
    with contextlib.suppress(OSError):
        address = look_up(hosts[rank])[0]
        # Some machines resolve their own name to 127.0.1.1, which no other machine can reach.
        if not ipaddress.ip_address(address).is_loopback or len(set(hosts)) == 1:
            return _create((address, port))
    return listener_everywhere(port)


def _create(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family)


def listener_everywhere(port: int) -> socket.socket:
    """Return a socket that listens on `port` on all interfaces, as TensorFlow's server does."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def reason(error: OSError) -> str:
    """Return why listening has failed, without the address that Python adds to the error."""
    return os.strerror(error.errno) if error.errno else str(error)


def listener_once_free(port: int, timing: Timing) -> socket.socket:
    """Return a socket that listens on `port`, with the timeout `Timing.poll_s`.

    A short-lived connection of any program may hold the port for a moment. Therefore, if the port
    is taken, try again for up to `Timing.start_settle_s`.

    Raises:
      OSError: the port is taken, or listening fails.
    """
    deadline = time.monotonic() + timing.start_settle_s
    while True:
        try:
            listener = listener_everywhere(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(timing.poll_s)
        else:
            listener.settimeout(timing.poll_s)
            return listener
