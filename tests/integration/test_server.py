"""Strangers at a process's port: malformed bytes, and more connections than it has descriptors."""

import asyncio
import concurrent.futures
import contextlib
import errno
import random
import socket
import subprocess
import sys
import time
import types

import pytest

from tests.support import deadlines, nursery
from tf_gossip_pga import launch
from tf_gossip_pga.coordination import secret
from tf_gossip_pga.coordination.server import Server

KEY = b"k" * 32
GREETING = b"tf_gossip_pga channel"


@contextlib.contextmanager
def _running(serve_s=2.0):
    """Yield a server with one kind of request, which doubles a number, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener, KEY, GREETING, 2, serve_s)
    server.handlers["double"] = lambda request: {"number": 2 * request["number"]}
    with contextlib.closing(server):
        yield server, listener.getsockname()[1]


@contextlib.contextmanager
def _serving(serve_s=2.0):
    """Yield the port of such a server."""
    with _running(serve_s) as (_, port):
        yield port


def _answer_to(port: int, line) -> bytes:
    """Return the answer to a line, which may depend on the server's nonce."""
    with socket.create_connection(("127.0.0.1", port), timeout=deadlines.long()) as connection:
        lines = connection.makefile("rb")
        greeting, _, nonce = lines.readline().decode().rstrip().rpartition(" ")
        assert greeting.encode() == GREETING
        connection.sendall(line(nonce))
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return lines.readline()
    return b""


def _sealed(request):
    return lambda nonce: secret.seal_request(KEY, nonce, request)[0]


def _works(port: int) -> bool:
    return _answer_to(port, _sealed({"kind": "double", "number": 3})).endswith(b' {"number": 6}\n')


def _body(text: str):
    """A line with a right proof for what is perhaps no request."""
    return lambda nonce: f"{secret._mac(KEY, f'request {nonce}', text)} {text}\n".encode()


MALFORMED = {
    "nothing": b"\n",
    "no newline": b'{"kind": "double"}',
    "no proof": b'{"kind": "double", "number": 3}\n',
    "a null": b"null\n",
    "a proof of zeros": b"0" * 64 + b' {"kind": "double", "number": 3}\n',
    "a proof alone": b"0" * 64 + b"\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("160301020001") + b"\0" * 200 + b"\n",
    "no UTF-8": b"\xff\xfe\xfd\n",
    "a surrogate": b"\xed\xa0\x80 {}\n",
    "a line that is too long": b"x" * 200_000,
}
PROVEN = ["", "null", "[]", "12", "NaN", "{", "[" * 30_000, '{"a":' * 9_000, "9" * 20_000, "{}"]
PROVEN += ['{"kind": []}', '{"kind": {"a": 1}}', '{"kind": "unknown"}', '{"kind": "\\ud800"}']


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_are_dropped_without_harm(name, capfd):
    with _serving(serve_s=0.5) as port:
        assert _answer_to(port, lambda nonce: MALFORMED[name]) == b""
    assert capfd.readouterr() == ("", "")


def test_what_is_proven_and_no_request_is_dropped_without_harm(capfd):
    with _serving() as port:
        for text in PROVEN:
            assert _answer_to(port, _body(text)) == b""
        assert _works(port)
    assert capfd.readouterr() == ("", "")


def test_random_bytes_and_changed_requests_are_dropped_without_harm(capfd):
    draw = random.Random(0)

    def changed(nonce):
        line = bytearray(_sealed({"kind": "double", "number": 3})(nonce))
        for _ in range(draw.randint(1, 3)):
            line[draw.randrange(len(line) - 1)] = draw.choice(b'\x00 {}":0a\xff')
        return bytes(line)

    with _serving() as port:
        for _ in range(200):
            assert (
                _answer_to(port, lambda nonce: draw.randbytes(draw.randint(1, 300)) + b"\n") == b""
            )
            line = changed
            answer = _answer_to(port, line)
            assert answer == b"" or answer.endswith(b' {"number": 6}\n')  # changed into itself
        assert _works(port)
    assert capfd.readouterr() == ("", "")


def test_one_who_never_asks_is_dropped_in_time():
    with (
        _serving(serve_s=0.3) as port,
        socket.create_connection(("127.0.0.1", port), timeout=deadlines.long()) as idle,
    ):
        idle.recv(100)
        assert idle.recv(100) == b""


def test_of_too_many_connections_the_oldest_is_closed():
    with _serving(serve_s=600.0) as port, contextlib.ExitStack() as stack:
        held = []
        for _ in range(46):  # 32 and four for each of two workers are allowed
            each = socket.create_connection(("127.0.0.1", port), timeout=deadlines.long())
            assert stack.enter_context(each).recv(100).startswith(GREETING)
            held.append(each)
        assert held[0].recv(100) == b""
        for each in held[6:8]:
            each.settimeout(0.1)
            with pytest.raises(TimeoutError):
                each.recv(100)
        assert _works(port)  # in the place of one more
        held[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            held[-1].recv(100)


@pytest.mark.parametrize(
    ("code", "is_dropped"),
    [(errno.EMFILE, True), (errno.ENOMEM, True), (errno.ECONNABORTED, False)],
)
def test_connections_are_dropped_only_where_there_is_no_room(code, is_dropped):
    with _running(serve_s=600.0) as (server, port):
        listener = server._listener

        def fail_once():
            server._listener = listener
            raise OSError(code, "no connection")

        address = ("127.0.0.1", port)
        with socket.create_connection(address, timeout=deadlines.long()) as held:
            assert held.recv(100).startswith(GREETING)
            server._listener = types.SimpleNamespace(fileno=listener.fileno, accept=fail_once)
            assert _works(port)
            held.settimeout(0.1)
            if is_dropped:
                assert held.recv(100) == b""
            else:
                with pytest.raises(TimeoutError):
                    held.recv(100)


def test_a_coroutine_that_does_not_end_is_waited_for_as_long_as_one_likes():
    with _running() as (server, port):
        with pytest.raises(TimeoutError):
            server.run(asyncio.sleep(600.0), timeout_s=0.1)
        assert _works(port)


# ---- More connections than descriptors ----------------------------------------------------------

# Two channels of one process ask each other, ten times a second, until standard input is closed.
# In its first second the process has no descriptor left.
PROGRAM = """
import os, resource, select, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.status import Status
given = ["127.0.0.1:1", "127.0.0.1:2"]
channels = [Channel(given, rank, Status()) for rank in (0, 1)]
for each in channels:
    each.learn_all([other.introduction for other in channels])

def answers():
    return isinstance(channels[0].ask_all("status", timeout_s=30.0)[1], dict)

taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
print(channels[1].endpoint, flush=True)
time.sleep(1.0)
assert not isinstance(channels[0].ask_all("status")[1], dict)
for each in taken:
    os.close(each)
print("descriptors", flush=True)
most = answered = 0
while not select.select([0], [], [], 0.1)[0]:
    answered += answers()
    most = max(most, len(os.listdir("/proc/self/fd")))
print(answered, most, all(answers() for _ in range(20)), flush=True)
"""


def _flood(port: int, held: contextlib.ExitStack):
    """Open 1000 connections in 2 s."""
    began = time.monotonic()
    for number in range(1000):
        held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        time.sleep(max(0.0, began + number / 500 - time.monotonic()))


def test_a_flood_uses_up_no_descriptors_and_requests_still_come_through():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        port = int(process.stdout.readline())
        for _ in range(20):  # while it has no descriptor left
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert process.stdout.readline() == "descriptors\n"
        _flood(port, stack)
        said, errors = process.communicate("\n", timeout=deadlines.long())
    answered, most, works = said.split()
    assert errors == ""
    assert works == "True"
    assert int(answered) > 0  # in the middle of the flood
    assert int(most) < 150


# Two ranks train with few descriptors, until the test has flooded the channel of rank 1.
TRAINING = """
import pathlib, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
from tests.support import deadlines, product
folder = pathlib.Path(sys.argv[1])

class Flooded(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.05)
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and cluster.rank == 1:
            (folder / "new").write_text(str(product.active()._channel.endpoint))
            (folder / "new").rename(folder / "port")
        if epoch == 3:
            deadlines.Deadline(120).until((folder / "flooded").exists)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.ones((80, 4), "float32"), np.ones((80, 1), "float32")
gossip = pga.GossipPGA(H=3, on_worker_lost="continue")
model.fit(x, y, batch_size=4, epochs=6, verbose=0, callbacks=[gossip, Flooded()])
print("trained", gossip.step, "of", cluster.members, flush=True)
"""


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_flood_does_not_disturb_training(tmp_path):
    said = []

    def flood():
        deadlines.Deadline(240).until((tmp_path / "port").exists)
        with contextlib.ExitStack() as stack:
            _flood(int((tmp_path / "port").read_text()), stack)
            (tmp_path / "flooded").touch()

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        flooded = threads.submit(flood)
        with nursery.forks():
            launch.launch(
                [sys.executable, "-c", TRAINING, str(tmp_path)],
                workers=2,
                deadline_s=deadlines.long(),
                write=said.append,
            )
        flooded.result(deadlines.long())
    lines = sorted("".join(said).splitlines())
    assert [line for line in lines if "trained" in line] == [
        f"[{rank}] trained 120 of (0, 1)" for rank in (0, 1)
    ]
    assert not [line for line in lines if "lost" in line or "continues" in line]
