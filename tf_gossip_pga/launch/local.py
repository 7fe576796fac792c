"""Run a command once for each worker on this machine."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from tf_gossip_pga import _validate
from tf_gossip_pga.coordination import roll_call_sockets
from tf_gossip_pga.errors import LaunchError
from tf_gossip_pga.launch import environment
from tf_gossip_pga.launch.watch import Outcome, Watch
from tf_gossip_pga.launch.workers import Crew, Worker
from tf_gossip_pga.tools.screen import Screen

# How long a worker on this machine may take to say that it waits for others to start.
_ANSWER_S = 0.2

# How long workers may save their work when the machine is about to be taken away.
_SAVE_S = 20.0


def launch(
    command: Sequence[str],
    workers: int,
    *,
    verbose: bool = False,
    min_workers: int | None = None,
    rejoins: int = 0,
    deadline_s: float | None = None,
    write: Callable[[str], object] | None = None,
) -> list[Outcome]:
    """Run `command` once for each worker, and return when all have ended.

    Args:
      command: program and arguments, e.g. `[sys.executable, "script.py"]`.
      workers: number of processes, >= 1.
      verbose: show TensorFlow's start-up messages and repeated warnings too.
      min_workers: how many must end well; the others may fail. Default: all, with `rejoins` one.
      rejoins: how many failed workers are started again, to join the surviving ones; for scripts
        with `GossipPGA(on_worker_lost="continue")` and `Checkpoint.restore`. Default 0.
      deadline_s: seconds after which everything is stopped; None: never.
      write: receives the prefixed output, piece by piece; default: standard output.

    Raises:
      ValueError: `workers` is no whole number >= 1, `min_workers` none from 1 to `workers`, or
        `rejoins` none >= 0.
      LaunchError: too many workers ended with another exit code than 0, or the deadline passed.

    Example:

        launch([sys.executable, "train.py"], workers=4)
    """
    workers = _validate.check_whole("workers", workers, 1)
    rejoins = _validate.check_whole("rejoins", rejoins, 0)
    if min_workers is None:
        min_workers = 1 if rejoins else workers
    least = _validate.check_whole("min_workers", min_workers, 1, workers)
    # On a terminal rank 0 gets one too, so that Keras draws its progress bar.
    terminal = write is None and sys.stdout.isatty()
    screen = Screen(write or _write_out, verbose, terminal)
    addresses = environment.free_addresses(workers)
    start = _starter(command, addresses, screen, verbose, terminal)
    with contextlib.closing(Crew(start)) as crew:
        crew.start(workers)
        try:
            limits = {"least": least, "rejoins": rejoins, "deadline_s": deadline_s}
            return Watch(crew, screen, **limits, is_starting=_starting(addresses)).run()
        except _Terminated:
            crew.signal(signal.SIGTERM)
            with contextlib.suppress(LaunchError):
                Watch(crew, screen, least=1, rejoins=0, deadline_s=_SAVE_S).run()
            raise


def _starter(
    command: Sequence[str], addresses: list[str], screen: Screen, verbose: bool, terminal: bool
) -> Callable[[int, bool], Worker]:
    """Return the function that starts the worker of a rank."""
    workers, gpus = len(addresses), environment.visible_gpus()
    secret = secrets.token_hex(16)
    if 0 < len(gpus) < workers:
        screen.notice(
            f"{workers} workers but {len(gpus)} GPU(s): all train on the CPU. "
            f"Use --workers={len(gpus)} to train on GPUs."
        )

    def start(rank: int, joins: bool) -> Worker:
        variables = environment.of_worker(
            addresses, rank, gpus, verbose=verbose, joins=joins, secret=secret
        )
        return Worker(command, rank, variables, terminal and rank == 0)

    return start


def _starting(addresses: list[str]) -> Callable[[list[int]], bool]:
    """Return the function that tells whether any of some ranks waits for others to start."""

    def is_starting(ranks: list[int]) -> bool:
        return roll_call_sockets.is_under_way((addresses[rank] for rank in ranks), _ANSWER_S)

    return is_starting


def run(command: Sequence[str], workers: int, max_restarts: int = 0, **settings: Any) -> int:
    """Launch for a terminal: report failures in words, and return the exit code.

    Args:
      command: as for `launch`; so are `workers` and `settings`.
      max_restarts: how often a failed job is started again.
    """
    _handle_signals()
    for restart in range(max_restarts + 1):
        try:
            launch(command, workers, **settings)
            return 0
        except LaunchError as error:
            print(f"\n{error}", file=sys.stderr, flush=True)
            if restart < max_restarts:
                again = f"\nThe job begins again: restart {restart + 1} of {max_restarts}."
                print(again, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("\nInterrupted; all workers were stopped.", file=sys.stderr, flush=True)
            return 130
    return 1


class _Terminated(KeyboardInterrupt):
    """The launcher has received SIGTERM, and passes it on to the workers."""


def _handle_signals() -> None:
    for number, handler in (
        (signal.SIGTERM, _terminate),
        (signal.SIGHUP, signal.default_int_handler),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second one ends at once
    raise _Terminated


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
