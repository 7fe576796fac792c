"""Parse `TF_CONFIG` addresses, resolve host names, connect and listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence


def split(address: str) -> tuple[str, int]:
    """Return the host and port of a `TF_CONFIG` address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


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


def listener(hosts: Sequence[str], rank: int) -> socket.socket:
    """Return a socket that listens on the interface of this worker's own address, on a free port.

    If this machine does not have that address (e.g. behind NAT or in a container), the socket
    listens on all interfaces.

    Args:
      hosts: host names of all workers, in rank order.
      rank: this worker's rank.
    """
    with contextlib.suppress(OSError):
        address = look_up(hosts[rank])[0]
        # Some machines resolve their own name to 127.0.1.1, which no other machine can reach.
        if not ipaddress.ip_address(address).is_loopback or len(set(hosts)) == 1:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return socket.create_server((address, 0), family=family)
    return listener_everywhere(0)


def listener_everywhere(port: int) -> socket.socket:
    """Return a socket that listens on `port` on all interfaces, as TensorFlow's server does."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
