"""Watch the workers of a job: relay their output, and restart or report failed workers."""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import time
from collections.abc import Callable
from typing import NoReturn

from tf_gossip_pga.errors import PREEMPTED, LaunchError
from tf_gossip_pga.launch import signals
from tf_gossip_pga.launch import workers as workers_lib
from tf_gossip_pga.launch.inquiry import Inquiry
from tf_gossip_pga.launch.logs import Logs
from tf_gossip_pga.launch.workers import Crew, Worker
from tf_gossip_pga.tools.screen import Screen

# Exit codes of workers that have not failed: they finished, or saved a checkpoint and stopped.
ENDED_WELL = (0, PREEMPTED)

_POLL_S = 0.1  # maximum wait for output between two checks of the processes


@dataclasses.dataclass
class Outcome:
    """Describe how one worker ended.

    Attributes:
      rank: the worker's rank.
      returncode: the exit code; the negative signal number if a signal ended the worker; None if
        the launcher stopped it because others failed or the deadline passed.
      last_lines: the last lines of the worker's output.
    """

    rank: int
    returncode: int | None
    last_lines: list[str]


class Watch:
    """Relay the workers' output until all workers have ended, too many have failed, or time is up.

    Args:
      crew: the workers.
      screen: merges the workers' output into one.
      logs: writes each worker's output to a file.
      least: minimum number of workers that must end with an exit code in `ENDED_WELL`.
      rejoins: maximum number of failed workers to restart.
      deadline_s: seconds after which to stop the workers; None: never.
      greeting: function that returns the first bytes that the worker of a rank sends, to find out
        whether it waits for others to start. Default: no worker does.
    """

    def __init__(
        self,
        crew: Crew,
        screen: Screen,
        logs: Logs,
        *,
        least: int,
        rejoins: int,
        deadline_s: float | None,
        greeting: Callable[[int], bytes | None] = lambda rank: None,
    ):
        self._crew, self._screen, self._logs = crew, screen, logs
        self._least, self._rejoins, self._deadline_s = least, rejoins, deadline_s
        self._selector = selectors.DefaultSelector()
        self._running: list[Worker] = []
        self._failed: list[Worker] = []
        self._gone: list[Worker] = []  # ended, with any exit code, and not restarted
        self._inquiry = Inquiry(greeting)

    def run(self) -> list[Outcome]:
        """Watch until the end, and return how each worker ended, in rank order.

        Raises:
          LaunchError: too many workers failed, or the deadline passed.
        """
        started = time.monotonic()
        with self._selector, contextlib.closing(self._inquiry):
            for worker in self._crew.workers:
                self._add(worker)
            while self._running:
                for key, _ in self._selector.select(timeout=_POLL_S):
                    self._relay(key.data)
                for worker in [each for each in self._running if each.returncode is not None]:
                    self._ended(worker)
                self._check_start()
                self._check_deadline(time.monotonic() - started)
            self._drain(self._crew.workers)
        return self._outcomes([worker.returncode for worker in self._crew.workers])

    def _add(self, worker: Worker) -> None:
        self._running.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _relay(self, worker: Worker) -> None:
        error = None
        with signals.deferred():  # a signal must not lose the data
            data = worker.read()
            if data:
                error = self._logs.write(worker.rank, data)
                self._screen.add(worker.rank, data)
        if error:
            self._screen.notice(f"The log of rank {worker.rank} ends here: {error}.")
        self._screen.show()
        if not data:
            self._selector.unregister(worker.output)
            self._screen.close(worker.rank)

    def _drain(self, ended: list[Worker]) -> None:
        """Relay all remaining output, and show the given workers' last lines without a newline."""
        # Stop after a while: a child process that outlives its worker may print forever.
        ends = time.monotonic() + workers_lib.GRACE_S
        while (keys := self._selector.select(timeout=0)) and time.monotonic() < ends:
            for key, _ in keys:
                self._relay(key.data)
        for worker in ended:
            self._screen.close(worker.rank)

    def _ended(self, worker: Worker) -> None:
        """Handle a worker's end: if it failed, restart it if allowed, else report its failure."""
        self._running.remove(worker)
        if worker.returncode in ENDED_WELL:
            self._gone.append(worker)
            return
        failure = f"Rank {worker.rank} failed with {worker.ending}."
        if self._running and self._rejoins:
            self._rejoins -= 1
            again = self._crew.start_again(worker.rank)
            self._drain([worker])
            self._add(again)
            self._screen.notice(f"{failure} The launcher restarts it to join the others.")
            return
        self._failed.append(worker)
        self._gone.append(worker)
        if len(self._crew.workers) - len(self._failed) < self._least:
            self._fail(self._description(), self._failed)
        self._screen.notice(failure)

    def _check_start(self) -> None:
        """Fail if a running worker waits for others to start, but one of them has already ended."""
        if not self._gone or not self._running:
            return
        if self._inquiry.any_waits(worker.rank for worker in self._running):
            ends = (f"rank {each.rank} ended with {each.ending}" for each in self._gone)
            self._fail(
                f"Before the job had started, {', then '.join(ends)}. The other workers cannot "
                "start without it, and were stopped. (With --rejoins=N the launcher restarts up to "
                "N failed workers.)",
                self._gone,
            )

    def _check_deadline(self, passed_s: float) -> None:
        if self._deadline_s is not None and passed_s > self._deadline_s and self._running:
            ranks = ", ".join(str(worker.rank) for worker in self._running)
            self._fail(
                f"The deadline of {self._deadline_s:g} s passed before rank {ranks} had ended.",
                self._running,
            )

    def _fail(self, reason: str, to_blame: list[Worker]) -> NoReturn:
        """Stop all workers, and raise `LaunchError`.

        The message contains the reason and the last lines of the workers to blame, if they printed
        any.
        """
        codes = [worker.returncode for worker in self._crew.workers]  # None: still running
        self._crew.stop()
        self._drain(self._crew.workers)
        lines = [reason]
        for worker in to_blame:
            last = self._screen.last_lines[worker.rank]
            if last:
                lines.append(f"Last lines of rank {worker.rank}:")
                lines += [f"  {line}" for line in last]
        raise LaunchError("\n".join(lines), self._outcomes(codes))

    def _outcomes(self, codes: list[int | None]) -> list[Outcome]:
        return [
            Outcome(worker.rank, code, list(self._screen.last_lines[worker.rank]))
            for worker, code in zip(self._crew.workers, codes, strict=True)
        ]

    def _description(self) -> str:
        """Describe which worker failed first, which failed later, and which had succeeded."""
        workers = self._crew.workers
        first, *others = self._failed
        then = "".join(f", then rank {each.rank}, with {each.ending}" for each in others)
        ended = [str(each.rank) for each in workers if each.returncode == 0]
        before = f" Rank {', '.join(ended)} had ended before, with exit code 0." if ended else ""
        hint = ""
        if not others and len(workers) > 1 and not ended:
            hint = (
                " (If the script resumes from checkpoints, run it again, or give --max-restarts. "
                "If it survives lost workers, give --min-workers, in Python min_workers.)"
            )
        return (
            f"Rank {first.rank} failed first, with {first.ending}{then}; the other workers were "
            f"stopped.{before}{hint}"
        )
