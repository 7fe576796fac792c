"""Start, read, signal and stop worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence

from tf_gossip_pga.launch import signals

GRACE_S = 2.0  # time from SIGTERM, which TensorFlow ignores, to SIGKILL


class Worker:
    """Start a worker process in an operating-system session of its own, and read its output.

    Args:
      command: program and arguments.
      rank: the worker's rank.
      environment: all environment variables of the process.
      terminal: whether the process prints to a pseudo-terminal. Otherwise it prints to a pipe.
      stdin: standard input of the process, as for `subprocess.Popen`. Default: none.

    Attributes:
      rank: the worker's rank.
      output: file descriptor for reading the output of the process.
      process: the process.
    """

    def __init__(
        self,
        command: Sequence[str],
        rank: int,
        environment: Mapping[str, str],
        terminal: bool,
        stdin: int = subprocess.DEVNULL,
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
                stdin=stdin,
                stdout=child_end,
                stderr=child_end,
                start_new_session=True,
            )
        finally:
            os.close(child_end)

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it. None while it runs."""
        return self.process.poll()

    @property
    def ending(self) -> str:
        """How the process ended, in words, e.g. `"exit code 1"` or `"signal SIGKILL"`."""
        code = self.returncode
        if code is None or code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:  # most real-time signals have no name
            return f"signal {-code}"

    def read(self) -> bytes:
        """Return up to 64 KiB of new output, or `b""` once the worker has closed its output."""
        try:
            return os.read(self.output, 1 << 16)
        except OSError:  # a pseudo-terminal raises once the other side is closed
            return b""

    def signal(self, number: int) -> None:
        """Send a signal to the worker and its children.

        Args:
          number: the signal, e.g. `signal.SIGTERM`.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Close the output of a worker that has been stopped."""
        os.close(self.output)


@dataclasses.dataclass(frozen=True)
class Team:
    """The workers of a job, before they start.

    Attributes:
      addresses: `"host:port"` of each worker, in rank order.
      start: function `(rank, joins)` that starts a worker. `joins`: whether it joins a running job.
      answer_s: seconds in which a worker must answer whether it waits for others to start.
      notice: a line to print before the workers start. Empty: none.
    """

    addresses: list[str]
    start: Callable[[int, bool], Worker]
    answer_s: float
    notice: str = ""


class Crew:
    """The workers of one job, one per rank.

    Args:
      start: function `(rank, joins)` that starts a worker. `joins` is True if the worker joins a
        running job.

    Attributes:
      workers: the current worker of each rank.
    """

    def __init__(self, start: Callable[[int, bool], Worker]):
        self._start = start
        self._replaced: list[Worker] = []
        self.workers: list[Worker] = []

    def start(self, count: int) -> None:
        """Start the workers of all ranks.

        Args:
          count: number of ranks.
        """
        for rank in range(count):
            with signals.deferred():  # a signal must not leave a worker that is not in the list
                self.workers.append(self._start(rank, False))

    def start_again(self, rank: int) -> Worker:
        """Replace the failed worker of a rank with one that joins the running job.

        Args:
          rank: the rank.

        Returns:
          The new worker.
        """
        failed = self.workers[rank]
        failed.signal(signal.SIGKILL)  # kill any child processes that outlived the worker
        with signals.deferred():
            self._replaced.append(failed)
            self.workers[rank] = self._start(rank, True)
        return self.workers[rank]

    def signal(self, number: int) -> None:
        """Send a signal to all workers and their children.

        Args:
          number: the signal, e.g. `signal.SIGTERM`.
        """
        for worker in self.workers:
            worker.signal(number)

    def stop(self) -> None:
        """Stop every worker and its children: first with SIGTERM, then with SIGKILL.

        Safe to call more than once.
        """
        try:
            self._signal_and_wait(signal.SIGTERM)
        finally:  # a second Ctrl-C ends the wait above, and must not leave processes behind
            self._signal_and_wait(signal.SIGKILL)

    def close(self) -> None:
        """Stop the workers, and close their outputs and those of the workers that they replaced."""
        try:
            self.stop()
        finally:
            for worker in self.workers + self._replaced:
                worker.close()

    def _signal_and_wait(self, number: int) -> None:
        self.signal(number)
        ends = time.monotonic() + GRACE_S
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, ends - time.monotonic()))
