"""Merge the output of several workers for one terminal or file; `launch` feeds it."""

import codecs
import collections
import re
from collections.abc import Callable

_LAST_LINES = 20

# What TensorFlow and its libraries print at start-up, in the formats of absl and of TensorFlow.
_NOISE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog"
    r"|[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\]"
    r"|[IW]0000 00:00:"
    r"|\d{4}-\d\d-\d\d [\d:.]+: [IW] (tensorflow|external|xla)"
    r"|To enable the following instructions:"
    r"|.* failed call to cuInit"
    r"|.* oneDNN supports DT_INT64 only on platforms"
)
# Printed by the runtimes of the other workers when one has ended, well or not. Kept for reports.
_RUNTIME_ERROR = re.compile(
    r"(E\d{4}|\d{4}-\d\d-\d\d) .*(base_collective_executor|coordination_service\w*)\.cc:\d+\]"
    r"|Additional GRPC error information from|:UNKNOWN:Error received from peer"
    r"|/job:\w+/replica:\d+/task:\d+$|The tasks have crashed\. Check the task logs"
)
# A warning, and the source line that Python prints after it.
_WARNING = re.compile(r".*Warning: |WARNING:|  \S.*\($|  warnings\.warn\(")
# What colors text on a terminal, or moves its cursor.
_ESCAPE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


class Screen:
    """Merge the workers' output: whole lines, each with its rank, and rank 0's progress bar.

    Args:
      write: receives the merged output, piece by piece.
      verbose: show everything; otherwise start-up messages, runtime errors and warnings that
        another rank has printed already are left out.
      terminal: whether a terminal shows it. Elsewhere only whole lines are written, without colors:
        of a progress bar its last state.

    Attributes:
      last_lines: the end of each rank's output with its runtime errors, for failure reports.
    """

    def __init__(self, write: Callable[[str], object], verbose: bool, terminal: bool = True):
        self._write = write
        self._verbose = verbose
        self._terminal = terminal
        # A read may end within a character.
        self._decoders: dict[int, codecs.IncrementalDecoder] = collections.defaultdict(
            lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
        )
        self._partial: dict[int, str] = collections.defaultdict(str)
        self._drawn = ""  # rank 0's unfinished line as it stands on the terminal
        self._seen: dict[str, int] = {}  # a warning -> the rank that printed it first
        self.last_lines: dict[int, collections.deque[str]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_LAST_LINES)
        )

    def notice(self, text: str) -> None:
        """Show a line of the launcher's own."""
        self._write(f"{text}\n")

    def feed(self, rank: int, data: bytes) -> None:
        """Take in what a rank has printed."""
        text = (self._partial[rank] + self._decoders[rank].decode(data)).replace("\r\n", "\n")
        *lines, rest = text.split("\n")
        # Before a line is shown, after which SIGTERM may leave this function by an exception. Only
        # the last state of a progress bar is kept: an epoch may draw it ten thousand times.
        self._partial[rank] = rest[max(0, rest.rstrip("\r").rfind("\r")) :]
        for line in lines:
            self._line(rank, line)
        if rank == 0:
            self._redraw(rest)

    def close(self, rank: int) -> None:
        """Show a last line that no newline ended."""
        if self._partial[rank]:
            self._line(rank, self._partial.pop(rank))

    def _line(self, rank: int, line: str):
        line = _last_state(line)
        if not self._verbose and _NOISE.match(line):
            return
        self.last_lines[rank].append(line)
        if not self._verbose and self._is_repetition(rank, line):
            return
        if not self._terminal:
            line = _ESCAPE.sub("", line)
        self._clear()
        self._write(f"[{rank}] {line}\n")
        if rank != 0:
            self._redraw(self._partial[0])

    def _is_repetition(self, rank: int, line: str) -> bool:
        """Return whether a line only repeats what another rank or the launcher reports."""
        if _RUNTIME_ERROR.match(line):
            return True
        return bool(_WARNING.match(line)) and self._seen.setdefault(line, rank) != rank

    def _redraw(self, rest: str):
        state = _last_state(rest)
        if not self._terminal or state == self._drawn or "\r" not in rest:
            return
        self._clear()
        self._write(f"[0] {state}")
        self._drawn = state

    def _clear(self):
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = ""


def _last_state(line: str) -> str:
    """Return what remains of a line that was overwritten in place, such as a progress bar."""
    return line.rstrip("\r").rpartition("\r")[2].replace("\b", "")
