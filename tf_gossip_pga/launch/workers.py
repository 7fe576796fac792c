"""Start, read, signal and stop worker processes."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence

GRACE_S = 2.0  # from asking the workers to stop to killing them: TensorFlow ignores SIGTERM


class Worker:
    """One process, the leader of its own session, and the pipe or terminal it prints to.

    Attributes:
      rank: the worker's rank.
      output: file descriptor from which its output is read.
      process: the process.
    """

    def __init__(
        self, command: Sequence[str], rank: int, environment: Mapping[str, str], terminal: bool
    ):
        self.rank = rank
        self.output, child_end = pty.openpty() if terminal else os.pipe()
        if terminal:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetwinsize(child_end, termios.tcgetwinsize(sys.stdout.fileno()))
        try:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=child_end,
                stderr=child_end,
                start_new_session=True,
            )
        finally:
            os.close(child_end)

    @property
    def ending(self) -> str:
        """How the process ended, in words, e.g. `"exit code 1"`."""
        code = self.process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def read(self) -> bytes:
        """Return what the worker has printed; empty when it has closed its output."""
        try:
            return os.read(self.output, 1 << 16)
        except OSError:  # a terminal whose other side is closed
            return b""

    def signal(self, number: int) -> None:
        """Send a signal to the worker and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Crew:
    """The workers of one job, one for each rank.

    Args:
      start: starts the worker of a rank; the second argument says whether it joins a running job.

    Attributes:
      workers: the present worker of each rank.
    """

    def __init__(self, start: Callable[[int, bool], Worker]):
        self._start = start
        self._replaced: list[Worker] = []
        self.workers: list[Worker] = []

    def start(self, count: int) -> None:
        """Start the workers of all ranks."""
        for rank in range(count):
            self.workers.append(self._start(rank, False))

    def start_again(self, rank: int) -> Worker:
        """Replace the failed worker of a rank by one that joins the running job, and return it."""
        failed = self.workers[rank]
        failed.signal(signal.SIGKILL)  # its children
        self._replaced.append(failed)
        self.workers[rank] = self._start(rank, True)
        return self.workers[rank]

    def signal(self, number: int) -> None:
        """Send a signal to all workers and their children."""
        for worker in self.workers:
            worker.signal(number)

    def stop(self) -> None:
        """End every worker and its children: asked at first, then killed. Safe to call twice."""
        try:
            self._signal_and_wait(signal.SIGTERM)
        finally:  # a second Ctrl-C cuts the grace short, and must not leave anything behind
            self._signal_and_wait(signal.SIGKILL)

    def close(self) -> None:
        """Stop the workers, and close the outputs of all that were ever started."""
        try:
            self.stop()
        finally:
            for worker in self.workers + self._replaced:
                os.close(worker.output)

    def _signal_and_wait(self, number: int) -> None:
        self.signal(number)
        ends = time.monotonic() + GRACE_S
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, ends - time.monotonic()))
