"""Run a command once per worker, on this machine or over ssh."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_gossip_pga import _validate
from tf_gossip_pga.cluster import detect
from tf_gossip_pga.cluster.place import CLUSTER
from tf_gossip_pga.coordination import roll_call_sockets
from tf_gossip_pga.errors import PREEMPTED, LaunchError
from tf_gossip_pga.launch import local, remote, signals
from tf_gossip_pga.launch.environment import Shared
from tf_gossip_pga.launch.hosts import Host
from tf_gossip_pga.launch.logs import Logs
from tf_gossip_pga.launch.watch import ENDED_WELL, Outcome, Watch
from tf_gossip_pga.launch.workers import Crew, Team
from tf_gossip_pga.tools.screen import Screen

_SAVE_S = 20.0  # time for workers to save a checkpoint after SIGTERM
_HANDLERS = {signal.SIGTERM: signals.terminate, signal.SIGHUP: signals.interrupt}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The optional arguments of `launch`, which explains them."""

    hosts: Sequence[Host] | None = None
    verbose: bool = False
    min_workers: int | None = None
    rejoins: int = 0
    gpus_per_worker: int = 1
    share_gpus: bool = False
    env: Mapping[str, str] | None = None
    log_dir: str | None = None
    deadline_s: float | None = None
    write: Callable[[str], object] | None = None


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
    settings = Settings(
        hosts=hosts,
        verbose=verbose,
        min_workers=min_workers,
        rejoins=rejoins,
        gpus_per_worker=gpus_per_worker,
        share_gpus=share_gpus,
        env=env,
        log_dir=log_dir,
        deadline_s=deadline_s,
        write=write,
    )
    return _follow(_prepared(command, workers, settings))


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A job whose workers have not started yet.

    Attributes:
      team: the workers.
      screen: merges the workers' output into one.
      logs: writes each worker's output to a file.
      limits: the arguments of `Watch` that limit failures and time.
    """

    team: Team
    screen: Screen
    logs: Logs
    limits: dict[str, Any]


def _prepared(command: Sequence[str], workers: int | None, settings: Settings) -> _Prepared:
    """Check the arguments of `launch`, choose addresses, and open the log files.

    Raises:
      ValueError: an argument is invalid (see `launch`).
    """
    hosts = settings.hosts
    count = _count(workers, hosts)
    limits = _limits(count, settings)
    per_worker = _validate.check_whole("gpus_per_worker", settings.gpus_per_worker, 1)
    terminal = settings.write is None and sys.stdout.isatty()
    screen = Screen(settings.write or _write_out, settings.verbose, terminal)
    shared = Shared(settings.verbose, settings.env or {})
    if hosts is None:
        team = local.team(command, count, shared, per_worker, settings.share_gpus, terminal)
    else:
        team = remote.team(command, hosts, shared, per_worker, settings.share_gpus)
    return _Prepared(team, screen, Logs(settings.log_dir, count), limits)


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


def _limits(count: int, settings: Settings) -> dict[str, Any]:
    """Return the arguments of `Watch` that limit failures and time."""
    rejoins = _validate.check_whole("rejoins", settings.rejoins, 0)
    min_workers = settings.min_workers
    if min_workers is None:
        min_workers = 1 if rejoins else count
    least = _validate.check_whole("min_workers", min_workers, 1, count)
    return {"least": least, "rejoins": rejoins, "deadline_s": settings.deadline_s}


def _follow(prepared: _Prepared) -> list[Outcome]:
    """Start the workers, and watch them until the end."""
    team, screen, limits = prepared.team, prepared.screen, prepared.limits
    with (
        contextlib.closing(prepared.logs) as logs,
        contextlib.closing(Crew(team.start)) as crew,
    ):
        if team.notice:
            screen.notice(team.notice)
        crew.start(len(team.addresses))
        try:
            return Watch(crew, screen, logs, **limits, greeting=_greeting_in(team)).run()
        except signals.Terminated:
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


def _greeting_in(team: Team) -> Callable[[int], bytes | None]:
    """Return a function that returns the first bytes that the worker of a rank sends."""
    return lambda rank: roll_call_sockets.greeting_at(team.addresses[rank], team.answer_s)


def run(
    command: Sequence[str], workers: int | None = None, max_restarts: int = 0, **settings: Any
) -> int:
    """Call `launch`, print failures to standard error, and return an exit code.

    Meanwhile, forward SIGTERM to the workers, and stop them on SIGHUP.

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
      ValueError: an argument is invalid (see `launch`).
    """
    return prepared_run(command, workers, max_restarts, **settings)()


def prepared_run(
    command: Sequence[str], workers: int | None, max_restarts: int, **settings: Any
) -> Callable[[], int]:
    """Prepare what `run` does, and return a function that does it.

    An error that this function raises is one of the user's, and nothing has started yet. An error
    of the returned function is one of this package's.

    Args:
      command: program and arguments, as for `launch`.
      workers: number of processes on this machine, >= 1. None with `hosts`.
      max_restarts: maximum number of restarts of a failed job.
      **settings: further arguments of `launch`.

    Returns:
      A function without arguments that returns the exit code. Call it once.

    Raises:
      ValueError: an argument is invalid (see `launch`).
    """
    _validate.check_whole("max_restarts", max_restarts, 0)
    prepare = functools.partial(_prepared, command, workers, Settings(**settings))
    return functools.partial(_run, prepare(), prepare, max_restarts)


def _run(first: _Prepared, prepare: Callable[[], _Prepared], most: int) -> int:
    """Follow a job, restart it as often as necessary and allowed, and return the exit code."""
    with signals.handled(_HANDLERS):
        for restart in range(most + 1):
            try:
                return code_of(_follow(prepare() if restart else first))
            except LaunchError as error:
                print(f"\n{error}", file=sys.stderr, flush=True)
                if restart < most:
                    again = f"\nThe launcher restarts the job: restart {restart + 1} of {most}."
                    print(again, file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print("\nInterrupted; all workers were stopped.", file=sys.stderr, flush=True)
                return 130
            except BrokenPipeError:  # as in `gossip-pga run … | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                print("\nNobody reads the output; all workers were stopped.", file=sys.stderr)
                return 1
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


def _write_out(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # e.g. Keras' progress bar, if standard output is not UTF-8
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
