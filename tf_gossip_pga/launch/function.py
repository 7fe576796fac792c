"""Run a function, for example of a notebook, in several worker processes on this machine."""

from __future__ import annotations

import os
import pathlib
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tf_gossip_pga.launch import call, job, signals
from tf_gossip_pga.launch.watch import Outcome


def run(
    function: Callable[..., Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    workers: int = 2,
    min_workers: int | None = None,
    rejoins: int = 0,
    gpus_per_worker: int = 1,
    share_gpus: bool = False,
    verbose: bool = False,
) -> Any:
    """Call a function in several worker processes on this machine, and return rank 0's result.

    The function takes the place of a script, so it must first call `pga.initialize()`. Each worker
    is a new process with this process's environment, working directory and `sys.path`. Functions
    and classes of a notebook or script are copied to the workers, with the variables that they use.
    This process prints the workers' output to its `sys.stdout`, and forwards SIGTERM to them. When
    this process ends, the workers end too.

    Args:
      function: the function that each worker calls.
      args: positional arguments of the function. Default: none.
      kwargs: keyword arguments of the function. Default: none.
      workers: number of processes, >= 1. Default 2.
      min_workers: how many workers must not fail. Default: all, or 1 if `rejoins` > 0.
      rejoins: how many restarts of failed workers are allowed in all. Default 0.
      gpus_per_worker: number of GPUs for each worker, >= 1, if there are GPUs. Default 1.
      share_gpus: whether several workers may use one GPU. Default False.
      verbose: whether to show TensorFlow's start-up messages. Default False.

    Returns:
      Rank 0's result. If rank 0 failed, but at least `min_workers` others did not, the result of
      the lowest rank that did not fail.

    Raises:
      ImportError: the package cloudpickle is not installed.
      TypeError: the function or what it uses cannot be pickled.
      ValueError: a number is out of range, or there are too few GPUs.
      RuntimeError: this process is itself one of several workers.
      LaunchError: too many workers failed. The message shows the end of their output.
      KeyboardInterrupt: Ctrl-C, or a SIGTERM that this process handles itself, has stopped the
        workers. An unhandled SIGTERM ends this process.
      SystemExit: with exit code `pga.PREEMPTED`, if `Checkpoint.exit_if_preempted` has ended
        workers with this code.

    Example:
        >>> import tf_gossip_pga as pga
        >>> pga.run(sum, args=([1, 2],), workers=2)
        3
    """
    settings: dict[str, Any] = {"min_workers": min_workers, "rejoins": rejoins, "verbose": verbose}
    settings |= {"gpus_per_worker": gpus_per_worker, "share_gpus": share_gpus}
    job.check_alone("pga.run")
    content = _content(function, args, kwargs, all_return=bool(min_workers or rejoins))
    return _launched(content, workers, settings)


def _content(
    function: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any] | None,
    all_return: bool,
) -> bytes:
    """Return the content of the file from which each worker reads what to call (see `call`).

    The function is pickled separately from the rest, because a worker may be unable to unpickle it
    before it has set its `sys.path` to that of this process.

    Args:
      function: the function.
      args: its positional arguments.
      kwargs: its keyword arguments.
      all_return: whether every rank stores its result. Otherwise, only rank 0 does.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, received {function!r}.")
    if not isinstance(args, list | tuple) or not isinstance(kwargs or {}, Mapping):
        raise TypeError(
            "args must be a list or tuple and kwargs a dict, received args="
            f"{type(args).__name__} and kwargs={type(kwargs).__name__}."
        )
    try:
        import cloudpickle
    except ImportError:
        raise ImportError(
            "pga.run needs the package cloudpickle, which is not installed. Install it: "
            "pip install cloudpickle"
        ) from None
    try:
        pickled = cloudpickle.dumps((function, tuple(args), dict(kwargs or {})))
    except Exception as error:  # classes may raise any exception when they are pickled
        name = getattr(function, "__qualname__", "The function")
        raise TypeError(
            f"{name} cannot be sent to the workers with its arguments and the variables that it "
            f"uses: {error}. Create models, datasets, locks and open files inside the function."
        ) from error
    return pickle.dumps(
        {
            "caller": os.getpid(),
            "path": list(sys.path),
            "function": pickled,
            "all_return": all_return,
        }
    )


def _launched(content: bytes, workers: int, settings: Mapping[str, Any]) -> Any:
    """Start the workers, wait for them, and return what the function has returned (see `run`)."""
    with tempfile.TemporaryDirectory(prefix="tf_gossip_pga-") as folder:  # private to this user
        pathlib.Path(folder, "call").write_bytes(content)
        command = [sys.executable, "-P", call.__file__, folder]
        try:
            with signals.handled({signal.SIGTERM: signals.terminate}):
                outcomes = job.launch(command, workers, **settings)
        except signals.Terminated:  # all workers have been stopped
            os.kill(os.getpid(), signal.SIGTERM)  # now with the effect that it had before
            raise
        if code := job.code_of(outcomes):
            sys.exit(code)
        return _result(pathlib.Path(folder), outcomes)


def _result(folder: pathlib.Path, outcomes: Sequence[Outcome]) -> Any:
    for each in outcomes:
        file = folder / f"{each.rank}.result"
        if each.returncode == 0 and file.exists():
            return pickle.loads(file.read_bytes())
    return None  # the function has ended its process, e.g. with sys.exit
