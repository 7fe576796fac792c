"""Ask running workers whether they wait for others to start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from tf_gossip_pga.coordination import greetings

_PAUSE_S = 1.0  # time between two rounds of questions


class Inquiry:
    """Ask on a thread of its own, because resolving a name may take any time.

    Args:
      greeting: function that returns the first bytes that the worker of a rank sends, as
        `roll_call_sockets.greeting_at` does.
    """

    def __init__(self, greeting: Callable[[int], bytes | None]):
        self._greeting = greeting
        self._ranks: tuple[int, ...] = ()
        self._waits = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def any_waits(self, ranks: Iterable[int]) -> bool:
        """Return whether any of these ranks was still waiting for other ranks when last asked.

        A thread asks the ranks again and again. The first call starts this thread, and returns
        False, because no rank has answered yet.

        Args:
          ranks: ranks of the running workers.
        """
        self._ranks = tuple(ranks)
        if self._thread is None:
            self._thread = threading.Thread(target=self._ask, name="inquiry", daemon=True)
            self._thread.start()
        return self._waits

    def close(self) -> None:
        """Ask no more questions."""
        self._over.set()

    def _ask(self) -> None:
        while not self._over.is_set():
            found = [self._greeting(rank) for rank in self._ranks]
            self._waits = greetings.ROLL_CALL in found
            # A worker that joins a running job does not know whether the job has started.
            if not self._waits and any(map(_has_started, found)):
                return
            self._over.wait(_PAUSE_S)


def _has_started(greeting: bytes | None) -> bool:
    """Return whether a worker has answered, neither in the roll call nor in order to join."""
    return bool(greeting) and not greetings.JOINING.startswith(greeting or b"")
