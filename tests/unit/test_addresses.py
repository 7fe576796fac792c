"""The port on which a worker's channel listens."""

import socket

import pytest

from tests.support import addresses
from tf_gossip_pga.coordination import addresses as addresses_lib


def bound(given, rank, port=None) -> tuple[str, int]:
    """Where the channel of a worker listens."""
    with addresses_lib.channel_listener(given, rank, port) as listener:
        return listener.getsockname()[:2]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_the_channel_listens_on_the_next_port():
    (given,) = addresses.free(1)
    assert bound([given], 0) == ("127.0.0.1", port_of(given) + 1)


def test_a_port_that_is_taken_or_that_another_worker_needs_is_left_alone():
    (given,) = addresses.free(1)
    following = port_of(given) + 1
    neighbor = f"127.0.0.1:{following}"
    _, found = bound([given, neighbor], 0)
    assert found not in (port_of(given), following)
    with socket.create_server(("127.0.0.1", following)):
        _, found = bound([given], 0)
    assert found not in (port_of(given), following)
    _, found = bound(["127.0.0.1:65535"], 0)
    assert 0 < found < 65535


def test_a_joining_worker_does_not_listen_where_the_lost_one_did():
    (given,) = addresses.free(1)
    assert bound([given], 0, 0)[1] != port_of(given) + 1


def test_the_user_can_choose_the_channels_port():
    given, chosen = addresses.free(2)
    assert bound([given], 0, port_of(chosen)) == ("127.0.0.1", port_of(chosen))
    with (
        socket.create_server(("127.0.0.1", port_of(chosen))),
        pytest.raises(RuntimeError) as caught,
    ):
        bound([given], 0, port_of(chosen))
    assert str(caught.value) == (
        f"Rank 0 cannot listen on port {port_of(chosen)}, which TF_GOSSIP_PGA_CHANNEL_PORT sets: "
        "Address already in use. Give each worker of a machine its own port."
    )


def test_an_address_that_this_machine_does_not_have():
    (given,) = addresses.free(1)
    port = port_of(given)
    host, found = bound([f"192.0.2.1:{port}", "192.0.2.2:1"], 0)
    assert (host, found) in (("::", port + 1), ("0.0.0.0", port + 1))


def test_which_machine_has_an_address():
    assert addresses_lib.is_here("localhost")
    assert not addresses_lib.is_here("192.0.2.1")
    with pytest.raises(OSError):
        addresses_lib.is_here("no-such-host.invalid")
