"""Start an examiner on a host, send requests to it, and end it.

An examiner is a process that measures on its host for the doctor (see `examiner`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tf_gossip_pga.launch.doctor.measurements import ENDED, FAILED, SILENT, Trouble

# Seconds that an examiner may need.
START_S = 40.0  # to connect, start Python and answer the first request
ANSWER_S = 30.0  # to answer any other request
_GRACE_S = 2.0  # to end

_LAST_LINES = 10  # how many lines of an examiner's standard error to keep for messages


class NoAnswerError(RuntimeError):
    """Raised if a request has no result.

    Attributes:
      trouble: why there is no result.
    """

    def __init__(self, trouble: Trouble):
        super().__init__(trouble.words)
        self.trouble = trouble


@dataclasses.dataclass
class Answer:
    """Hold an examiner's answer.

    Attributes:
      result: what the request has returned.
      sent: when the request was sent, by `time.time()`.
      received: when the answer was received, by `time.time()`.
    """

    result: Any
    sent: float
    received: float


class Contact:
    """Start an examiner, and talk to it.

    The process that starts the examiner gets an operating-system session of its own, so that Ctrl-C
    reaches only the doctor. The doctor then ends all examiners.

    Args:
      command: program and arguments that start the examiner.
    """

    def __init__(self, command: Sequence[str]):
        # When each answer was received, and the answer; None at the end of the examiner's output.
        self._answers: queue.SimpleQueue[tuple[float, dict[str, Any] | None]] = queue.SimpleQueue()
        self._sent: list[tuple[str, float]] = []  # each request's name, and its time
        self._words: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._words.append(f"{command[0]}: {error.strerror}")
            self._answers.put((0.0, None))
            return
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in (
                (self._read_answers, self._process.stdout),
                (self._read_words, self._process.stderr),
            )
        ]
        for reader in self._readers:
            reader.start()

    def send(self, request: str, **arguments: Any) -> int:
        """Send a request, and return its number.

        Args:
          request: name of a function of `Examiner`.
          **arguments: its arguments.
        """
        number = len(self._sent)
        self._sent.append((request, time.time()))
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError, ValueError):  # ended; `receive` reports it
                print(
                    json.dumps({"id": number, "do": request, **arguments}),
                    file=self._process.stdin,
                    flush=True,
                )
        return number

    def receive(self, number: int, ends: float) -> Answer:
        """Wait for the answer to the last request, and return it.

        Args:
          number: the number of the last request, from `send`.
          ends: when to stop waiting, by `time.monotonic()`.

        Raises:
          NoAnswerError: the request has failed, the time is up, or the process has ended.
        """
        request, sent = self._sent[number]
        while True:
            try:
                received, answer = self._answers.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                raise NoAnswerError(Trouble(SILENT, request, self._last_words())) from None
            if answer is None:
                self._answers.put((received, None))  # so that the next call finds it too
                raise NoAnswerError(self._ended(request))
            if answer["id"] == number:
                if "error" in answer:
                    raise NoAnswerError(Trouble(FAILED, request, str(answer["error"])))
                return Answer(answer.get("result"), sent, received)

    def _ended(self, request: str) -> Trouble:
        """Describe how the process has ended, after waiting for the end of its standard error."""
        if not self._process:
            return Trouble(ENDED, request, self._last_words())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self._readers[1].join(_GRACE_S)
        return Trouble(ENDED, request, self._last_words(), self._process.returncode)

    def _last_words(self) -> str:
        return "\n".join(self._words)

    def _read_answers(self, stream: Iterable[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                received = time.time()
                # Ignore lines that are no answers, such as those that a login script prints.
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    if isinstance(answer, dict) and "id" in answer:
                        self._answers.put((received, answer))
        self._answers.put((time.time(), None))

    def _read_words(self, stream: Iterable[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._words.extend(line.rstrip() for line in stream)

    def hang_up(self) -> None:
        """Close the examiner's input, which ends it."""
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self, ends: float) -> None:
        """Wait until the process has ended. When the time is up, send SIGTERM, then SIGKILL.

        Args:
          ends: when to stop waiting, by `time.monotonic()`.
        """
        if not self._process:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, ends - time.monotonic()))
                break
            self._signal(number)
            ends = time.monotonic() + _GRACE_S
        self._process.wait()
        for reader in self._readers:
            reader.join(_GRACE_S)
        for reader, stream in zip(
            self._readers, (self._process.stdout, self._process.stderr), strict=True
        ):
            # A process outside of the process group may still hold the other end of the stream.
            if stream and not reader.is_alive():
                stream.close()

    def _signal(self, number: int) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def end_all(contacts: Iterable[Contact]) -> None:
    """End all examiners."""
    contacts = list(contacts)
    for each in contacts:
        each.hang_up()
    ends = time.monotonic() + _GRACE_S
    for each in contacts:
        each.end(ends)
