"""Observe from other threads whether a call is running, and which exception escaped it."""

from __future__ import annotations

import sys
import threading
import traceback
import types
from collections.abc import Iterator

# Maximum length of an exception's text that other workers receive.
_LONGEST = 300


class Call:
    """A running call of a function on the thread that creates this object.

    When an exception escapes Keras' `fit`, no callback is called. Python reveals the exception
    nevertheless: once `fit` is no longer on its thread's stack, the exception is either one that
    the thread is handling (in `except`, `finally` or `with`) or the last uncaught one.

    Args:
      code: the function's code object. The function must be on the stack of the calling thread.

    Attributes:
      has_ended: whether the function has finished its work, even if it has not returned yet. Set by
        the caller.
    """

    def __init__(self, code: types.CodeType) -> None:
        self._thread = threading.get_ident()
        self._frame = Frame(code)
        self._codes = _with_wrappers(code)
        self._seen_before = id(_uncaught())  # a reference would keep the exception's frames alive
        self.has_ended = False
        self._raised: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether the function is on its thread's stack."""
        return self._frame.is_running

    @property
    def was_left(self) -> bool:
        """Whether an exception has escaped the function."""
        return not self.has_ended and not self.is_running

    def raised(self) -> str | None:
        """Return the exception that escaped the function, e.g. `"raised OSError: disk full"`.

        Once found, the exception is remembered. None means that no call of this method has found it
        so far. An exception raised by `sys.exit` is rarely visible.
        """
        if self._raised is None:
            for error in self._visible():
                frames = traceback.walk_tb(error.__traceback__)
                if any(frame.f_code in self._codes for frame, _ in frames):
                    self._raised = worded(error)
                    break
        return self._raised

    def _visible(self) -> Iterator[BaseException]:
        """Yield the exceptions that the thread handles, innermost first, then an uncaught one."""
        handled = sys._current_exceptions().get(self._thread)  # pyright: ignore[reportPrivateUsage]
        error: object = handled[1] if isinstance(handled, tuple) else handled  # Python 3.11: tuple
        while isinstance(error, BaseException):
            yield error
            error = error.__context__
        error = _uncaught()
        if isinstance(error, BaseException) and id(error) != self._seen_before:
            yield error


class Frame:
    """The frame of a function that runs on the thread that creates this object.

    Other threads ask this object whether the function is still running. They must not search the
    function's stack instead: CPython 3.11 crashes if one thread follows `f_back` while another runs
    the frames.

    Args:
      code: the function's code object. If several frames run this code, the innermost is observed.
    """

    def __init__(self, code: types.CodeType) -> None:
        frames = traceback.walk_stack(sys._getframe())  # pyright: ignore[reportPrivateUsage]
        self._frame = next((frame for frame, _ in frames if frame.f_code is code), None)

    @property
    def is_running(self) -> bool:
        """Whether the function has neither returned nor raised. Thread-safe.

        The first query after the function has ended clears the function's local variables.
        """
        frame = self._frame
        if frame is not None:
            try:
                frame.clear()
            except RuntimeError:  # the frame is executing
                return True
            self._frame = None
        return False


def uncaught() -> str | None:
    """Return a description of the exception that ends this program, or None.

    In a notebook or at a prompt, exceptions do not end the program, so this returns None.
    """
    error = _uncaught()
    return worded(error) if isinstance(error, BaseException) and not hasattr(sys, "ps1") else None


def worded(error: BaseException) -> str:
    """Return a predicate about a worker that raised `error`: `"raised OSError: disk full"`."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a user's class may fail in __str__
        text = ""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return f"raised {type(error).__name__}{text and ': '}{text}"


def _uncaught() -> object:
    """Return the exception that Python last reported as uncaught."""
    return getattr(sys, "last_value", None)


def _with_wrappers(code: types.CodeType) -> set[types.CodeType]:
    """Return the code of a function on the stack, and of its direct callers in the same package.

    These callers are needed because Keras' wrapper of `fit` removes `fit` from tracebacks.
    """
    codes = {code}
    package = None
    for frame, _ in traceback.walk_stack(sys._getframe()):  # pyright: ignore[reportPrivateUsage]
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code is code:
            package = name
        elif package is not None:
            if name != package:
                break
            codes.add(frame.f_code)
    return codes
