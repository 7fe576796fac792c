"""The roll call between threads over loopback: who connects, and what each worker reports."""

import concurrent.futures
import contextlib
import dataclasses
import re
import socket
import threading
import time

import pytest

from tests.support import addresses, deadlines, patient
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import (
    greetings,
    joining,
    roll_call,
    roll_call_sockets,
    roster,
    secret,
)
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost

# Nothing here takes seconds unless it must, and nothing depends on who is late.
QUICK = Timing(
    start_s=deadlines.scaled(60),
    start_report_s=0.3,
    start_call_s=0.05,
    start_settle_s=0.4,
    start_tell_s=2.0,
    closing_s=deadlines.scaled(60),
    poll_s=0.02,
    ask_s=deadlines.scaled(30),
    serve_s=deadlines.scaled(30),
)
# For workers that cannot start, of which none is absent.
TELLS = dataclasses.replace(QUICK, start_tell_s=deadlines.scaled(60))
FACTS = {"version of Keras": "3"}
SECRET = b"sixteen characters"


def start(
    given, rank, facts=FACTS, timing=QUICK, after_s=0.0, hears=0
) -> concurrent.futures.Future:
    """Start a roll call in a thread; the result is what `run` returned or raised.

    For `hears`, see `PatientRollCall`.
    """
    future = concurrent.futures.Future()
    call = patient.PatientRollCall(given, rank, facts, timing)
    call.hears = hears

    def run():
        time.sleep(after_s)
        try:
            future.set_result(call.run())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def is_under_way(address: str) -> bool:
    return roll_call_sockets.greeting_at(address, 1) == greetings.ROLL_CALL


def error(future, kind) -> str:
    found = future.exception(deadlines.long())
    assert type(found) is kind, repr(found)
    return str(found)


def until_error(*parts, begin):
    """Repeat a roll call that fails until its error has all parts: other threads need time."""
    texts = []

    def found():
        texts.append(error(begin(), WorkerLost))
        return all(part in texts[-1] for part in parts)

    deadlines.Deadline(60).until(found, lambda: texts[-1])


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_meet_whatever_the_order_in_which_they_come(size):
    given = addresses.free(size)
    futures = [start(given, rank, after_s=0.1 * (rank % 3)) for rank in reversed(range(size))]
    for future in futures:
        met = future.result(deadlines.long())
        assert [report.rank for report in met] == list(range(size))
        assert {report.addresses for report in met} == {tuple(given)}
    # The ports are free at once, for TensorFlow's servers.
    for address in given:
        addresses_lib.listener_everywhere(int(address.split(":")[1])).close()


def test_who_is_missing_is_named_again_and_again_until_the_deadline(await_said):
    given = addresses.free(3)
    futures = [start(given, 0)]
    await_said(r"(?s)(Rank 0 of 3 has waited \d+ s for the other workers to start: .*){3}")
    futures += [start(given, rank) for rank in (1, 2)]
    assert all(len(future.result(deadlines.long())) == 3 for future in futures)
    until_error(
        *(f"rank {n}: nothing listens at {given[n]} (was it started?)" for n in (1, 2)),
        "Rank 0 of 3 has waited ",
        "The deadline has passed",
        begin=lambda: start(given, 0, timing=Timing(start_s=1)),
    )


def test_a_name_that_does_not_resolve_is_said_and_may_resolve_later(await_said, monkeypatch):
    given = addresses.free(2)
    port = given[1].split(":")[1]
    named = [given[0], f"no-such-host.invalid:{port}"]
    look_up = addresses_lib.look_up
    futures = [start(named, rank) for rank in range(2)]
    await_said(r"Rank 0 .*rank 1: the name 'no-such-host.invalid' in .* does not resolve \(")
    monkeypatch.setattr(
        addresses_lib,
        "look_up",
        lambda host: look_up("127.0.0.1" if host.startswith("no-such") else host),
    )
    assert all(len(future.result(deadlines.long())) == 2 for future in futures)


def test_a_name_that_is_none_of_a_host(said):
    given = [*addresses.free(1), "x" * 70 + ".com:5"]
    until_error("does not resolve", begin=lambda: start(given, 0, timing=Timing(start_s=1)))


@pytest.mark.parametrize("changed", ["an address", "one more", "the order"])
def test_lists_that_differ_are_an_error_that_quotes_both_at_all_ranks(changed):
    given = addresses.free(4)
    lists = [given[:3]] * 2
    lists += {
        "an address": [[given[0], given[3], given[2]]],
        "one more": [given],
        "the order": [[given[1], given[0], given[2]]],
    }[changed]
    for future in [start(each, rank, hears=2) for rank, each in enumerate(lists)]:
        text = error(future, ValueError)
        assert "The workers have different lists of addresses" in text
        assert re.search(r"\n  rank 0 \(.*\) and rank 1 \(.*\): " + ", ".join(given[:3]), text)
        assert re.search(r"\n  rank 2 \(.*\): " + ", ".join(lists[2]), text)


def test_facts_that_differ_are_an_error_at_all_ranks():
    given = addresses.free(3)
    facts = [{"version of Keras": str(rank // 2)} for rank in range(3)]
    for future in [start(given, rank, each, hears=2) for rank, each in enumerate(facts)]:
        text = error(future, ValueError)
        assert re.search(r"version of Keras.*: 0 on rank 0 .* and rank 1 .*; 1 on rank 2 ", text)


@pytest.mark.parametrize("odd", [0, 1])
def test_a_port_that_is_taken_is_reported_to_all(odd):
    given = addresses.free(3)
    with _stranger(given[odd]):
        futures = [start(given, rank, timing=TELLS) for rank in range(3)]
        text = error(futures[odd], RuntimeError)
        assert text == (
            f"Rank {odd} cannot listen on {given[odd]}: address in use. Is rank {odd} already "
            "running?"
        )
        for rank in {0, 1, 2} - {odd}:
            text = error(futures[rank], WorkerLost)
            assert text.startswith(f"Rank {rank} of 3 cannot start: rank {odd} cannot listen on ")


STRANGERS = {
    b"": "something listens at {} but does not answer as rank 0 of this job: it belongs to",
    b"SSH-2.0\r\n": "something listens at {} but does not answer as rank 1 of this job",
    greetings.ROLL_CALL + b"?\n": "something listens at {} but does not answer as rank 2 of this",
    b"\0\0\x06\4\0\0\0\0\0\0\3": "a gRPC server listens at {} but does not answer as rank 3",
}


def test_strangers_at_the_ports_of_others_are_named():
    given = addresses.free(6)
    with contextlib.ExitStack() as stack:
        for address, begins in zip(given, STRANGERS, strict=False):
            stack.enter_context(_stranger(address, begins))
        timing = Timing(start_s=1, ask_s=0.3, start_call_s=0.1)
        until_error(
            *map(str.format, STRANGERS.values(), given),
            f"rank 5: nothing listens at {given[5]}",
            begin=lambda: start(given, 4, timing=timing),
        )


@contextlib.contextmanager
def _stranger(address: str, begins: bytes = b""):
    """Listen there, and say one thing to whoever connects."""
    over = threading.Event()
    with addresses_lib.listener_everywhere(int(address.split(":")[1])) as listener:
        listener.settimeout(0.05)

        def serve():
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    held.append(connection)
                    connection.sendall(begins)

        held: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for connection in held:
                connection.close()


def test_a_rank_that_is_started_twice_does_no_harm(said, await_said):
    given = addresses.free(3)
    futures = [start(given, rank) for rank in range(2)]
    with contextlib.closing(_Puppet(given, 2, missing=(0,))):
        # Now rank 0 and rank 1 have met.
        met = "rank 2 has not reached rank 0, but this worker has"
        await_said(*(f"Rank {rank} of .* start: {met}" for rank in range(2)))
        text = error(start(given, 1, timing=TELLS, hears=3), RuntimeError)
    assert f"Rank 1 cannot listen on {given[1]}: address in use. Is rank 1 already running?" in text
    assert re.search(r"Yes: process \d+ on \S+ answers there as rank 1\.", text)
    await_said(r"A second process of rank 1 \(process \d+ on .*\) has ended, which does not")
    futures.append(start(given, 2))
    assert all(len(future.result(deadlines.long())) == 3 for future in futures)
    assert said.text.count("A second process") == 1


def test_an_index_on_the_wrong_machine_is_named(monkeypatch):
    given = addresses.free(2)
    odd = addresses.free(1)[0]
    listener_everywhere = addresses_lib.listener_everywhere
    first = start(given, 1)
    deadlines.Deadline(60).until(lambda: is_under_way(given[1]))
    # On another machine the same port would be free.
    monkeypatch.setattr(
        addresses_lib,
        "listener_everywhere",
        lambda port: listener_everywhere(int(odd.split(":")[1])),
    )
    text = error(start(given, 1), ValueError)
    assert "Rank 1 was started twice, or on the wrong machine: process" in text
    monkeypatch.undo()
    assert len(start(given, 0).result(deadlines.long())) == 2
    assert len(first.result(deadlines.long())) == 2


def test_two_addresses_that_lead_to_one_worker(said):
    port = addresses.free(1)[0].split(":")[1]
    given = [f"127.0.0.1:{port}", f"localhost:{port}"]
    until_error(
        f"rank 1: localhost:{port} (",
        ") leads to this worker itself",
        begin=lambda: start(given, 0, timing=Timing(start_s=1, start_call_s=0.05)),
    )


def test_a_worker_that_answers_at_the_address_of_another(monkeypatch):
    given = addresses.free(3)
    swapped = {1: 2, 2: 1}
    listener_everywhere = addresses_lib.listener_everywhere
    ports = [int(address.split(":")[1]) for address in given]
    monkeypatch.setattr(
        addresses_lib,
        "listener_everywhere",
        lambda port: listener_everywhere(ports[swapped.get(ports.index(port), 0)]),
    )
    timing = Timing(start_s=1, start_call_s=0.05, start_settle_s=600)
    others = Timing(start_s=deadlines.scaled(3), start_call_s=0.05, start_settle_s=600)

    def begin():
        for rank in (1, 2):
            start(given, rank, timing=others)
        return start(given, 0, timing=timing)

    until_error(
        f" answers at {given[1]} as rank 2 instead",
        f" answers at {given[2]} as rank 1 instead",
        begin=begin,
    )


def test_a_death_before_all_have_met_is_named_and_a_restart_is_met(await_said):
    given = addresses.free(3)
    first = start(given, 0)
    with contextlib.closing(_Puppet(given, 1)) as puppet:
        deadlines.Deadline(60).until(lambda: puppet.called)
        await_said("start: rank 2: nothing")  # rank 1 has been met
    await_said(r"rank 1: it answered earlier \(process 7 on puppet\), then ended or was cut off: ")
    rest = [start(given, rank) for rank in (1, 2)]
    assert all(len(each.result(deadlines.long())) == 3 for each in [first, *rest])


def test_one_that_hears_no_last_word_follows_to_where_tensorflow_listens():
    given = addresses.free(2)
    with contextlib.closing(_Puppet(given, 1, missing=(0,))) as puppet:
        first = start(given, 0)
        deadlines.Deadline(60).until(lambda: puppet.called)
        time.sleep(0.3)
        assert not first.done()
    with _stranger(given[1], b"\0\0\x06\4\0\0\0\0\0\0\3"):
        assert [each.rank for each in first.result(deadlines.long())] == [0, 1]


class _Puppet:
    """A worker that answers, and never learns."""

    def __init__(self, given, rank, **more):
        report = roster.Report(rank, "puppet", "puppet", 7, tuple(given), FACTS, **more)
        self.called = 0
        self._answer = greetings.ROLL_CALL + report.to_line()
        self._listener = addresses_lib.listener_everywhere(int(given[rank].split(":")[1]))
        self._listener.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.sendall(self._answer)
                    connection.recv(1 << 16)
                    connection.sendall(b"\n")
                    self.called += 1

    def close(self):
        self._over.set()
        self._thread.join()
        self._listener.close()


def test_a_worker_that_is_called_but_cannot_call_back_says_so(await_said):
    given = addresses.free(2)
    puppet = roster.Report(1, "puppet", "puppet", 7, tuple(given), FACTS)
    future = start(given, 0)
    host, port = given[0].split(":")

    def call():
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), timeout=5)
            with connection, connection.makefile("rb") as lines:
                assert lines.readline() == greetings.ROLL_CALL
                assert roster.from_line(lines.readline()).rank == 0
                connection.sendall(puppet.to_line())
                return connection.recv(1)
        return b""

    deadlines.Deadline(60).until(call)
    await_said(rf"\(but it has called this worker: is {given[1]} correct\?\)")
    assert len(start(given, 1).result(deadlines.long())) == 2
    assert len(future.result(deadlines.long())) == 2


def test_strangers_who_call_are_dropped():
    given = addresses.free(2)
    first = start(given, 0)
    deadlines.Deadline(60).until(lambda: is_under_way(given[0]))
    host, port = given[0].split(":")
    held = []
    for line in [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"{}\n", b"x" * (1 << 19)] * 20:
        with contextlib.suppress(OSError):  # too many at once
            held.append(socket.create_connection((host, int(port)), timeout=5))
            held[-1].settimeout(0.2)
            held[-1].sendall(line)
    second = start(given, 1)
    try:
        assert len(first.result(deadlines.long())) == len(second.result(deadlines.long())) == 2
    finally:
        for connection in held:
            connection.close()


def test_where_tensorflow_listens_everywhere_it_returns_to_look_for_a_probe():
    given = addresses.free(3)
    with _stranger(given[0], b"\0\0\x06\4\0\0\0\0\0"), _stranger(given[2], b"\0\0\x06\4\0\0\0\0\0"):
        timing = dataclasses.replace(QUICK, serve_s=0.5)
        assert start(given, 1, timing=timing).result(deadlines.long()) is None


def test_a_server_that_begins_while_the_roll_call_looks_completes_it(monkeypatch):
    given = addresses.free(2)
    call = roll_call.RollCall(given, 0, FACTS, Timing(serve_s=0))
    calls = call._calls
    calls.seats[1].report = roster.Report(1, "n", "host", 7, tuple(given), FACTS, missing=(0,))
    monkeypatch.setattr(calls, "under_way", contextlib.nullcontext)
    # Another thread finds the server just after `_is_complete` has looked.
    monkeypatch.setattr(call, "_trouble", lambda now: calls._miss(1, "a server", is_server=True))
    assert [report.rank for report in call.run()] == [0, 1]


def test_the_last_word_of_one_that_has_left_counts(monkeypatch):
    given = addresses.free(2)
    call = roll_call.RollCall(given, 0, FACTS, Timing(start_s=1))
    calls = call._calls
    calls.seats[1].report = roster.Report(1, "n", "host", 7, tuple(given), FACTS, complete=True)
    calls._miss(1, "nothing listens")
    monkeypatch.setattr(calls, "under_way", contextlib.nullcontext)
    assert [report.rank for report in call.run()] == [0, 1]


def test_a_worker_that_is_to_join_takes_part_in_a_roll_call_instead():
    given = addresses.free(3)
    first = start(given, 0)
    deadlines.Deadline(60).until(lambda: is_under_way(given[0]))
    assert joining.await_probe(given, 1, SECRET, QUICK) is None
    assert not first.done()
    rest = [start(given, rank) for rank in (1, 2)]
    assert all(len(each.result(deadlines.long())) == 3 for each in [first, *rest])


def test_a_roll_call_beside_a_running_job_keeps_nobody_from_joining_it():
    given = addresses.free(3)
    timing = Timing(
        job_check_every_s=0.1,
        job_checks=10**6,
        probe_every_s=0.05,
        serve_s=deadlines.scaled(30),
    )
    key = secret.key_of(SECRET, given, 1)

    def probe():
        with (
            contextlib.suppress(OSError),
            socket.create_connection(addresses_lib.split(given[1]), 5) as connection,
            connection.makefile("rb") as lines,
        ):
            nonce = lines.readline().split()[-1].decode()
            request = {"kind": "probe", "endpoints": {"2": 7}}
            connection.sendall(secret.seal_request(key, nonce, request)[0])
            return lines.readline()

    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        _stranger(given[0], greetings.ROLL_CALL),
        _stranger(given[2], b"\0\0\x06\4\0\0\0\0\0\0\3"),
    ):
        found = threads.submit(joining.await_probe, given, 1, SECRET, timing)
        time.sleep(0.5)
        assert not found.done()
        deadlines.Deadline(60).until(lambda: found.done() or probe())
        assert found.result(deadlines.long()) == {2: 7}


def test_an_address_that_no_host_can_have_is_no_running_job():
    assert joining.endpoints_if_probed(["127.0.0.1:1", "a..b:2"], 0, SECRET) is None


def test_workers_that_are_all_to_join_begin():
    given = addresses.free(3)
    timing = Timing(job_check_every_s=0.1, job_checks=10**6, probe_every_s=0.05)

    def join(rank):
        assert joining.await_probe(given, rank, SECRET, timing) is None
        return roll_call.RollCall(given, rank, FACTS, QUICK).run()

    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = [threads.submit(join, rank) for rank in range(3)]
        assert all(len(each.result(deadlines.long())) == 3 for each in found)
