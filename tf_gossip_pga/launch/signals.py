"""Handle the signals that end a launcher or a doctor."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

# Handlers of signals. `interrupt` raises `KeyboardInterrupt`, as Ctrl-C does.
interrupt = signal.default_int_handler

# Let the signals that end a process by default end it as Ctrl-C does.
INTERRUPTING = {signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}


class Terminated(KeyboardInterrupt):
    """Raised when the launcher receives SIGTERM, so that it forwards the signal to the workers."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Raise `Terminated`. A second SIGTERM raises `KeyboardInterrupt`, which ends any wait."""
    signal.signal(signal.SIGTERM, interrupt)
    raise Terminated


@contextlib.contextmanager
def handled(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]],
) -> Iterator[None]:
    """Handle signals until the context ends. Then restore the previous handlers.

    Signals that this process ignores, as under nohup, remain ignored. Outside the main thread,
    where Python cannot handle signals, this has no effect.

    Args:
      handlers: the handler of each signal.

    Example:
      >>> with handled({signal.SIGTERM: interrupt}):
      ...     signal.getsignal(signal.SIGTERM) == interrupt
      True
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in handlers}
    before = {number: each for number, each in before.items() if each is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Delay the handlers of signals until the context ends, so that none raises within it.

    Outside the main thread, and for signals that Python does not handle, this has no effect. Do
    nothing in the context that may take long.
    """
    received: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
    try:
        for number in before:
            signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            before[number](number, None)
