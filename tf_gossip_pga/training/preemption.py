"""Handle SIGTERM during `fit`. Schedulers send this signal before they reclaim a machine."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable

# Ignore a second SIGTERM that arrives within this many seconds of the first. A service manager
# sends SIGTERM to the launcher and to its workers, and the launcher forwards its own to the
# workers, so each worker receives two.
_ECHO_S = 1.0


class Sigterm:
    """Record SIGTERM instead of letting it end the process, from `begin` to `end`.

    A `Sigterm` has no effect if `begin` is called outside the main thread, or if the process
    ignores SIGTERM. Some signals keep their usual effect: another SIGTERM at least a second after
    the first, a SIGTERM after an exception has left `fit`, and a SIGTERM sent to a forked child.

    Args:
      answer: function to call when the signal arrives. It may run between any two instructions of
        the main thread.
      text: message to print to standard error when the signal arrives.

    Attributes:
      received: whether the signal has arrived since `begin`.
    """

    def __init__(self, answer: Callable[[], object], text: str):
        """Store the arguments. The handler is installed by `begin`."""
        self.received = False
        self._received_at = 0.0
        self._answer = answer
        self._text = text
        self._before = None
        self._code: types.CodeType | None = None

    def begin(self, code: types.CodeType):
        """Record the signal until `end` is called or a given function returns.

        Args:
          code: code object of that function.
        """
        self.received = False
        self._code = code
        before = signal.getsignal(signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()
        if main and before not in (signal.SIG_IGN, self._handle):
            self._before = before or signal.SIG_DFL  # None: the handler was not set by Python
            signal.signal(signal.SIGTERM, self._handle)

    def end(self, heeded: bool):
        """Restore the previous handler.

        Args:
          heeded: whether the caller has acted on the signal. If not, and if the signal has arrived
            since `begin`, this process sends it to itself again, so that it has its usual effect.
        """
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
        if self.received and not heeded:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: types.FrameType | None):
        # An exception may have left fit without a call of `end`, because Keras does not notify
        # callbacks of exceptions. So inspect the stack to find out whether fit is still running.
        if self.received and time.monotonic() < self._received_at + _ECHO_S:
            return
        if self.received or not any(each is self._code for each in _codes(frame)):
            self.received = True
            self.end(heeded=False)
            return
        self.received, self._received_at = True, time.monotonic()
        # Do not use print: the signal may have interrupted a print call.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{self._text}\n".encode())
        self._answer()


def _leave_to_parent():
    """In a forked child, restore the handler that preceded the parent's `begin`."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(owner, Sigterm):
        owner.end(heeded=True)


os.register_at_fork(after_in_child=_leave_to_parent)


def code_of_caller(name: str) -> types.CodeType:
    """Return the code object of the innermost caller whose function is not named `name`.

    If a callback hook passes its own name, the result belongs to Keras' `fit`, because all callers
    between `fit` and the hook have this name.
    """
    return next(code for code in _codes(sys._getframe(1)) if code.co_name != name)


def _codes(frame: types.FrameType | None):
    """Yield the code objects of a frame and of its callers, innermost first."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
