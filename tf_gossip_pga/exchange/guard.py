"""Speak for a process, and end it, while TensorFlow's start lets no Python run in it.

After the roll call all workers start TensorFlow's server at once, and wait for one another's. That
takes a second or two. Should one of them end meanwhile, the others would wait for an hour without a
word: rank 0 has no deadline there. They would not heed SIGTERM either, for which TensorFlow has
installed a handler of its own. So a second process watches the first as long as that lasts. It
imports nothing but the standard library.
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
    """Let another process watch this one in the context.

    Args:
      text: what to say when the context takes long, and when it is ended.
      report_s: after how many seconds to say it, and again whenever that has doubled.
      deadline_s: after how many seconds to end this process, with SIGKILL.
    """
    import subprocess  # here, since the other process needs none

    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), text]
    command += [str(report_s), str(deadline_s)]
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
        if guard.stdin is not None:
            stack.callback(guard.stdin.close)  # at which it ends
        # Pending, it is seen by the guard; handled, it would be swallowed.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        yield


def _watch(pid: int, text: str, report_s: float, deadline_s: float) -> None:
    """Watch a process until it closes this one's standard input, or has to be ended."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a job
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
    """Return whether a process has received SIGTERM, but has blocked it."""
    pending = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(("SigPnd:", "ShdPnd:")):
                pending |= int(line.split()[1], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
