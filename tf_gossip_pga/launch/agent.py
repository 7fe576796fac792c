"""Run one worker on this host for a launcher on another host.

The launcher starts `python -m tf_gossip_pga.launch.agent` through ssh. It writes these lines to the
agent's standard input:

    a JSON object          first line: the fields of `remote.Request`, which describe the worker
    the name of a signal   any further line: the agent sends this signal to the worker

When the input ends, the launcher or the connection is gone. The agent then stops the worker, as it
does when it receives SIGTERM, SIGHUP or SIGINT itself. The agent exits with the worker's exit code,
or with 128 + N if signal N ended the worker, as shells do.
The worker writes its output, standard error included, to the agent's standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from tf_gossip_pga.launch import environment, gpus, ssh
from tf_gossip_pga.launch.remote import Request
from tf_gossip_pga.launch.workers import GRACE_S

_POLL_S = 0.1  # time between two checks of whether the worker has ended
_STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # from Linux' sys/prctl.h


def main() -> int:
    """Run the worker that the first line of standard input describes, and return an exit code."""
    lines = io.FileIO(0, closefd=False)  # unbuffered, so that select sees all input
    described = lines.readline()
    if not described:  # the launcher has already ended
        return 1
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans below the worker become children of this process
    try:
        worker = _start(Request(**json.loads(described)))
    except TypeError:  # the launcher's requests have other fields
        print("The launcher has another version of tf_gossip_pga than this host.", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for number in _STOP:
        signal.signal(number, _stop)
    try:
        with contextlib.suppress(_StoppedError):
            _follow(worker, lines)
        with contextlib.suppress(_StoppedError):
            _stop_worker(worker)
    finally:
        _signal(worker, signal.SIGKILL)
    code = worker.wait()
    _kill_others()
    if code == ssh.FAILED:
        print(
            f"The worker's exit code {code}, which ssh uses for its own failures, becomes 1.",
            flush=True,
        )
        return 1
    return code if code >= 0 else 128 - code


class _StoppedError(Exception):
    """A signal asks the agent to stop the worker."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for each in _STOP:
        signal.signal(each, signal.SIG_IGN)  # the worker is already being stopped
    raise _StoppedError


def _start(request: Request) -> subprocess.Popen[bytes]:
    """Start the worker in an operating-system session of its own.

    Raises:
      OSError: the program cannot be started.
      ValueError: this host has too few GPUs.
    """
    visible = gpus.visible({**os.environ, **request.variables})
    shares = gpus.divide(visible, request.workers, request.gpus_per_worker, request.share_gpus)
    own = shares[request.task]
    agent = os.getpid()
    return subprocess.Popen(
        request.command,
        env=environment.on_this_host(request.variables, request.workers, own),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: _end_with(agent),  # safe, because the agent has only one thread
    )


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, even if SIGKILL ends the parent."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent has already ended
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _follow(worker: subprocess.Popen[bytes], lines: io.FileIO) -> None:
    """Pass signals to the worker until it or the input ends."""
    while worker.poll() is None:
        if not select.select([lines], [], [], _POLL_S)[0]:
            continue
        line = lines.readline()
        if not line.endswith(b"\n"):  # the connection has ended, perhaps within a line
            return
        _signal(worker, signal.Signals[line.decode().strip()])


def _stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a worker that still runs, and wait for up to `GRACE_S`."""
    if worker.poll() is None:
        _signal(worker, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(GRACE_S)


def _kill_others() -> None:
    """Kill all processes that the worker has started, even those in sessions of their own.

    They may keep the worker's output open.
    """
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):  # no child is left, or one belongs to another user
        while True:
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.wait()


def _signal(worker: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the worker and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, number)


if __name__ == "__main__":
    sys.exit(main())
