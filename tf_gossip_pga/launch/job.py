"""Run a command once per worker, on this machine or over ssh."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from tf_gossip_pga import _validate
from tf_gossip_pga.cluster import detect
from tf_gossip_pga.cluster.place import CLUSTER
from tf_gossip_pga.coordination import roll_call_sockets
from tf_gossip_pga.errors import PREEMPTED, LaunchError
from tf_gossip_pga.launch import environment, gpus, remote
from tf_gossip_pga.launch.environment import Shared
from tf_gossip_pga.launch.hosts import Host
from tf_gossip_pga.launch.logs import Logs
from tf_gossip_pga.launch.watch import ENDED_WELL, Outcome, Watch
from tf_gossip_pga.launch.workers import Crew, Job, Worker
from tf_gossip_pga.tools.screen import Screen

_ANSWER_S = 0.2  # deadline for a local worker to answer whether it waits for others to start
_SAVE_S = 20.0  # time for workers to save a checkpoint after SIGTERM


def launch(
    command: Sequence[str],
    workers: int | None = None,
    *,
    hosts: Sequence[Host] | None = None,
    verbose: bool = False,
    min_workers: int | None = None,
    rejoins: int = 0,
    gpus_per_worker: int = 1,
    share_gpus: bool = False,
    env: Mapping[str, str] | None = None,
    log_dir: str | None = None,
    deadline_s: float | None = None,
    write: Callable[[str], object] | None = None,
) -> list[Outcome]:
    """Run `command` once per worker, wait for all of them, and return how each rank ended.

    Args:
      command: program and arguments, e.g. `[sys.executable, "script.py"]`.
      workers: number of processes on this machine, >= 1. Each gets its own `TF_CONFIG`.
      hosts: hosts on which to start workers over ssh, instead of `workers` on this machine.
      verbose: whether to show TensorFlow's start-up messages and repeated warnings.
      min_workers: how many workers must not fail. Default: all, or 1 if `rejoins` > 0.
      rejoins: how many restarts of failed workers are allowed in all. Restarted workers join the
        others. Scripts need `GossipPGA(on_worker_lost="continue")` and `Checkpoint.restore`.
      gpus_per_worker: number of GPUs for each worker, >= 1, on machines with GPUs.
      share_gpus: whether several workers may use one GPU if there are too few GPUs.
      env: environment variables to set for all workers.
      log_dir: directory in which to append each rank's output to `rank-N.log`. Default: no files.
      deadline_s: seconds after which the launcher stops all workers. Default: never.
      write: function that receives the workers' output as text, in which each line begins with
        the rank of its worker. Default: print the text.

    Raises:
      ValueError: an argument is out of range, this machine has too few GPUs or no ssh, or a log
        file cannot be written to.
      LaunchError: too many workers failed, a worker ended before the job had started, or the
        deadline passed.

    Example:
      >>> from tf_gossip_pga import launch
      >>> [each.returncode for each in launch.launch(["true"], workers=2)]
      [0, 0]
    """
    count = _count(workers, hosts)
    limits = _limits(count, min_workers, rejoins, deadline_s)
    per_worker = _validate.check_whole("gpus_per_worker", gpus_per_worker, 1)
    terminal = write is None and sys.stdout.isatty()
    screen = Screen(write or _write_out, verbose, terminal)
    shared = Shared(verbose, env or {})
    if hosts is None:
        job = _local(command, count, shared, per_worker, share_gpus, terminal)
    else:
        job = remote.job(command, hosts, shared, per_worker, share_gpus)
    return _follow(job, screen, log_dir, limits)


def _count(workers: int | None, hosts: Sequence[Host] | None) -> int:
    """Return the number of workers."""
    if hosts is None:
        return _validate.check_whole("workers", workers, 1)
    if workers is not None or not hosts:
        raise ValueError(
            "Give either workers, the number of processes on this machine, or a list of hosts; "
            f"received workers={workers!r} and hosts={hosts!r}."
        )
    return sum(host.slots for host in hosts)


def _limits(
    count: int, min_workers: int | None, rejoins: int, deadline_s: float | None
) -> dict[str, Any]:
    """Return the arguments of `Watch` that limit failures and time."""
    rejoins = _validate.check_whole("rejoins", rejoins, 0)
    if min_workers is None:
        min_workers = 1 if rejoins else count
    least = _validate.check_whole("min_workers", min_workers, 1, count)
    return {"least": least, "rejoins": rejoins, "deadline_s": deadline_s}


def _local(
    command: Sequence[str],
    count: int,
    shared: Shared,
    gpus_per_worker: int,
    share_gpus: bool,
    terminal: bool,
) -> Job:
    """Return the job of `count` workers on this machine."""
    visible = gpus.visible({**os.environ, **shared.chosen})
    shares = gpus.divide(visible, count, gpus_per_worker, share_gpus)
    addresses = environment.free_addresses(count)

    def start(rank: int, joins: bool) -> Worker:
        variables = environment.of_worker(addresses, rank, shared, joins=joins)
        whole = environment.on_this_host(variables, count, shares[rank])
        # If the output is a terminal, rank 0 gets one too, so that Keras draws a progress bar.
        return Worker(command, rank, whole, terminal and rank == 0)

    return Job(addresses, start, _ANSWER_S)


def _follow(job: Job, screen: Screen, log_dir: str | None, limits: dict[str, Any]) -> list[Outcome]:
    """Start the workers, and watch them until the end."""
    count = len(job.addresses)
    with (
        contextlib.closing(Logs(log_dir, count)) as logs,
        contextlib.closing(Crew(job.start)) as crew,
    ):
        if job.notice:
            screen.notice(job.notice)
        crew.start(count)
        try:
            return Watch(crew, screen, logs, **limits, is_starting=_starting(job)).run()
        except _Terminated:
            outcomes = _after_saving(crew, screen, logs)
            if sum(each.returncode in ENDED_WELL for each in outcomes) >= limits["least"]:
                return outcomes
            raise


def _after_saving(crew: Crew, screen: Screen, logs: Logs) -> list[Outcome]:
    """Send SIGTERM so that the workers save a checkpoint, and return how each worker ended.

    If all workers fail, or any of them does not end within `_SAVE_S`, return an empty list.
    """
    crew.signal(signal.SIGTERM)
    with contextlib.suppress(LaunchError):
        return Watch(crew, screen, logs, least=1, rejoins=0, deadline_s=_SAVE_S).run()
    return []


def _starting(job: Job) -> Callable[[list[int]], bool]:
    """Return a function that checks whether any of the given ranks waits for others to start."""

    def is_starting(ranks: list[int]) -> bool:
        where = (job.addresses[rank] for rank in ranks)
        return roll_call_sockets.is_under_way(where, job.answer_s)

    return is_starting


def run(
    command: Sequence[str], workers: int | None = None, max_restarts: int = 0, **settings: Any
) -> int:
    """Call `launch`, print failures to standard error, and return an exit code.

    Install signal handlers that forward SIGTERM to the workers and stop the workers on SIGHUP.

    Args:
      command: program and arguments, as for `launch`.
      workers: number of processes on this machine, >= 1. None with `hosts`.
      max_restarts: maximum number of restarts of a failed job. Default 0.
      **settings: further arguments of `launch`.

    Returns:
      0 if the job succeeded, even if SIGTERM stopped it early; `pga.PREEMPTED` (75) if its workers
      ended with this code, because they saved a checkpoint after SIGTERM and stopped; 1 if the job
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


def check_alone(starter: str) -> None:
    """Raise an error if this process is one of several, which would each start workers.

    Args:
      starter: what is about to start workers, for the message.

    Raises:
      RuntimeError: this process is one of several workers.
      ValueError: variables show that this process is one of several, but do not describe the
        others.
    """
    place = detect.find()
    if place.size > 1:
        raise RuntimeError(
            f"{starter} starts workers itself, but this process is one of {place.size} workers "
            f"(found by {place.found_by}), and each of them would start a job of its own. Start "
            "the script or function directly, or start a single process. To let each process "
            f"start workers of its own on purpose, set {CLUSTER}=none."
        )


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
    """Let `launch` forward SIGTERM to the workers until the context ends.

    Then restore the previous handler. This has no effect outside the main thread, or if this
    process ignores SIGTERM.
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
    """Raised when the launcher receives SIGTERM, so that `launch` forwards it to the workers."""


def _handle_signals() -> None:
    for number, handler in (
        (signal.SIGTERM, _terminate),
        (signal.SIGHUP, signal.default_int_handler),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets SIG_IGN; keep it
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second SIGTERM ends the wait
    raise _Terminated


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
