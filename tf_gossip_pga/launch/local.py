"""Run a command once per worker on this machine."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from tf_gossip_pga import _validate
from tf_gossip_pga.coordination import roll_call_sockets
from tf_gossip_pga.errors import PREEMPTED, LaunchError
from tf_gossip_pga.launch import environment, gpus
from tf_gossip_pga.launch.watch import ENDED_WELL, Outcome, Watch
from tf_gossip_pga.launch.workers import Crew, Worker
from tf_gossip_pga.tools.screen import Screen

_ANSWER_S = 0.2  # deadline for a local worker to answer whether it waits for others to start
_SAVE_S = 20.0  # time for workers to save a checkpoint after SIGTERM


def launch(
    command: Sequence[str],
    workers: int,
    *,
    verbose: bool = False,
    min_workers: int | None = None,
    rejoins: int = 0,
    gpus_per_worker: int = 1,
    share_gpus: bool = False,
    deadline_s: float | None = None,
    write: Callable[[str], object] | None = None,
) -> list[Outcome]:
    """Run `command` once per worker, wait for all of them, and return how each rank ended.

    Args:
      command: program and arguments, e.g. `[sys.executable, "script.py"]`.
      workers: number of processes, >= 1. Each gets its own `TF_CONFIG`.
      verbose: whether to show TensorFlow's start-up messages and repeated warnings.
      min_workers: how many workers must not fail. Default: all, or 1 with `rejoins`.
      rejoins: maximum number of failed workers to restart. They join the surviving workers. For
        scripts that use `GossipPGA(on_worker_lost="continue")` and `Checkpoint.restore`.
      gpus_per_worker: number of GPUs for each worker, >= 1, if this machine has GPUs.
      share_gpus: whether several workers may use one GPU if there are too few.
      deadline_s: seconds after which the launcher stops all workers. Default: never.
      write: function that receives the output as text, each line with its rank. Default: print to
        standard output.

    Raises:
      ValueError: `workers`, `min_workers`, `rejoins` or `gpus_per_worker` is out of range, or this
        machine has too few GPUs.
      LaunchError: too many workers failed, one ended before the job had started, or the deadline
        passed.

    Example:
      >>> from tf_gossip_pga import launch
      >>> [each.returncode for each in launch.launch(["true"], workers=2)]
      [0, 0]
    """
    workers = _validate.check_whole("workers", workers, 1)
    rejoins = _validate.check_whole("rejoins", rejoins, 0)
    if min_workers is None:
        min_workers = 1 if rejoins else workers
    least = _validate.check_whole("min_workers", min_workers, 1, workers)
    per_worker = _validate.check_whole("gpus_per_worker", gpus_per_worker, 1)
    shares = gpus.divide(gpus.visible(), workers, per_worker, share_gpus)
    # If the output is a terminal, give rank 0 a terminal too, so that Keras draws a progress bar.
    terminal = write is None and sys.stdout.isatty()
    screen = Screen(write or _write_out, verbose, terminal)
    addresses = environment.free_addresses(workers)
    start = _starter(command, addresses, shares, verbose, terminal)
    with contextlib.closing(Crew(start)) as crew:
        crew.start(workers)
        limits = {"least": least, "rejoins": rejoins, "deadline_s": deadline_s}
        try:
            return Watch(crew, screen, **limits, is_starting=_starting(addresses)).run()
        except _Terminated:
            outcomes = _after_saving(crew, screen)
            if sum(each.returncode in ENDED_WELL for each in outcomes) >= least:
                return outcomes
            raise


def _after_saving(crew: Crew, screen: Screen) -> list[Outcome]:
    """Let the workers save a checkpoint, and return how each ended. If they do not end: none."""
    crew.signal(signal.SIGTERM)
    with contextlib.suppress(LaunchError):
        return Watch(crew, screen, least=1, rejoins=0, deadline_s=_SAVE_S).run()
    return []


def _starter(
    command: Sequence[str],
    addresses: list[str],
    shares: list[list[str]],
    verbose: bool,
    terminal: bool,
) -> Callable[[int, bool], Worker]:
    """Return a function that starts the worker of a given rank. `shares`: each worker's GPUs."""
    secret = secrets.token_hex(16)

    def start(rank: int, joins: bool) -> Worker:
        variables = environment.of_worker(
            addresses, rank, shares[rank], verbose=verbose, joins=joins, secret=secret
        )
        return Worker(command, rank, variables, terminal and rank == 0)

    return start


def _starting(addresses: list[str]) -> Callable[[list[int]], bool]:
    """Return a function that checks whether any of the given ranks waits for others to start."""

    def is_starting(ranks: list[int]) -> bool:
        return roll_call_sockets.is_under_way((addresses[rank] for rank in ranks), _ANSWER_S)

    return is_starting


def run(command: Sequence[str], workers: int, max_restarts: int = 0, **settings: Any) -> int:
    """Launch from a terminal: print failures to standard error, and return an exit code.

    Install signal handlers that forward SIGTERM to the workers and stop them on SIGHUP.

    Args:
      command: program and arguments, as for `launch`.
      workers: number of processes, >= 1.
      max_restarts: maximum number of restarts of a failed job. Default 0.
      **settings: further arguments of `launch`.

    Returns:
      0 if the job succeeded, even if SIGTERM stopped it early; `pga.PREEMPTED` (75) if its workers
      ended with this code, because they saved a checkpoint after SIGTERM and stopped; 1 if it
      failed; 130 if Ctrl-C or another signal interrupted it.

    Raises:
      ValueError: an argument of `launch` is out of range.
    """
    _handle_signals()
    for restart in range(max_restarts + 1):
        try:
            return code_of(launch(command, workers, **settings))
        except LaunchError as error:
            print(f"\n{error}", file=sys.stderr, flush=True)
            if restart < max_restarts:
                again = f"\nThe launcher restarts the job: restart {restart + 1} of {max_restarts}."
                print(again, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted; all workers were stopped.", file=sys.stderr, flush=True)
            return 130
    return 1


def code_of(outcomes: Sequence[Outcome]) -> int:
    """Return the launcher's exit code for a job that has not failed. Report a preemption.

    Args:
      outcomes: the result of `launch`.

    Returns:
      `pga.PREEMPTED` if any worker ended with it, else 0.
    """
    if all(each.returncode != PREEMPTED for each in outcomes):
        return 0
    print(
        f"\nThe workers saved a checkpoint and stopped (exit code {PREEMPTED}). To continue, start "
        "the job again.",
        file=sys.stderr,
        flush=True,
    )
    return PREEMPTED


@contextlib.contextmanager
def forwarding_sigterm() -> Iterator[None]:
    """Let `launch` forward SIGTERM to the workers, and then restore the previous handler.

    Without effect outside the main thread, or if this process ignores SIGTERM.
    """
    before = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not set by Python


class _Terminated(KeyboardInterrupt):
    """Raised when the launcher receives SIGTERM, to forward it to the workers."""


def _handle_signals() -> None:
    for number, handler in (
        (signal.SIGTERM, _terminate),
        (signal.SIGHUP, signal.default_int_handler),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets SIG_IGN; keep it
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # do not wait after a second SIGTERM
    raise _Terminated


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
