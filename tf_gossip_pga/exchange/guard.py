"""Watch a starting worker from a second process, which reports a long wait and may end the worker.

After the roll call, in which the workers find each other (`coordination.roll_call`), all workers
start TensorFlow's server at the same time and wait for each other's servers. This takes a second or
two, during which TensorFlow blocks all Python threads. If a worker ended during that time, the
others would wait silently for an hour, because rank 0 has no deadline at that point. The waiting
workers would also ignore SIGTERM, because TensorFlow installs its own handler. Therefore, while its
server starts, each worker is watched by a second process, the guard. The guard imports only the
standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Generator

_POLL_S = 0.2


@contextlib.contextmanager
def watched(text: str, report_s: float, deadline_s: float) -> Generator[None, None, None]:
    """Return a context manager in which a second process, the guard, watches this process.

    If this process receives SIGTERM, the guard kills it with SIGKILL.

    Args:
      text: message that the guard prints during a long wait and at the deadline.
      report_s: seconds until the first message. The message is repeated each time the wait has
        doubled.
      deadline_s: seconds until the guard kills this process with SIGKILL.
    """
    import subprocess  # imported here, because the guard does not need it

    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), text]
    command += [str(report_s), str(deadline_s)]
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
        if guard.stdin is not None:
            stack.callback(guard.stdin.close)  # ends the guard
        # Block SIGTERM so that the guard sees it pending. TensorFlow's handler would swallow it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        yield


def _watch(pid: int, text: str, report_s: float, deadline_s: float) -> None:
    """Be the guard: watch a process until it closes the guard's standard input.

    Kill the process at the deadline, or if it receives SIGTERM. For the arguments, see `watched`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a launcher may signal the guard too
        signal.signal(number, signal.SIG_IGN)
    began = time.monotonic()
    report_at = report_s
    while not select.select([sys.stdin], [], [], _POLL_S)[0]:
        waited_s = time.monotonic() - began
        if waited_s > deadline_s or _is_terminated(pid):
            if waited_s > deadline_s:
                print(
                    f"{text} The deadline has passed, so this worker ends.",
                    file=sys.stderr,
                    flush=True,
                )
            os.kill(pid, signal.SIGKILL)
            return
        if waited_s > report_at:
            print(text, file=sys.stderr, flush=True)
            report_at = 2 * waited_s


def _is_terminated(pid: int) -> bool:
    """Return whether SIGTERM is pending for a process that blocks it."""
    pending = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(("SigPnd:", "ShdPnd:")):
                pending |= int(line.split()[1], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
