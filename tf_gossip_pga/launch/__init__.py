"""Starts N local processes of one script, each with a `TF_CONFIG` of its own.

    python -m tf_gossip_pga.launch --workers=4 SCRIPT [ARGUMENTS…]
    python -m tf_gossip_pga.launch --workers=4 -m MODULE [ARGUMENTS…]

Each line of output begins with the rank it came from. When a worker fails, the others are stopped,
its rank and last lines are shown, and the exit code is 1. Ctrl-C stops all; nothing stays behind.
For scripts that survive a loss, `--min-workers=N` lets the others go on as long as N are left, and
`--rejoins=N` starts N times a worker that has failed again, to join them; for scripts that resume
at a checkpoint, `--max-restarts=N` begins a job that has failed again.
TensorFlow's start-up messages, and warnings that another worker has printed already, are left out
unless `--verbose` is given. On a machine with at least as many GPUs as workers each worker sees
one of its own; with fewer, all train on the CPU.
"""

import argparse
import contextlib
import dataclasses
import os
import pty
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence

from tf_gossip_pga.cluster import tf_config as cluster_lib
from tf_gossip_pga.errors import LaunchError
from tf_gossip_pga.tools import screen as screen_lib

_GRACE_S = 2.0  # from asking the workers to stop to killing them: TensorFlow ignores SIGTERM

# How long they have to save their work when the machine is about to be taken away.
_SAVE_S = 20.0


@dataclasses.dataclass
class Outcome:
    """How one worker ended.

    Attributes:
      rank: the worker's rank.
      returncode: its exit code; negative for a signal; None if it was stopped because too many
        others failed, or because time was up.
      last_lines: the end of its output.
    """

    rank: int
    returncode: int | None
    last_lines: list[str]


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
    """Runs `command` once for each worker, and returns when all have ended.

    Args:
      command: program and arguments, e.g. `[sys.executable, "script.py"]`.
      workers: number of processes, >= 1.
      verbose: show TensorFlow's start-up messages and repeated warnings too.
      min_workers: how many must end well; the others may fail. Default: all, with `rejoins` one.
      rejoins: how many workers that fail are started again, to join those that go on; for scripts
        with `GossipPGA(on_worker_lost="continue")` and `Checkpoint.restore`. Default 0.
      deadline_s: stop everything after so many seconds; None waits for ever.
      write: receives the prefixed output, piece by piece; default: standard output.

    Raises:
      ValueError: `workers` is not a whole number >= 1, `min_workers` none from 1 to `workers`, or
        `rejoins` none >= 0.
      LaunchError: a worker, or too many, ended with another exit code than 0, or the deadline
        passed.

    Example:

        launch([sys.executable, "train.py"], workers=4)
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number >= 1, received {workers!r}.")
    least = (1 if rejoins else workers) if min_workers is None else min_workers
    if least not in range(1, workers + 1):
        raise ValueError(f"min_workers must be one of 1 … {workers}, received {min_workers!r}.")
    if isinstance(rejoins, bool) or not isinstance(rejoins, int) or rejoins < 0:
        raise ValueError(f"rejoins must be a whole number >= 0, received {rejoins!r}.")
    terminal = write is None and sys.stdout.isatty()
    screen = screen_lib.Screen(write or _write_out, verbose)
    with contextlib.ExitStack() as stack:
        gpus = _gpus()
        if 0 < len(gpus) < workers:
            screen.notice(
                f"{workers} workers but {len(gpus)} GPU(s): all train on the CPU. "
                f"Use --workers={len(gpus)} to train on GPUs."
            )
        with _free_addresses(workers) as addresses:
            crew, spent = [], []
            stack.callback(lambda: [os.close(worker.output) for worker in crew + spent])
            stack.callback(lambda: _stop(crew))

            def start(rank: int, **more: str) -> _Worker:
                environment = {**_environment(addresses, rank, gpus, verbose), **more}
                return _Worker(command, rank, environment, terminal and rank == 0)

            for rank in range(workers):
                crew.append(start(rank))

            def start_again(rank: int) -> _Worker | None:
                if len(spent) == rejoins:
                    return None
                crew[rank].signal(signal.SIGKILL)  # its children
                spent.append(crew[rank])
                crew[rank] = start(rank, **{cluster_lib.JOIN: "1"})
                return crew[rank]

        try:
            return _watch(crew, least, screen, deadline_s, start_again)
        except _Terminated:
            for worker in crew:
                worker.signal(signal.SIGTERM)
            with contextlib.suppress(LaunchError):
                _watch(crew, 1, screen, _SAVE_S, lambda rank: None)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tf_gossip_pga.launch",
        description="Start N local worker processes of one script, each with its own TF_CONFIG.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument(
        "--min-workers", type=int, help="how many must be left (default all; with --rejoins 1)"
    )
    parser.add_argument(
        "--rejoins", type=int, default=0, help="how many failed workers join the others again"
    )
    parser.add_argument(
        "--max-restarts", type=int, default=0, help="how often a failed job begins again"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show TensorFlow's start-up messages too"
    )
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        help="instead of a script: a module, as of python -m, and its arguments",
    )
    parser.add_argument("script", nargs="?", help="the Python script that every worker runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's arguments")
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, received {options.workers}")
    least = options.min_workers
    if least is not None and not 1 <= least <= options.workers:
        parser.error(f"--min-workers must be from 1 to {options.workers}, received {least}")
    for name in ("rejoins", "max_restarts"):
        if (number := getattr(options, name)) < 0:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must not be negative, received {number}")
    if options.module is not None:
        if not options.module:
            parser.error("-m needs the name of a module")
        program = ["-m", *options.module]
    elif options.script is None:
        parser.error("give the script that every worker runs, or -m and a module")
    elif os.path.isfile(options.script):
        program = [options.script, *options.arguments]
    else:
        parser.error(f"there is no script {options.script!r}")
    command = [sys.executable, *program]
    return run(
        command,
        options.workers,
        options.max_restarts,
        verbose=options.verbose,
        min_workers=least,
        rejoins=options.rejoins,
    )


def run(command: Sequence[str], workers: int, max_restarts: int = 0, **settings) -> int:
    """`launch` for a terminal: reports a failure in words and returns the exit code.

    Args:
      command: as for `launch`; so are `workers` and `settings`.
      max_restarts: how often to begin again after a failure.
    """
    for number, handle in (
        (signal.SIGTERM, _terminate),
        (signal.SIGHUP, signal.default_int_handler),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, handle)
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
    """SIGTERM has come, which the workers are to hear of."""


def _terminate(number, frame):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second one is less patient
    raise _Terminated


class _Worker:
    """One process, the leader of a session of its own, and the pipe or terminal it prints to."""

    def __init__(self, command, rank: int, environment: dict, terminal: bool):
        self.rank = rank
        # On a terminal rank 0 gets one too, so that Keras draws its progress bar.
        self.output, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetwinsize(theirs, termios.tcgetwinsize(sys.stdout.fileno()))
        try:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    def read(self) -> bytes:
        """What it has printed; empty when it has closed its output."""
        try:
            return os.read(self.output, 1 << 16)
        except OSError:  # a terminal whose other side is closed
            return b""

    def signal(self, number: int):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _watch(
    crew: list[_Worker],
    least: int,
    screen: screen_lib.Screen,
    deadline_s: float | None,
    start_again: Callable[[int], _Worker | None],
) -> list[Outcome]:
    """Relays output until all workers have ended, too many have failed, or time is up."""
    ends = None if deadline_s is None else time.monotonic() + deadline_s
    running, failed = list(crew), []
    with selectors.DefaultSelector() as selector:
        for worker in crew:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        while running:
            for key, _ in selector.select(timeout=0.1):
                _relay(key.data, selector, screen)
            for worker in [w for w in running if w.process.poll() is not None]:
                running.remove(worker)
                if worker.process.returncode:
                    again = start_again(worker.rank) if running else None
                    if again:
                        _drain([worker], selector, screen)
                        running.append(again)
                        selector.register(again.output, selectors.EVENT_READ, again)
                        how = f"with {_how(worker)}. It is started again, to join the others"
                        screen.notice(f"Rank {worker.rank} failed, {how}.")
                        continue
                    failed.append(worker)
                    if len(crew) - len(failed) < least:
                        _fail(_description(failed, crew), failed, crew, selector, screen)
                    screen.notice(f"Rank {worker.rank} failed, with {_how(worker)}.")
            if ends is not None and time.monotonic() > ends and running:
                ranks = ", ".join(str(worker.rank) for worker in running)
                reason = f"After {deadline_s:g} s rank {ranks} had not ended."
                _fail(reason, running, crew, selector, screen)
        _drain(crew, selector, screen)
    return [
        Outcome(worker.rank, worker.process.returncode, list(screen.last_lines[worker.rank]))
        for worker in crew
    ]


def _relay(worker: _Worker, selector, screen: screen_lib.Screen):
    data = worker.read()
    if data:
        screen.feed(worker.rank, data)
    else:
        selector.unregister(worker.output)
        screen.close(worker.rank)


def _drain(crew: list[_Worker], selector, screen: screen_lib.Screen):
    """Relays what ended workers have left in their pipes."""
    ends = time.monotonic() + _GRACE_S  # a child that outlives its worker may print for ever
    while (keys := selector.select(timeout=0)) and time.monotonic() < ends:
        for key, _ in keys:
            _relay(key.data, selector, screen)
    for worker in crew:
        screen.close(worker.rank)


def _fail(reason: str, guilty: list[_Worker], crew: list[_Worker], selector, screen):
    """Stops all workers, and raises with the reason and the last lines of the guilty ones."""
    codes = [worker.process.poll() for worker in crew]  # None: it ran on
    _stop(crew)
    _drain(crew, selector, screen)
    outcomes = [
        Outcome(worker.rank, code, list(screen.last_lines[worker.rank]))
        for worker, code in zip(crew, codes, strict=True)
    ]
    lines = [reason]
    for worker in guilty:
        lines.append(f"Last lines of rank {worker.rank}:")
        lines += [f"  {line}" for line in screen.last_lines[worker.rank]]
    raise LaunchError("\n".join(lines), outcomes)


def _description(failed: list[_Worker], crew: list[_Worker]) -> str:
    first, *others = failed
    then = "".join(f", then rank {each.rank}, with {_how(each)}" for each in others)
    ended = [str(each.rank) for each in crew if each.process.returncode == 0]
    before = f" Rank {', '.join(ended)} had ended before, with exit code 0." if ended else ""
    hint = ""
    if len(failed) == 1 and len(crew) > 1 and not ended:
        hint = " (A script that survives a loss needs --min-workers.)"
    return (
        f"Rank {first.rank} failed first, with {_how(first)}{then}; the other workers were "
        f"stopped.{before}{hint}"
    )


def _how(worker: _Worker) -> str:
    code = worker.process.returncode
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _stop(crew: list[_Worker]):
    """Ends every worker and its children: asked at first, then killed. Safe to call twice."""
    try:
        _signal(crew, signal.SIGTERM)
    finally:  # a second Ctrl-C cuts the grace short, and must not leave anything behind
        _signal(crew, signal.SIGKILL)


def _signal(crew: list[_Worker], number: int):
    for worker in crew:
        worker.signal(number)
    ends = time.monotonic() + _GRACE_S
    for worker in crew:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, ends - time.monotonic()))


@contextlib.contextmanager
def _free_addresses(count: int):
    """Addresses on this machine that the operating system says are free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    yield addresses


def _environment(addresses, rank: int, gpus: list[str], verbose: bool) -> dict[str, str]:
    environment = {
        **os.environ,
        "TF_CONFIG": cluster_lib.to_tf_config(addresses, rank),
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop(cluster_lib.JOIN, None)
    # Workers that share the cores are faster when none of them asks for all.
    share = max(1, (os.cpu_count() or 1) // len(addresses))
    environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
    if not verbose:
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[rank] if len(gpus) >= len(addresses) else "-1"
    return environment


def _gpus() -> list[str]:
    """The NVIDIA GPUs a child process would see, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return names if names != [""] and "-1" not in names else []
    with contextlib.suppress(OSError):
        return [str(index) for index, _ in enumerate(os.listdir("/proc/driver/nvidia/gpus"))]
    return []


def _write_out(text: str):
    sys.stdout.write(text)
    sys.stdout.flush()
