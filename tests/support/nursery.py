"""Fork child processes from a process that has already imported the expensive modules.

Importing TensorFlow and Keras takes four seconds of processor time, and the tests start hundreds of
processes. A process that has imported TensorFlow can fork until TensorFlow runs; here `initialize`
starts it, in the child. A child has its own session, and gets signals and ends like any other
process.

    with nursery.forks():
        launch.launch([sys.executable, "tests/support/workers.py", …], 2)

    nursery.run(["train.py", "--H=0"], nursery.LIGHT)  # a subprocess.CompletedProcess
"""

import atexit
import contextlib
import faulthandler
import functools
import gc
import importlib.abc
import importlib.machinery
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
import tempfile
import time
from unittest import mock

from tests.support import deadlines

# Modules to import before the first fork; `LIGHT` is for programs that must not import TensorFlow.
HEAVY = (
    "keras",
    "numpy",
    "tensorflow",
    "tf_gossip_pga.checkpoint.callback",
    "tf_gossip_pga.simulate",
)
LIGHT = ("numpy", "sklearn.datasets", "train")

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_POLL_S = 0.02
_LONGEST = 1 << 17  # largest request in bytes: arguments and environment


class Child:
    """Represent a forked process, with those attributes and methods of `Popen` that tests use.

    Args:
      status: file descriptor from which to read the process id and later the exit code.

    Attributes:
      pid: process id, which is also the session id.
      returncode: as in `Popen`; None until `poll` or `wait` sees the end.
    """

    def __init__(self, status: int):
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, and return its exit code.

        Args:
          timeout: seconds to wait; None: without limit.

        Raises:
          subprocess.TimeoutExpired: it has not ended by then.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def kill(self):
        """Kill the process and its process group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def forks():
    """Make `subprocess.Popen` fork for `python SCRIPT …`, `-m MODULE …` and `-c PROGRAM …`."""

    def fork(command, env, stdout, **_) -> Child:
        return start(command[1:], env, stdout)

    _nursery(HEAVY)  # with the real Popen
    with mock.patch.object(subprocess, "Popen", fork):
        yield


def start(arguments, env: dict[str, str], stdout, stderr=None, preloaded=HEAVY) -> Child:
    """Start `python ARGUMENTS…` by fork, in a new session.

    Args:
      arguments: script, `-m` or `-c`, and its arguments.
      env: all environment variables of the process.
      stdout: file or descriptor for the output.
      stderr: file or descriptor for errors. Default None: `stdout`.
      preloaded: modules to import before the fork.
    """
    requests = _nursery(preloaded)
    output = _descriptor(stdout)
    errors = output if stderr is None else _descriptor(stderr)
    status, theirs = os.pipe()
    try:
        request = json.dumps({"arguments": [*map(str, arguments)], "env": env}).encode()
        socket.send_fds(requests, [request], [output, errors, theirs])
    finally:
        os.close(theirs)
    return Child(status)


def run(arguments, preloaded=HEAVY, deadline_s: float = 120, **env) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS…` by fork, and return its exit code, output and errors.

    Args:
      arguments: script, `-m` or `-c`, and its arguments.
      preloaded: modules to import before the fork.
      deadline_s: seconds on an idle machine after which the process is killed.
      **env: variables to add to the environment.

    Raises:
      TimeoutError: the process did not end before the deadline.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = start(arguments, {**os.environ, **env}, out, err, preloaded)
        try:
            deadline = deadlines.Deadline(deadline_s)
            deadline.until(lambda: child.poll() is not None, lambda: _read(out) + _read(err), 0.01)
        finally:
            child.kill()
        return subprocess.CompletedProcess(arguments, child.wait(), _read(out), _read(err))


def _read(file) -> str:
    file.seek(0)
    return file.read()


def _descriptor(file) -> int:
    return file if isinstance(file, int) else file.fileno()


@functools.cache
def _nursery(preloaded: tuple[str, ...]) -> socket.socket:
    """Start a nursery, which ends with this process, and return the socket for requests."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (mine, its):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LONGEST)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery", str(its.fileno()), *preloaded],
            cwd=_ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
    _running.append((mine, process))
    return mine


_running: list[tuple[socket.socket, subprocess.Popen]] = []


@atexit.register
def close():
    """End all nurseries; children that still run are left alone."""
    while _running:
        mine, process = _running.pop()
        mine.close()
        process.wait()
    _nursery.cache_clear()


def _serve(requests: socket.socket) -> list[str]:
    """Fork a child for each request.

    Returns:
      Script and arguments; it returns only in a child.
    """
    running: dict[int, int] = {}  # process id -> descriptor to which to write its exit code
    while True:
        if select.select([requests], [], [], _POLL_S)[0]:
            message, fds, *_ = socket.recv_fds(requests, _LONGEST, 3)
            if not message:
                sys.exit()
            output, errors, status = fds
            pid = os.fork()
            if not pid:
                request = json.loads(message)
                _settle(output, errors, request["env"])
                for other in {requests.detach(), output, errors, status, *running.values()}:
                    os.close(other)
                return request["arguments"]
            os.close(output)
            os.close(errors)
            running[pid] = status
            os.write(status, f"{pid}\n".encode())
        for pid in list(running):
            ended, how = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(BrokenPipeError):
                    os.write(running[pid], f"{os.waitstatus_to_exitcode(how)}\n".encode())
                os.close(running.pop(pid))


def _settle(output: int, errors: int, environment: dict[str, str]):
    """Give a forked child what a new process would have: session, output, environment, seeds."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    faulthandler.enable()  # says where a child was that ends by a fault
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    random.seed()
    sys.modules["numpy"].random.seed()


def main():
    """Run the nursery; in each child, run its program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests = socket.socket(fileno=int(sys.argv[1]))
    if not _HeavyOnes.names & set(sys.argv[2:]):
        sys.meta_path.insert(0, _HeavyOnes())
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # children then neither copy the shared objects nor search them at exit
    _run(*_serve(requests))


class _HeavyOnes(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Let the import system find TensorFlow and Keras, but make it an error to import them."""

    names = frozenset(("keras", "tensorflow"))

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in self.names else None

    def exec_module(self, module):
        raise ImportError(f"{module.__name__} must not be imported here")


def _run(script: str, *arguments: str):
    """Do what `python SCRIPT ARGUMENTS` does; also `-c PROGRAM` and `-m MODULE`."""
    sys.argv = [script, *arguments]
    if script == "-c":
        program, sys.argv[1:] = arguments[0], arguments[1:]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif script == "-m":
        sys.argv = [*arguments]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
