"""Questions between workers, over real sockets: who answers, who does not."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest

from tf_gossip_pga.coordination import addresses, channel
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing


@contextlib.contextmanager
def _channels(size: int = 2, main_open: bool = False, timing: Timing | None = None):
    """Yield channels that know one another, and their statuses."""
    with contextlib.ExitStack() as stack:
        mains = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(size)]
        mains_at = [f"127.0.0.1:{main.getsockname()[1]}" for main in mains]
        if not main_open:
            for main in mains:
                main.close()
        statuses = [Status() for _ in range(size)]
        channels = [
            channel.Channel(mains_at, rank, each, timing) for rank, each in enumerate(statuses)
        ]
        for each in channels:
            stack.callback(each.close)
            each.learn_all([other.endpoint for other in channels])
        yield channels, statuses


def _raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(channel._LINE_BYTES)
    return b""


def test_a_worker_answers_where_it_is():
    with _channels() as (channels, statuses):
        statuses[1].at("computing step 8", 7)
        statuses[1].wait("the gossip of step 7")
        answer = channels[0].ask_all("status")[1]
    assert answer.pop("where_s") >= 0 and answer.pop("waits_s") >= 0
    assert answer == {
        "where": "computing step 8",
        "step": 7,
        "exchanges": 1,
        "waits_at": "the gossip of step 7",
        "fits": 0,
        "in_fit": False,
    }


def test_another_kind_of_request_is_a_row_of_the_table():
    with _channels() as (channels, _):
        channels[1].handlers["double"] = lambda request: {"text": 2 * request["kind"]}
        assert channels[0].ask_all("double")[1] == {"text": "doubledouble"}
        assert channels[0].ask_all("unknown")[1] is Absence.SUSPECTED


def _status_with(token) -> bytes:
    return json.dumps({"kind": "status", "token": token}).encode() + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        _status_with("guessed"),
        _status_with(None),
        _status_with("\ud800"),
        b'{"kind": []}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b"[" * 4000 + b"\n",
        b"\xff\xfe\n",
        b"x" * 100_000,
    ],
)
def test_unknown_peers_are_dropped_without_harm(data, capfd):
    with _channels() as (channels, _):
        assert _raw(channels[1].endpoint["port"], data) == b""
        assert isinstance(channels[0].ask_all("status")[1], dict)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_peer_that_sends_nothing_holds_nobody_up():
    with _channels() as (channels, _):
        address = ("127.0.0.1", channels[1].endpoint["port"])
        with socket.create_connection(address), socket.create_connection(address):
            assert isinstance(channels[0].ask_all("status")[1], dict)


def test_a_worker_that_listens_but_does_not_answer_is_suspected():
    with _channels() as (channels, _), socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = {"port": silent.getsockname()[1], "token": "any"}
        channels[0].learn_all([channels[0].endpoint, endpoint])
        assert channels[0].ask_all("status", timeout_s=0.2)[1] is Absence.SUSPECTED


@pytest.mark.parametrize(
    ("main_open", "absence"), [(False, Absence.DEAD), (True, Absence.SUSPECTED)]
)
def test_a_refused_port_is_an_ended_process_only_if_the_main_port_is_refused_too(
    main_open, absence
):
    with _channels(main_open=main_open) as (channels, _), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        endpoint = {"port": unused.getsockname()[1], "token": "any"}
        channels[0].learn_all([channels[0].endpoint, endpoint])
        assert channels[0].ask_all("status")[1] is absence


def test_nothing_is_left_behind():
    with _channels() as (channels, _):
        channels[0].ask_all("status")
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(20):
            channels[0].ask_all("status")
        # What a connection leaves is closed on the other side a moment later.
        assert len(os.listdir("/proc/self/fd")) <= before[0] + 2
        assert threading.active_count() == before[1]
    assert not [each for each in threading.enumerate() if each.name == "gossip-channel"]


def test_the_last_sign_of_life_is_an_answer_or_an_exchange_with_all():
    with _channels(3) as (channels, _):
        time.sleep(0.2)
        channels[0].learn(2, {**channels[2].endpoint, "token": "another"})  # it does not answer
        channels[0].ask_all("status")
        before = channels[0].last_heard_s()
        assert before[1] < before[2] and before[2] >= 0.2
        channels[0].heard_all()
        assert channels[0].last_heard_s()[2] < before[2]


def test_workers_that_do_not_answer_are_unreachable():
    with _channels(3) as (channels, _):
        channels[2].close()
        assert channels[0].unreachable() == [2]
        channels[0].keep({0, 1})
        assert channels[0].unreachable() == []
        assert sorted(channels[0].endpoints) == [0, 1]


def test_only_a_probed_port_receives_the_endpoints():
    with _channels(2, timing=Timing(probe_every_s=0.01)) as (channels, _):
        host, port = addresses.split(channels[0]._addresses[1])
        with socket.create_server((host, port)) as listener:
            channels[0].probe([1])
            listener.settimeout(60)
            with listener.accept()[0] as connection, connection.makefile() as lines:
                brought = json.loads(lines.readline())["endpoints"]
    assert brought == {str(rank): each.endpoint for rank, each in enumerate(channels)}
