"""Find the addresses of all workers if the starter reports only rank 0's host.

A *starter* is a program that starts the workers, such as `mpirun` or `torchrun`. Rank 0 listens on
its port. Every other worker calls rank 0 again and again, each time over a new connection, until
rank 0 answers with the addresses of all workers. In one call::

    rank 0 sends      `greetings.RENDEZVOUS`
    caller sends      its `Call`, as a line of JSON
    rank 0 sends      its `Answer`, as a line of JSON
    caller sends      one byte, if the answer contains the addresses or an error

Only other threads than the one that called `cluster_of` wait for sockets and name servers. SIGINT
and SIGTERM therefore have their usual effect at any time. The workers do not authenticate, neither
in the rendezvous nor in the roll call, which follows.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import ipaddress
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.place import Place, Rendezvous
from tf_gossip_pga.cluster.ports import PORT
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, messages
from tf_gossip_pga.coordination.register import Answer, Call, Register, call_every_s
from tf_gossip_pga.coordination.reports import Waiting, shortened
from tf_gossip_pga.coordination.roll_call_sockets import (
    STRANGERS,
    accept,
    read,
    read_greeting,
    read_line,
    start,
)
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost

_Message = TypeVar("_Message")


def cluster_of(place: Place, timing: Timing | None = None) -> Cluster:
    """Return this process's `Cluster`. If its addresses are not known, wait for all other workers.

    Args:
      place: this process's place, as `cluster.detect.find` returns it.
      timing: how often to call, and how long to wait.

    Raises:
      RuntimeError: rank 0's port is taken.
      ValueError: two processes have the same rank or address, or the starters of two workers
        report different numbers of workers.
      WorkerLost: workers were missing for `Timing.start_s`.
    """
    timing = timing or Timing()
    addresses = place.addresses
    if at := place.rendezvous:
        addresses = _lead(place, at, timing) if place.rank == 0 else _ask(place, at, timing)
    return Cluster(place.rank, place.size, tuple(addresses))


def _outcome(answer: Answer) -> list[str]:
    """Return the addresses in rank 0's last answer, or raise its failure as a `ValueError`."""
    if answer.failure:
        raise ValueError(f"{answer.failure[:1].upper()}{answer.failure[1:]}.")
    return answer.addresses


class _Report:
    """Report a wait for other workers, and end it at the deadline."""

    def __init__(self, place: Place, timing: Timing) -> None:
        self._place = place
        self._ends = time.monotonic() + timing.start_s
        self._began = time.monotonic()
        self._waiting = Waiting(timing.start_report_s)

    def check(self, missing: Callable[[], str]) -> None:
        """Log a warning about the wait if one is due. Raise `WorkerLost` after the deadline.

        Args:
          missing: function that returns who is missing, as a clause.
        """
        now = time.monotonic()
        if not self._waiting.due(now) and now <= self._ends:
            return
        text = (
            f"Rank {self._place.rank} of {self._place.size} has waited {now - self._began:.0f} s "
            f"for the other workers to start: {missing()}."
        )
        if now > self._ends:
            raise WorkerLost(f"{text} The deadline has passed, so this worker ends.")
        logger.warning(text)


# ---- Rank 0 -------------------------------------------------------------------------------------


def _lead(place: Place, at: Rendezvous, timing: Timing) -> list[str]:
    """As rank 0, collect the addresses of all workers, send them to the others, and return them.

    Return when all other workers have confirmed that they have received the addresses, or when a
    deadline has passed.
    """
    register, report = Register(at, place.size, timing), _Report(place, timing)
    elsewhere = threading.Event()  # set if rank 0's host is not this machine
    start(_note_elsewhere, at, elsewhere)

    def missing() -> str:
        ranks = shortened([f"rank {rank}" for rank in register.missing(time.monotonic())])
        text = f"no call to {at.hosts[0]}:{at.port} from {', '.join(ranks)}"
        if elsewhere.is_set():
            text += f" (this machine is not {at.hosts[0]}: is rank 0 on the right machine?)"
        return text

    with _answering(register, place, at, timing):
        while (last := register.last) is None:
            report.check(missing)
            time.sleep(timing.poll_s)
        ends = time.monotonic() + max(timing.start_tell_s, 3 * call_every_s(place.size, timing))
        while not register.is_over and time.monotonic() < ends:
            time.sleep(timing.poll_s)
    return _outcome(last)


def _note_elsewhere(at: Rendezvous, elsewhere: threading.Event) -> None:
    with contextlib.suppress(OSError, UnicodeError):
        if not any(addresses_lib.is_here(host) for host in at.hosts):
            elsewhere.set()


@contextlib.contextmanager
def _answering(
    register: Register, place: Place, at: Rendezvous, timing: Timing
) -> Generator[None, None, None]:
    """Answer the other workers' calls, on other threads, until the context ends."""
    try:
        listener = addresses_lib.listener_once_free(at.port, timing)
    except OSError as error:
        raise RuntimeError(
            f"Rank 0 cannot listen on {at.hosts[0]}:{at.port}: {addresses_lib.reason(error)}. Is "
            "rank 0 already running, or does another program use the port? "
            f"{PORT} sets another one, which must be the same on all workers."
        ) from None
    over = threading.Event()
    serve = functools.partial(_serve, register, timing)
    with listener:
        thread = start(accept, listener, place.size + STRANGERS, serve, over, timing.poll_s)
        try:
            yield
        finally:
            over.set()
            thread.join()


def _serve(register: Register, timing: Timing, connection: socket.socket) -> None:
    ends = time.monotonic() + timing.serve_s
    with contextlib.suppress(OSError, ValueError, RecursionError):
        connection.settimeout(timing.serve_s)
        connection.sendall(greetings.RENDEZVOUS)
        call = _parsed(Call, read_line(connection, ends), 0)
        is_local = connection.getpeername()[0] == connection.getsockname()[0]
        # Some machines resolve their own name to 127.0.1.1. A caller on such a machine calls this
        # address from 127.0.0.1.
        is_local = is_local or ipaddress.ip_address(call.host).is_loopback
        answer = register.answer(call, is_local, time.monotonic())
        connection.sendall(_line(answer))
        if answer.is_last and read(connection, ends, 1):
            register.confirm(call)


# ---- The other workers --------------------------------------------------------------------------


def _ask(place: Place, at: Rendezvous, timing: Timing) -> list[str]:
    """As another worker, call rank 0 until it answers with all addresses, and return them."""
    caller, report = _Caller(place, at, timing), _Report(place, timing)
    over = threading.Event()
    start(caller.call_until, over)
    try:
        while True:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return _outcome(caller.last.result(timing.poll_s))
            report.check(lambda: caller.missing)
    finally:
        over.set()


class _Caller:
    """Call rank 0 until it sends its last answer.

    Attributes:
      last: a future for the last answer.
      missing: who is missing, as a clause.
    """

    def __init__(self, place: Place, at: Rendezvous, timing: Timing) -> None:
        self._place, self._at, self._timing = place, at, timing
        self._nonce = secrets.token_hex(8)
        self.last: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self.missing = "rank 0: it has not been called yet"

    def call_until(self, over: threading.Event) -> None:
        """Call until the last answer has come, or the event is set."""
        every_s = call_every_s(self._place.size, self._timing)
        hosts = list(self._at.hosts)
        while not over.is_set():
            for host in hosts:
                answer = self._call(host)
                if answer and answer.is_of_other_job and len(hosts) > 1:
                    self.missing = f"at {host}, {answer.failure}"
                    continue
                if answer and answer.is_last:
                    self.last.set_result(answer)
                    return
                if answer:
                    ranks = shortened([f"rank {each}" for each in answer.missing])
                    self.missing = f"rank 0 has answered, but still waits for {', '.join(ranks)}"
                    hosts = [host]  # trying the other names may take `ask_s` each
                    break
            over.wait(every_s)

    def _call(self, host: str) -> Answer | None:
        """Return rank 0's answer at this host. Without an answer, set `missing` and return None."""
        greeting = b""
        try:
            address = addresses_lib.join(host, self._at.port)
            connection, where = addresses_lib.call(address, self._timing.ask_s)
            ends = time.monotonic() + self._timing.ask_s
            with connection:
                try:
                    greeting = read_greeting(connection, ends, greetings.RENDEZVOUS)
                    if greeting == greetings.RENDEZVOUS:
                        return self._talk(connection, host, ends)
                except (OSError, ValueError, RecursionError):
                    pass
        except addresses_lib.UnreachableError as error:
            self.missing = f"rank 0: {error}"
            return None
        if greeting.startswith(greetings.ROLL_CALL):
            self.missing = (
                f"rank 0 at {where} has already met all workers (was rank {self._place.rank} "
                "started twice?)"
            )
        else:
            self.missing = (
                f"rank 0: something listens at {where} but does not answer as rank 0 of this job: "
                "it belongs to another program, or to a job that is already running"
            )
        return None

    def _talk(self, connection: socket.socket, host: str, ends: float) -> Answer:
        call = Call(
            job=self._at.job,
            rank=self._place.rank,
            size=self._place.size,
            nonce=self._nonce,
            process=f"process {os.getpid()} on {socket.gethostname()}",
            host=connection.getsockname()[0],
            port=self._at.own_port,
            called=host,
        )
        connection.sendall(_line(call))
        answer = _parsed(Answer, read_line(connection, ends), self._place.size)
        if answer.addresses and len(answer.addresses) != self._place.size:
            raise ValueError("not an address for each worker")
        if answer.is_last:
            connection.sendall(b"\n")
        return answer


def _line(message: Call | Answer) -> bytes:
    return json.dumps(dataclasses.asdict(message)).encode() + b"\n"


def _parsed(kind: type[_Message], line: bytes, size: int) -> _Message:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return messages.parse(kind, fields, size)  # pyright: ignore[reportUnknownArgumentType]
