"""Questions between workers: who answers, who does not, and what it means."""

import contextlib
import json
import os
import socket
import threading

import pytest

from tf_gossip_pga.coordination import channel


@contextlib.contextmanager
def _channels(size: int = 2, main_open: bool = False):
    """So many channels that know one another, and their statuses."""
    with contextlib.ExitStack() as stack:
        mains = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(size)]
        addresses = [f"127.0.0.1:{main.getsockname()[1]}" for main in mains]
        if not main_open:
            for main in mains:
                main.close()
        statuses = [channel.Status() for _ in range(size)]
        channels = [channel.Channel(addresses, rank, each) for rank, each in enumerate(statuses)]
        for each in channels:
            stack.callback(each.close)
            each.join([other.contact for other in channels])
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
        assert channels[0].ask_all("unknown")[1] is channel.Absence.SILENT


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
def test_strangers_are_dropped_without_harm(data, capfd):
    with _channels() as (channels, _):
        assert _raw(channels[1].contact["port"], data) == b""
        assert isinstance(channels[0].ask_all("status")[1], dict)
    assert capfd.readouterr() == ("", "")


def test_a_stranger_that_says_nothing_holds_nobody_up():
    with _channels() as (channels, _):
        address = ("127.0.0.1", channels[1].contact["port"])
        with socket.create_connection(address), socket.create_connection(address):
            assert isinstance(channels[0].ask_all("status")[1], dict)


def test_a_worker_that_listens_but_does_not_speak_is_silent():
    with _channels() as (channels, _), socket.create_server(("127.0.0.1", 0)) as mute:
        contact = {"port": mute.getsockname()[1], "token": "any"}
        channels[0].join([channels[0].contact, contact])
        assert channels[0].ask_all("status", timeout_s=0.2)[1] is channel.Absence.SILENT


@pytest.mark.parametrize(
    ("main_open", "absence"), [(False, channel.Absence.GONE), (True, channel.Absence.SILENT)]
)
def test_a_refused_port_is_an_ended_process_only_if_the_main_port_is_refused_too(
    main_open, absence
):
    with _channels(main_open=main_open) as (channels, _), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        contact = {"port": unused.getsockname()[1], "token": "any"}
        channels[0].join([channels[0].contact, contact])
        assert channels[0].ask_all("status")[1] is absence


def test_nothing_is_left_behind():
    with _channels() as (channels, _):
        channels[0].findings()
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(20):
            channels[0].findings()
        # What a connection leaves is closed on the other side a moment later.
        assert len(os.listdir("/proc/self/fd")) <= before[0] + 2
        assert threading.active_count() == before[1]
    assert not [each for each in threading.enumerate() if each.name == "gossip-channel"]


def _fit(look):
    """Stands for `fit`, which calls back."""
    return look()


def test_a_function_that_has_been_left_by_an_exception_is_left():
    status = channel.Status()

    def enter_and_fail():
        status.enter_fit(_fit.__code__)
        assert status.tell().in_fit
        raise KeyError

    assert not status.tell().in_fit
    with contextlib.suppress(KeyError):
        _fit(enter_and_fail)
    assert not status.tell().in_fit
    assert status.tell().fits == 1


def _findings(*moves) -> channel.Findings:
    """What rank 0 finds in its fit, at its second exchange, when rank r has made `moves[r - 1]`."""
    with _channels(1 + len(moves)) as (channels, statuses):

        def look():
            for move, status in zip((_ahead, *moves), statuses, strict=True):
                move(status)
            return channels[0].findings()

        return _fit(look)


def _ahead(status):
    status.enter_fit(_fit.__code__)
    status.wait("the gossip of step 1")
    status.arrive()
    status.wait("the gossip of step 2")


def _computing(status):
    status.enter_fit(_fit.__code__)
    status.wait("the gossip of step 1")
    status.arrive()
    status.at("computing step 2", 1)


def _waiting(status):
    status.enter_fit(_fit.__code__)
    status.wait("the gossip of step 1")


def _not_begun(status):
    pass


def _left(status):
    status.enter_fit((lambda: None).__code__)
    status.at("computing step 2", 1)


def _in_another_fit(status):
    _left(status)
    status.enter_fit(_fit.__code__)


@pytest.mark.parametrize(
    ("moves", "ranks", "never", "text"),
    [
        ([_ahead, _ahead], (), False, ""),
        (
            [_computing, _ahead],
            (1,),
            False,
            "rank 1 has not reached it; for 0 s it has been computing step 2",
        ),
        # Rank 2 is late because rank 1 is.
        (
            [_computing, _waiting],
            (1,),
            False,
            "rank 1 has not reached it; for 0 s it has been computing step 2",
        ),
        (
            [_waiting, _ahead],
            (1,),
            False,
            "rank 1 has not reached it; it has waited 0 s at the gossip of step 1",
        ),
        (
            [_computing, _not_begun],
            (1, 2),
            False,
            "rank 1 has not reached it; for 0 s it has been computing step 2; "
            "rank 2 has not called fit with GossipPGA yet",
        ),
        ([_left, _ahead], (1,), True, "rank 1 has left fit; 0 s ago it was computing step 2"),
        (
            [_in_another_fit, _ahead],
            (1,),
            True,
            "rank 1 has left fit; 0 s ago it was computing step 2",
        ),
    ],
)
def test_who_keeps_a_rank_waiting(moves, ranks, never, text):
    assert _findings(*moves) == channel.Findings(ranks, never, text)


def test_who_only_takes_long_is_not_blamed_beside_one_that_never_comes():
    findings = _findings(_computing, _left)
    assert (findings.ranks, findings.never) == ((2,), True)


def test_who_ends_because_of_another_is_not_blamed():
    with _channels(3) as (channels, statuses):

        def look(bereaved=()):
            _ahead(statuses[0])
            return channels[0].findings(bereaved)

        with socket.create_server(("127.0.0.1", 0)) as silent:  # listens, but does not speak
            contacts = [each.contact for each in channels]
            contacts[1] = {**contacts[1], "port": silent.getsockname()[1]}
            contacts[2] = {**contacts[2], "port": channels[0]._peers[2].main_port}  # has ended
            channels[0].join(contacts)
            assert _fit(look).ranks == (1, 2)
            found = _fit(lambda: look({2}))
            assert (found.ranks, found.never) == ((1,), True)
            assert _fit(lambda: look({1, 2})).ranks == (1, 2)  # somebody is
            found = _fit(lambda: look({1}))
            assert found.ranks == (2,)


def test_between_two_fits_a_late_rank_is_slow_and_not_lost():
    def in_second_fit(status):
        _ahead(status)
        _ahead(status)

    with _channels() as (channels, statuses):

        def look():
            in_second_fit(statuses[0])
            _left(statuses[1])
            return channels[0].findings()

        findings = _fit(look)
    assert findings == channel.Findings(
        (1,), False, "rank 1 has not called fit with GossipPGA again"
    )
