"""Take addresses of `TF_CONFIG` apart, look names up, and listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address as in `TF_CONFIG`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def look_up(host: str) -> tuple[str, ...]:
    """Return a host's numeric addresses, the preferred one first."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def connect(hosts: Sequence[str], port: int, timeout_s: float) -> socket.socket:
    """Return a connection to the first of a worker's hosts that accepts one.

    Raises:
      OSError: none of them does; the reason is the last one's.
      UnicodeError: a name cannot be one of a host.
    """
    refused = OSError("no address")
    for host in hosts:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind)
            try:
                # The operating system may give this end a port of which a worker is to listen soon.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.settimeout(timeout_s)
                connection.connect(address)
                # On one machine it may even be the port that is called, where nobody listens.
                if connection.getsockname() == connection.getpeername():
                    raise ConnectionRefusedError("connected to itself")
                return connection
            except OSError as error:
                connection.close()
                refused = error
    raise refused


def listener(hosts: Sequence[str], rank: int) -> socket.socket:
    """Return a socket that listens, on any port, on the interface of this worker's own address.

    It listens on all interfaces where this machine does not have that address, behind NAT or in a
    container.

    Args:
      hosts: of all workers, in rank order.
      rank: this worker's.
    """
    with contextlib.suppress(OSError):
        address = look_up(hosts[rank])[0]
        # Some machines call themselves 127.0.1.1, which no other machine could reach.
        if not ipaddress.ip_address(address).is_loopback or len(set(hosts)) == 1:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return socket.create_server((address, 0), family=family)
    return listener_everywhere(0)


def listener_everywhere(port: int) -> socket.socket:
    """Return a socket that listens at a port on all interfaces, as TensorFlow's server does."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
