"""Note SIGTERM, which schedulers send before they take a machine away, while `fit` runs."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable

# A second signal within so many seconds is the first one's echo: a service manager sends it to the
# launcher and to its workers, and the launcher passes it on.
_ECHO_S = 1.0


class Sigterm:
    """Note SIGTERM instead of ending the process, from `begin` to `end`.

    Only the main thread can do so; in other threads, and where the signal is ignored, nothing
    changes. Another SIGTERM, a second later or after that, has its usual effect. So has one that
    arrives after an exception has left `fit`, and one that a forked child receives.

    Args:
      answer: called when the signal arrives, between any two instructions of the main thread.
      text: what to print then on standard error.

    Attributes:
      received: whether it has arrived since `begin`.
    """

    def __init__(self, answer: Callable[[], object], text: str):
        self.received = False
        self._received_at = 0.0
        self._answer = answer
        self._text = text
        self._before = None
        self._code: types.CodeType | None = None

    def begin(self, code: types.CodeType):
        """Begin to note the signal, until the function with this code has returned."""
        self.received = False
        self._code = code
        before = signal.getsignal(signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()
        if main and before not in (signal.SIG_IGN, self._handle):
            self._before = before or signal.SIG_DFL  # None: it was not Python that set it
            signal.signal(signal.SIGTERM, self._handle)

    def end(self, heeded: bool):
        """Stop noting it; a signal that arrived and was not heeded has its usual effect now."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
        if self.received and not heeded:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: types.FrameType | None):
        # An exception leaves fit without a word to its callbacks; the stack tells.
        if self.received and time.monotonic() < self._received_at + _ECHO_S:
            return
        if self.received or not any(each is self._code for each in _codes(frame)):
            self.received = True
            self.end(heeded=False)
            return
        self.received, self._received_at = True, time.monotonic()
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{self._text}\n".encode())
        self._answer()


def _leave_to_parent():
    """In a forked child, give the signal the effect that it had before the parent's `begin`."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(owner, Sigterm):
        owner.end(heeded=True)


os.register_at_fork(after_in_child=_leave_to_parent)


def code_of_caller(name: str) -> types.CodeType:
    """Return the code of the innermost caller whose function has another name than `name`.

    Called from a callback's hook, whose callers are hooks of the same name, it is Keras' `fit`.
    """
    return next(code for code in _codes(sys._getframe(1)) if code.co_name != name)


def _codes(frame: types.FrameType | None):
    """Yield the code of a frame and of its callers."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
