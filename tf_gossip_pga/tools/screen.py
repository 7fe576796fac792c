"""Merge the output of several workers into one stream, for `tf_gossip_pga.launch`."""

import codecs
import collections
import re
from collections.abc import Callable

_LAST_LINES = 20

# Lines with more characters are not matched against the patterns below.
_LONGEST = 10_000

# Start-up messages of TensorFlow and its libraries, in the formats of absl and TensorFlow.
_NOISE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog"
    r"|[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\]"
    r"|[IW]0000 00:00:"
    r"|\d{4}-\d\d-\d\d [\d:.]+: [IW] (tensorflow|external|xla)"
    r"|To enable the following instructions:"
    r"|.* failed call to cuInit"
    r"|.* oneDNN supports DT_INT64 only on platforms"
    r"|E\d{4} .*Unable to register cu(DNN|FFT|BLAS) factory"
)
# TensorFlow prints these lines in the other workers when a worker ends, normally or not. The
# lines are not shown unless `verbose` is true, but are always kept for failure reports.
_RUNTIME_ERROR = re.compile(
    r"(E\d{4}|\d{4}-\d\d-\d\d) .*"
    r"(base_collective_executor|coordination_service\w*|ring_\w+)\.cc:\d+\]"
    r"|Additional GRPC error information from|:UNKNOWN:Error received from peer"
    r"|/job:\w+/replica:\d+/task:\d+$|The tasks have crashed\. Check the task logs"
    r"|The error could be from a previous operation\. Restart your program to reset"
)
# A warning, and the source line that Python prints below it.
_WARNING = re.compile(r".*Warning: |WARNING:|  \S.*\($|  warnings\.warn\(")
# Terminal sequences that color text or move the cursor.
_ESCAPE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


class Screen:
    """Merge the workers' output: complete lines prefixed with the rank, and rank 0's progress bar.

    Args:
      write: receives the merged output piece by piece.
      verbose: whether to show everything. Otherwise, omit TensorFlow's start-up messages, the
        errors that TensorFlow prints because another worker has ended, and warnings that another
        rank has already printed.
      terminal: whether the output goes to a terminal. Otherwise, write only complete lines without
        colors, and only the last state of a progress bar.

    Attributes:
      last_lines: the last 20 lines of each rank, for failure reports. They include the errors of
        TensorFlow that are not shown.
    """

    def __init__(self, write: Callable[[str], object], verbose: bool, terminal: bool = True):
        self._write = write
        self._verbose = verbose
        self._terminal = terminal
        # A read may end in the middle of a character.
        self._decoders: dict[int, codecs.IncrementalDecoder] = collections.defaultdict(
            lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
        )
        self._partial: dict[int, _Unfinished] = collections.defaultdict(_Unfinished)
        self._waiting: collections.deque[tuple[int, str]] = collections.deque()  # rank, line
        self._drawn = ""  # rank 0's unfinished line as the terminal shows it
        self._seen: dict[str, int] = {}  # warning -> first rank that printed it
        self.last_lines: dict[int, collections.deque[str]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_LAST_LINES)
        )

    def notice(self, text: str) -> None:
        """Show a line from the launcher itself."""
        self._write(f"{text}\n")

    def add(self, rank: int, data: bytes) -> None:
        """Store a piece of a rank's output until the next `show`."""
        *lines, rest = self._decoders[rank].decode(data).split("\n")
        partial = self._partial[rank]
        if lines:
            lines[0] = partial.take() + lines[0]
        partial.add(rest)
        self._waiting.extend((rank, line) for line in lines)

    def show(self) -> None:
        """Show what is stored. If an exception ends this, a later call shows the rest."""
        while self._waiting:
            self._line(*self._waiting.popleft())
        self._redraw()

    def close(self, rank: int) -> None:
        """Show a rank's last line if it does not end with a newline."""
        self.show()
        if rest := self._partial[rank].take():
            self._line(rank, rest)

    def _line(self, rank: int, line: str):
        line = _last_state(line)
        if not self._verbose and len(line) <= _LONGEST and _NOISE.match(line):
            return
        self.last_lines[rank].append(line)
        if not self._verbose and self._is_repetition(rank, line):
            return
        if not self._terminal:
            line = _ESCAPE.sub("", line)
        self._clear()
        self._write(f"[{rank}] {line}\n")
        if rank != 0:
            self._redraw()

    def _is_repetition(self, rank: int, line: str) -> bool:
        """Return whether a line only repeats a report of another rank or of the launcher."""
        if len(line) > _LONGEST:
            return False
        if _RUNTIME_ERROR.match(line):
            return True
        return bool(_WARNING.match(line)) and self._seen.setdefault(line, rank) != rank

    def _redraw(self):
        state = self._partial[0].state()
        if not self._terminal or state is None or state == self._drawn:
            return
        self._clear()
        self._write(f"[0] {state}")
        self._drawn = state

    def _clear(self):
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = ""


class _Unfinished:
    """An unfinished line, assembled from any number of pieces in linear time.

    Only the last state of a progress bar is kept, because an epoch may draw it ten thousand times.
    """

    def __init__(self):
        self._pieces: list[str] = []
        self._is_bar = False

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if "\r" in text:
            whole = "".join(self._pieces)
            self._pieces = [whole[max(0, whole.rstrip("\r").rfind("\r")) :]]
            self._is_bar = True

    def take(self) -> str:
        """Return the line and clear it."""
        whole = "".join(self._pieces)
        self._pieces, self._is_bar = [], False
        return whole

    def state(self) -> str | None:
        """Return the visible state of the line if it is a progress bar, else None."""
        return _last_state("".join(self._pieces)) if self._is_bar else None


def _last_state(line: str) -> str:
    """Return the visible part of a line that was overwritten in place, e.g. a progress bar."""
    return line.rstrip("\r").rpartition("\r")[2].replace("\b", "")
