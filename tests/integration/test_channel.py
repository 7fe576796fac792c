"""Questions between workers, over real sockets: who answers, who does not."""

import concurrent.futures
import contextlib
import dataclasses
import os
import socket
import threading
import types

import pytest

from tests.support import addresses as addresses_lib
from tests.support import deadlines
from tf_gossip_pga.coordination import addresses, channel, greetings
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing

SECRET = b"sixteen characters"


@contextlib.contextmanager
def _channels(
    size: int = 2,
    main_open: bool = False,
    secret: bytes | None = SECRET,
    **deadlines_s: float,
):
    """Yield channels that know one another, and their statuses.

    Unless `deadlines_s` says otherwise, they wait for answers as long as a busy machine may need.
    """
    patient = dict.fromkeys(("ask_s", "reachable_s", "serve_s"), deadlines.scaled(60))
    timing = Timing(**{**patient, **deadlines_s})
    with contextlib.ExitStack() as stack:
        mains_at = addresses_lib.free(size)
        if main_open:
            for each in mains_at:
                stack.enter_context(socket.create_server(addresses.split(each)))
        statuses = [Status() for _ in range(size)]
        channels = [
            channel.Channel(mains_at, rank, each, timing, secret)
            for rank, each in enumerate(statuses)
        ]
        for each in channels:
            stack.callback(each.close)
            each.learn_all([other.introduction for other in channels])
        yield channels, statuses


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_worker_answers_where_it_is(secret):
    with _channels(secret=secret) as (channels, statuses):
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
        "can_regroup": False,
        "left": None,
        "unfinished": "the gossip of step 7",
        "view": 0,
    }


def test_another_kind_of_request_is_a_row_of_the_table():
    with _channels() as (channels, _):
        channels[1].handlers["double"] = lambda request: {"text": 2 * request["text"]}
        assert channels[0].ask_all("double", text="ab")[1] == {"text": "abab"}
        assert channels[0].ask_all("unknown")[1] is Absence.SUSPECTED


def test_what_is_reported_at_exit_arrives_and_nothing_holds_the_exit_up():
    reported, hangs, release = [], threading.Event(), threading.Event()

    def hang(request):
        hangs.set()
        return {"released": release.wait(deadlines.scaled(30))}

    with _channels() as (channels, _), concurrent.futures.ThreadPoolExecutor() as threads:
        channels[1].handlers["departure"] = lambda request: reported.append(request) or {}
        channels[0].tell_at_exit("departure", text="raised OSError")
        assert reported == [{"text": "raised OSError"}]
        channels[0].handlers["hang"] = hang
        asked = threads.submit(channels[1].ask_all, "hang")
        assert hangs.wait(deadlines.long())  # the thread of the first does nothing more
        channels[0]._timing = dataclasses.replace(channels[0]._timing, ask_s=0.1)
        channels[0].tell_at_exit("departure", text="raised KeyError")
        release.set()
        assert asked.result(deadlines.long())[0] == {"released": True}
        assert isinstance(channels[1].ask_all("status")[0], dict)


def test_a_handler_that_fails_gives_no_answer_and_says_why(capfd):
    with _channels() as (channels, _):
        channels[1].handlers["refuse"] = lambda request: {}[request["rank"]]
        assert channels[0].ask_all("refuse", rank=99)[1] is Absence.SUSPECTED
        assert isinstance(channels[0].ask_all("status")[1], dict)
    assert "KeyError: 99" in capfd.readouterr().err


def test_workers_with_other_keys_are_not_answered_and_not_believed(capfd):
    with (
        _channels() as (channels, _),
        _channels(2, secret=b"another secret of a job") as (others, _),
    ):
        channels[0].learn(1, others[1].endpoint)
        assert channels[0].ask_all("status")[1] is Absence.SUSPECTED
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        (
            (None, SECRET, None),
            "no secret on rank 0 and rank 2, a secret with fingerprint .{6}… on rank 1",
        ),
        (
            (SECRET, SECRET, b"another secret of a job"),
            "a secret with fingerprint .{6}… on rank 0 and rank 1, "
            "a secret with fingerprint .{6}… on rank 2",
        ),
    ],
)
def test_all_ranks_say_that_secrets_differ(secrets, text):
    given = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        channels = [
            channel.Channel(given, rank, Status(), secret=each) for rank, each in enumerate(secrets)
        ]
        for each in channels:
            stack.callback(each.close)
        for each in channels:
            with pytest.raises(ValueError, match=f"do not have the same secret: {text}"):
                each.learn_all([other.introduction for other in channels])


def test_keys_never_travel_where_there_is_a_secret():
    with _channels() as (channels, _):
        assert {each.introduction["key"] for each in channels} == {None}
        assert SECRET.decode() not in str(channels[0].introduction)


def test_a_worker_that_listens_but_does_not_answer_is_suspected():
    with _channels() as (channels, _), socket.create_server(("127.0.0.1", 0)) as silent:
        channels[0].learn(1, silent.getsockname()[1])
        assert channels[0].ask_all("status", timeout_s=0.2)[1] is Absence.SUSPECTED


@pytest.mark.parametrize(
    ("main_open", "absence"), [(False, Absence.DEAD), (True, Absence.SUSPECTED)]
)
def test_a_refused_port_is_an_ended_process_only_if_the_main_port_is_refused_too(
    main_open, absence
):
    ask_s = 2.0 if main_open else deadlines.scaled(60)  # the open main port answers nothing
    with _channels(main_open=main_open, ask_s=ask_s) as (channels, _), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        channels[0].learn(1, unused.getsockname()[1])
        assert channels[0].ask_all("status")[1] is absence


@pytest.mark.parametrize(
    ("begins", "absence"),
    [
        (greetings.JOINING + b" 00\n", Absence.DEAD),
        (greetings.ROLL_CALL, Absence.DEAD),  # restarted without `TF_GOSSIP_PGA_JOIN=1`
        (b"\0\0\x06\4\0\0\0\0\0", Absence.SUSPECTED),  # TensorFlow's server
        (b"SSH-2.0\r\n", Absence.SUSPECTED),
    ],
)
def test_a_restarted_process_at_the_main_port_shows_that_the_old_one_is_gone(begins, absence):
    with _channels() as (channels, _), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        channels[0].learn(1, unused.getsockname()[1])
        with _main_port_that_says(begins, channels[0]._addresses[1]):
            assert channels[0].ask_all("status")[1] is absence


@contextlib.contextmanager
def _main_port_that_says(begins: bytes, address: str):
    """Answer one caller of a main port."""

    def answer():
        with listener.accept()[0] as connection:
            connection.sendall(begins)
            connection.recv(1)  # until the caller has closed it

    with (
        socket.create_server(addresses.split(address)) as listener,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        listener.settimeout(deadlines.long())
        answering = threads.submit(answer)
        yield
        answering.result(deadlines.long())


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


def test_the_last_sign_of_life_is_an_answer_or_an_exchange_with_all(monkeypatch):
    now = 100.0
    monkeypatch.setattr(channel, "time", types.SimpleNamespace(monotonic=lambda: now))
    with _channels(3) as (channels, _):
        now = 103.0
        channels[0].learn(2, channels[1].endpoint)  # which proves to be another
        channels[0].ask_all("status")
        now = 107.0
        assert channels[0].last_heard_s() == {1: 4.0, 2: 7.0}
        channels[0].heard_all()
        now = 108.0
        assert channels[0].last_heard_s() == {1: 1.0, 2: 1.0}


def test_workers_that_live_and_do_not_answer_are_unreachable():
    with _channels(3) as (channels, _):
        channels[2].close()
        assert channels[0].unreachable() == []  # it has ended
        with _main_port_that_says(b"SSH-2.0\r\n", channels[0]._addresses[2]):
            assert channels[0].unreachable() == [2]
        channels[0].keep({0, 1})
        assert channels[0].unreachable() == []
        assert sorted(channels[0].endpoints) == [0, 1]


# ---- Probes -------------------------------------------------------------------------------------


def test_without_a_secret_nobody_is_probed_and_the_log_says_so(capfd):
    with (
        _channels(3, probe_every_s=0.01, secret=None) as (channels, _),
        socket.create_server(addresses.split(channels[0]._addresses[1])) as listener,
    ):
        for lost in ([1], [1], [1, 2], []):
            channels[0].probe(lost)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    said = capfd.readouterr().err
    for rank in (1, 2):
        assert said.count(f"Rank {rank} cannot rejoin after a restart: the workers were") == 1
    assert "without a common TF_GOSSIP_PGA_SECRET" in said


@pytest.mark.parametrize("greeting", [b"", b"\n", b"\xff\n", b"HTTP/1.1 400\r\n", b"x" * 100_000])
def test_a_stranger_at_a_lost_workers_address_learns_nothing(greeting):
    with _channels(2, probe_every_s=0.01) as (channels, _):
        with socket.create_server(addresses.split(channels[0]._addresses[1])) as listener:
            channels[0].probe([1])
            listener.settimeout(deadlines.long())
            with listener.accept()[0] as connection:
                connection.settimeout(deadlines.long())
                connection.sendall(greeting)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1 << 16) == b""
        assert isinstance(channels[0].ask_all("status")[1], dict)


def test_what_a_stranger_that_poses_as_a_joining_worker_receives_opens_nothing():
    with _channels(2, probe_every_s=0.01) as (channels, _):
        with socket.create_server(addresses.split(channels[0]._addresses[1])) as listener:
            channels[0].probe([1])
            listener.settimeout(deadlines.long())
            with listener.accept()[0] as connection, connection.makefile("rb") as lines:
                connection.sendall(greetings.JOINING + b" 00\n")
                probe = lines.readline()
        assert b"endpoints" in probe  # ports, and the proof that it is for this conversation
        with socket.create_connection(("127.0.0.1", channels[1].endpoint)) as replayed:
            replayed.sendall(probe)
            with replayed.makefile("rb") as lines:
                assert lines.readline().startswith(greetings.CHANNEL)
                assert lines.read() == b""


# ---- Strangers ----------------------------------------------------------------------------------


def test_an_unknown_peer_that_sends_nothing_holds_nobody_up():
    with _channels() as (channels, _):
        address = ("127.0.0.1", channels[1].endpoint)
        with socket.create_connection(address), socket.create_connection(address):
            assert isinstance(channels[0].ask_all("status")[1], dict)


def test_a_peer_that_sends_a_byte_now_and_then_is_dropped_in_time():
    with (
        _channels(serve_s=0.3) as (channels, _),
        socket.create_connection(("127.0.0.1", channels[1].endpoint)) as dribbling,
    ):

        def is_dropped():
            try:
                dribbling.send(b"a")
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        deadlines.Deadline(60).until(is_dropped)
