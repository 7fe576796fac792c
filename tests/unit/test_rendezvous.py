"""The rendezvous between threads over loopback: who gets the addresses, and what each reports."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.support import addresses, deadlines
from tf_gossip_pga.cluster.place import Place, Rendezvous
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, register, rendezvous, roll_call_sockets
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost

QUICK = Timing(
    start_s=deadlines.scaled(60),
    start_report_s=0.3,
    start_call_s=0.05,
    start_settle_s=0.4,
    start_tell_s=deadlines.scaled(10),
    poll_s=0.02,
    ask_s=deadlines.scaled(1),
    serve_s=deadlines.scaled(1),
)


def ports(count: int) -> list[int]:
    return [int(each.rpartition(":")[2]) for each in addresses.free(count)]


def places(size, given=None, host="localhost", job="job") -> list[Place]:
    given = given or ports(size)
    return [
        Place(rank, size, "a test", (), Rendezvous(job, (host,), given[0], given[rank]))
        for rank in range(size)
    ]


def start(place, timing=QUICK, after_s=0.0) -> concurrent.futures.Future:
    """Start a worker in a thread; the result is what `cluster_of` returned or raised."""
    future = concurrent.futures.Future()

    def run():
        time.sleep(after_s)
        try:
            future.set_result(rendezvous.cluster_of(place, timing))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def error(future, kind) -> str:
    found = future.exception(deadlines.long())
    assert type(found) is kind, repr(found)
    return str(found)


# ---- All get the addresses ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 64])
def test_all_get_the_same_addresses_whatever_the_order_in_which_they_come(size):
    given = ports(size)
    futures = [
        start(place, Timing(), after_s=0.1 * (place.rank % 3))
        for place in reversed(places(size, given))
    ]
    deadlines.Deadline(60).until(lambda: all(future.done() for future in futures))
    expected = tuple(f"localhost:{port}" for port in given)
    for rank, future in enumerate(reversed(futures)):
        cluster = future.result(0)
        assert (cluster.rank, cluster.size, cluster.addresses) == (rank, size, expected)
    # The port is free at once, for the roll call.
    addresses_lib.listener_everywhere(given[0]).close()


def test_known_addresses_need_no_rendezvous():
    place = Place(1, 2, "TF_CONFIG", ("a:1", "b:1"))
    cluster = rendezvous.cluster_of(place)
    assert (cluster.rank, cluster.size, cluster.addresses) == (1, 2, ("a:1", "b:1"))
    assert rendezvous.cluster_of(Place()).size == 1


def test_of_several_names_one_that_answers_is_used():
    given = ports(2)
    at = [Rendezvous("job", ("no-such-host.invalid", "127.0.0.1"), given[0], p) for p in given]
    futures = [start(Place(rank, 2, "", (), at[rank])) for rank in range(2)]
    # All run on rank 0's machine, so its first name is used: others may not know the second.
    expected = tuple(f"no-such-host.invalid:{port}" for port in given)
    assert {future.result(deadlines.long()).addresses for future in futures} == {expected}


def test_a_name_that_takes_long_to_resolve_leaves_time_for_the_call(monkeypatch):
    def slow(host):
        time.sleep(1.5 * QUICK.ask_s)
        return ("127.0.0.1",)

    monkeypatch.setattr(addresses_lib, "look_up", slow)
    futures = [start(place) for place in places(2)]
    assert {future.result(deadlines.long()).size for future in futures} == {2}


def test_another_jobs_rank_0_at_the_first_name_is_passed_over():
    given = ports(3)
    other = start(places(2, given[:2], job="another")[0])
    at = Rendezvous("job", ("127.0.0.1", "no-such-host.invalid"), given[0], 9)
    caller = rendezvous._Caller(Place(1, 2, "", (), at), at, QUICK)
    over = threading.Event()
    thread = threading.Thread(target=caller.call_until, args=(over,), daemon=True)
    thread.start()
    deadlines.Deadline(60).until(lambda: "no-such-host.invalid" in caller.missing)
    assert not caller.last.done() and not other.done()
    over.set()


def test_a_worker_that_is_restarted_before_all_have_come_replaces_the_first(await_said):
    lead, first, last = places(3)
    futures = [start(lead)]
    ended = register.Call("job", 1, 3, "ended", "process 1 on h", "127.0.0.1", 9, "localhost")
    assert call_by_hand(lead.rendezvous.port, ended)["missing"] == [2]
    futures.append(start(first))
    await_said("Rank 1 of 3 .* still waits for rank 2")
    futures.append(start(last))
    found = {future.result(deadlines.long()).addresses for future in futures}
    assert len(found) == 1
    assert found.pop()[1] == f"localhost:{first.rendezvous.own_port}"


def call_by_hand(port, call):
    """Call rank 0 until it answers, without confirming the answer."""

    def answer():
        with (
            contextlib.suppress(OSError, ValueError),
            addresses_lib.connect(("127.0.0.1",), port, 2.0) as connection,
        ):
            ends = time.monotonic() + deadlines.scaled(5)
            greeting = roll_call_sockets.read_greeting(connection, ends, greetings.RENDEZVOUS)
            assert greeting == greetings.RENDEZVOUS
            connection.sendall(rendezvous._line(call))
            return json.loads(roll_call_sockets.read_line(connection, ends))

    return deadlines.Deadline(60).until(answer)


# ---- Waiting ------------------------------------------------------------------------------------


def test_every_worker_says_again_and_again_who_is_missing(await_said):
    all_places = places(4)
    futures = [start(all_places[rank]) for rank in (0, 2)]
    await_said(
        *(rf"(?s)(Rank {rank} of 4 has waited \d+ s for the other .*){{3}}" for rank in (0, 2)),
        "Rank 2 of 4 has waited .*: rank 0 has answered, but still waits for rank 1, rank 3",
    )
    futures += [start(all_places[rank]) for rank in (1, 3)]
    assert all(future.result(deadlines.long()).size == 4 for future in futures)


def test_at_the_deadline_every_worker_says_who_is_missing():
    all_places, texts = places(4), []
    where = f"localhost:{all_places[0].rendezvous.port}"
    # Rank 2 may have called rank 0 once more after it ended.
    patterns = (
        rf"^Rank 0 of 4 .* for the other workers to start: no call to {where} from rank 1, rank 3",
        "^Rank 2 of 4 has waited .*(still waits for rank 1, rank 3|rank 0: .*)",
    )

    def found():
        futures = [start(all_places[rank], Timing(start_s=1)) for rank in (0, 2)]
        texts[:] = [error(future, WorkerLost) for future in futures]
        return all(
            re.search(rf"{pattern}\. The deadline has passed", text)
            for pattern, text in zip(patterns, texts, strict=True)
        )

    deadlines.Deadline(60).until(found, lambda: "\n".join(texts))


def test_why_rank_0_does_not_answer_is_said(await_said):
    place = places(2)[1]
    at = place.rendezvous
    start(place)
    await_said(r"rank 0: nothing listens at localhost:\d+.* \(was it started\?\)")
    with addresses_lib.listener_everywhere(at.port):
        await_said("rank 0: something listens at .* but does not answer as rank 0 of this job")
    named = Place(1, 2, "", (), Rendezvous("job", ("no-such-host.invalid",), 9, 9))
    start(named)
    await_said(r"rank 0: the name 'no-such-host.invalid' in .*:9 does not resolve \(")


def test_a_worker_that_calls_after_all_have_met_says_so(await_said):
    given = addresses.free(2)
    port = int(given[0].rpartition(":")[2])
    calls = roll_call_sockets.Calls(given, 0, "", {}, QUICK)
    with calls.under_way():
        start(places(2, [port, 9])[1])
        await_said(r"already met all workers \(was rank 1 started twice\?\)")


def test_rank_0_on_another_machine_than_expected_says_so(await_said):
    given = ports(2)
    start(places(2, given, host="192.0.2.1")[0])  # an address for documentation
    await_said(r"this machine is not 192\.0\.2\.1: is rank 0 on the right machine\?")


def test_a_port_that_is_taken_is_an_error():
    place = places(2)[0]
    with addresses_lib.listener_everywhere(place.rendezvous.port):
        text = error(start(place), RuntimeError)
    assert re.search(r"^Rank 0 cannot listen on localhost:\d+: Address already in use\. Is ", text)
    assert "TF_GOSSIP_PGA_PORT sets another one" in text


# ---- Mistakes -----------------------------------------------------------------------------------


def test_two_processes_with_one_rank_are_an_error_on_every_rank():
    given = ports(4)
    all_places = places(4, given)
    second = Place(1, 4, "", (), Rendezvous("job", ("localhost",), given[0], given[3]))
    lead, *futures = [start(place) for place in (*all_places[:3], second)]
    texts = [error(future, ValueError) for future in futures]
    # Rank 0 waits for the last rank, to tell it too.
    texts += [error(future, ValueError) for future in (start(all_places[3]), lead)]
    for text in texts:
        assert re.search(r"^Rank 1 was started twice: process \d+ on .* and process", text)
        assert text.endswith("Give each process a rank of its own.")


def test_different_sizes_are_an_error_on_every_rank():
    given = ports(3)
    odd = Place(2, 5, "", (), Rendezvous("job", ("localhost",), given[0], given[2]))
    futures = [start(place) for place in (*places(3, given)[:2], odd)]
    for future in futures:
        text = error(future, ValueError)
        assert "differ in the number of workers: 3 on rank 0, but 5 on rank 2 (process" in text


def test_two_processes_with_one_address_are_an_error_on_every_rank():
    first, second, _ = ports(3)
    for future in [start(place) for place in places(3, [first, second, second])]:
        text = error(future, ValueError)
        assert f"ank 1 and rank 2 have the same address localhost:{second}. Set LOCAL_RANK" in text


def test_a_worker_of_another_job_is_refused_and_does_no_harm():
    given = ports(2)
    lead = start(places(2, given)[0])
    stranger = places(2, given, job="another")[1]
    text = error(start(stranger), ValueError)
    assert text == "Rank 0 belongs to another job (job)."
    assert not lead.done()
    start(places(2, given)[1])
    assert lead.result(deadlines.long()).size == 2


NONSENSE = [
    b"\n",
    b"[]\n",
    b"[" * 100_000 + b"\n",
    b"\xff\n",
    b"{}\n",
    b'{"rank": 1}\n',
    b"GET / HTTP/1.1\r\n\r\n",
    b"x" * 500_000,
]


def test_strangers_do_no_harm():
    all_places = places(2)
    lead = start(all_places[0])

    def listens():
        with contextlib.suppress(OSError):
            return addresses_lib.connect(("127.0.0.1",), all_places[0].rendezvous.port, 2.0)

    deadlines.Deadline(60).until(listens).close()
    for line in NONSENSE:
        with listens() as connection, contextlib.suppress(OSError):
            connection.sendall(line)
    assert not lead.done()
    assert start(all_places[1]).result(deadlines.long()).size == 2
    assert lead.result(deadlines.long()).size == 2


@pytest.mark.parametrize(
    "line", [*NONSENSE, b'{"missing": [], "addresses": ["a:1"], "failure": ""}\n']
)
def test_a_program_that_imitates_rank_0_is_not_believed(line, await_said):
    place = places(2)[1]
    with addresses_lib.listener_everywhere(place.rendezvous.port) as listener:
        future = start(place)
        for _ in range(3):
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(greetings.RENDEZVOUS + line)
        await_said("does not answer as rank 0 of this job")
        assert not future.done()


# ---- The register, without sockets --------------------------------------------------------------


def call(rank, nonce=None, size=3, host="10.0.0.9", port=7, called="h0", job="job"):
    return register.Call(job, rank, size, nonce or str(rank), f"process {rank}", host, port, called)


def test_addresses_of_several_machines():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 4, QUICK)
    assert record.answer(call(1, size=4, host="127.0.0.1"), True, 0.0).missing == [2, 3]
    assert record.answer(call(3, size=4, host="fe80::1"), False, 0.0).missing == [2]
    last = record.answer(call(2, size=4, host="10.0.0.2"), False, 0.0)
    # A process on rank 0's machine is called by the name that the others use for it.
    assert last.addresses == ["h0:5", "h0:7", "10.0.0.2:7", "[fe80::1]:7"]
    assert record.answer(call(1, size=4), True, 0.0) == last


def test_rank_0_gets_the_name_by_which_other_machines_have_reached_it():
    record = register.Register(Rendezvous("job", ("bridge", "lan"), 5, 5), 3, QUICK)
    record.answer(call(1, called="bridge"), True, 0.0)
    last = record.answer(call(2, called="lan"), False, 0.0)
    assert last.addresses == ["lan:5", "lan:7", "10.0.0.9:7"]


def test_it_is_over_when_all_have_confirmed():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    for rank in (1, 2):
        record.answer(call(rank, port=rank), False, 0.0)
        assert not record.is_over
    record.confirm(call(1))
    assert record.last and not record.is_over
    record.confirm(call(2))
    assert record.is_over


def test_a_second_process_after_the_end_gets_an_error_that_the_others_do_not_get():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    for rank in (1, 2):
        record.answer(call(rank, port=rank), False, 0.0)
    assert (
        "rank 1 was started twice: process 1 and" in record.answer(call(1, "x"), False, 0.0).failure
    )
    assert record.answer(call(1), False, 0.0).addresses


def test_calls_of_many_workers_stay_valid_longer():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 1000, Timing())
    every_s = register.call_every_s(1000, Timing())
    assert every_s > Timing().announced_s
    for rank in range(1, 999):
        record.answer(call(rank, size=1000, port=rank), False, every_s * rank / 999)
    # The first have not called again yet.
    assert len(record.answer(call(999, size=1000, port=999), False, every_s).addresses) == 1000


def test_a_failure_is_kept_for_those_that_have_not_called_yet():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    assert record.answer(call(1, size=4), False, 0.0).failure
    assert not record.is_over
    for rank in (1, 2):
        assert record.answer(call(rank), False, 0.0).failure
        record.confirm(call(rank))
    assert record.is_over


def test_a_rank_beyond_the_last_is_an_error():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    text = record.answer(call(3), False, 0.0).failure
    assert text == "process 3 has the rank 3, but there are 3 workers"


def test_a_second_rank_0_is_an_error():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    text = record.answer(call(0), False, 0.0).failure
    assert text == (
        "rank 0 was started twice: process 0 has this rank. Give each process a rank of its own"
    )
    assert record.last and record.last.failure == text


def test_a_call_counts_for_a_few_seconds():
    record = register.Register(Rendezvous("job", ("h0",), 5, 5), 3, QUICK)
    assert record.answer(call(1, "ended"), False, 0.0).missing == [2]
    assert record.answer(call(2, port=8), False, 60.0).missing == [1]
    # The new process of rank 1 replaces the one that has ended.
    assert record.answer(call(1, "new", port=9), False, 61.0).addresses[1] == "10.0.0.9:9"


# ---- Signals ------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from tf_gossip_pga.coordination import addresses, rendezvous
from tf_gossip_pga.cluster.place import Place, Rendezvous
if sys.argv[1] == "name":
    addresses.look_up = lambda host: print("looking up", flush=True) or time.sleep(3600)
rank, port = int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
rendezvous.cluster_of(Place(rank, 2, "", (), Rendezvous("job", ("localhost",), port, port + rank)))
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("case", ["name 1", "silent 1", "wait 1", "wait 0"])
def test_signals_end_the_wait_at_once(case, signum):
    kind, rank = case.split()
    (port,) = ports(1)
    with contextlib.ExitStack() as stack:
        if kind == "silent":  # it accepts and says nothing
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, kind, rank, str(port)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        for expected in ["ready", *["looking up"] * (kind == "name")]:
            assert process.stdout.readline().strip() == expected
        time.sleep(0.3)
        os.kill(process.pid, signum)
        # Nothing in the rendezvous takes an hour, except the name server of this test.
        _, said_last = process.communicate(timeout=deadlines.scaled(30))
    if signum == signal.SIGTERM:
        assert process.returncode == -signal.SIGTERM
    else:
        assert "KeyboardInterrupt" in said_last
