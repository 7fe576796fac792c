"""Worker processes by fork, from one that has imported TensorFlow and Keras already.

To import them takes four seconds of a processor, and the tests start some hundreds of processes.
TensorFlow can be forked as long as it has not run: `initialize` starts it in the child. What a
process does from then on, its session, its signals and its end are those of any other.

    with nursery.forks():
        launch.launch([sys.executable, "tests/support/workers.py", …], 2)
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

_PRELOADED = (
    "keras",
    "numpy",
    "tensorflow",
    "tf_gossip_pga.checkpoint.callback",
    "tf_gossip_pga.simulate",
)
_POLL_S = 0.02
_LONGEST = 1 << 17  # bytes of a request: arguments and environment


class Child:
    """A process that the nursery has forked; the attributes and methods of `Popen` that are used.

    Attributes:
      pid: its id, which is also that of its session.
      returncode: as Popen's; None while it runs, as far as `poll` has seen.
    """

    def __init__(self, status: int):
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def forks():
    """Inside, `subprocess.Popen` starts `python SCRIPT …` and `python -c PROGRAM …` by fork."""
    requests = _nursery()  # which starts the first time
    with mock.patch.object(subprocess, "Popen", functools.partial(_fork, requests)):
        yield


def _fork(requests: socket.socket, command: list[str], env: dict[str, str], stdout, **_) -> Child:
    """Stands in for `Popen`, where output and errors go to one file, in a session of its own."""
    status, theirs = os.pipe()
    try:
        request = json.dumps({"arguments": command[1:], "env": env}).encode()
        output = stdout if isinstance(stdout, int) else stdout.fileno()
        socket.send_fds(requests, [request], [output, theirs])
    finally:
        os.close(theirs)
    return Child(status)


@functools.cache
def _nursery() -> socket.socket:
    """The way to this process's nursery, which ends with it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (mine, its):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LONGEST)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery", str(its.fileno())],
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(mine.close)  # which comes first, and ends it
    return mine


def _serve(requests: socket.socket) -> list[str]:
    """Forks a child for each request. Returns in the children alone: script and arguments."""
    running: dict[int, int] = {}  # process -> where its end is told
    while True:
        if select.select([requests], [], [], _POLL_S)[0]:
            message, fds, *_ = socket.recv_fds(requests, _LONGEST, 2)
            if not message:
                sys.exit()
            output, status = fds
            pid = os.fork()
            if not pid:
                request = json.loads(message)
                _settle(output, request["env"])
                for other in (requests.detach(), output, status, *running.values()):
                    os.close(other)
                return request["arguments"]
            os.close(output)
            running[pid] = status
            os.write(status, f"{pid}\n".encode())
        for pid in list(running):
            ended, how = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(BrokenPipeError):
                    os.write(running[pid], f"{os.waitstatus_to_exitcode(how)}\n".encode())
                os.close(running.pop(pid))


def _settle(output: int, environment: dict[str, str]):
    """Makes a child what a process of its own would be."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    random.seed()
    sys.modules["numpy"].random.seed()


def main():
    """The nursery, and then each child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in _PRELOADED:
        importlib.import_module(name)
    _run(*_serve(requests))


def _run(script: str, *arguments: str):
    """What `python SCRIPT ARGUMENTS` does."""
    sys.argv = [script, *arguments]
    if script == "-c":
        program, sys.argv[1:] = arguments[0], arguments[1:]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
