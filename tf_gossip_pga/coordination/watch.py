"""HOW LONG to wait: deadlines of exchanges, and what is said of those who keep them waiting.

TensorFlow's collectives wait in silence, for ever, and their own timeouts cost two threads each.
One thread of ours looks after the exchange under way: when it lasts long the others are asked,
through `channel`, where they are, and when it has lasted too long it is aborted.
"""

import collections
import contextlib
import dataclasses
import re
import statistics
import threading
import time
import traceback

import tensorflow as tf

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import channel as channel_lib
from tf_gossip_pga.errors import ExchangeBroken, WorkerLost  # noqa: F401 (until its users import it)

# How long a wait may last before the others are asked about it, and how often, and before it is
# worth a word: so many of the steps that this rank has measured, at most a tenth of the timeout,
# but at least so many seconds.
_PATIENCE_STEPS = 20
_PATIENCE_S = 5.0

# How long a worker may give no sign of life.
_SILENT_S = 60.0

# How long a rank that has lost another stays, for those that ask: if it ended at once, they would
# take it for the one to blame.
_LINGER_S = 4.0

# What TensorFlow raises where another process ends or the way to it is cut; the rest is our fault.
_OF_THE_NETWORK = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnknownError,
)

_NOBODY_LATE = "all ranks have reached it, so that the network between them is slow or cut"


@dataclasses.dataclass
class _Wait:
    """An exchange under way. Moments are those of `time.monotonic`."""

    doing: str
    timeout_s: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    ask_at: float = 0.0  # when to ask the others again
    say_at: float = 0.0
    silent_since: float = 0.0  # a worker that it waits for; 0: none
    findings: channel_lib.Findings | None = None  # once the watch has given it up


class Watch:
    """Looks after what this process waits for.

    Args:
      rank: this worker's.
      size: number of workers at the start.
      channel: what the others are asked through.
      status: what others are told of this process.
      abort: called with a reason, makes every exchange under way and every later one fail.

    Attributes:
      called_off: why no exchange may begin, or None.
    """

    def __init__(self, rank: int, size: int, channel, status: channel_lib.Status, abort):
        self._rank = rank
        self._size = size
        self._channel = channel
        self._status = status
        self._abort = abort
        self._lock = threading.Lock()  # an abort must meet the wait that it is for
        self._wait: _Wait | None = None
        self.called_off: str | None = None  # why no exchange may go on
        self._step_s: collections.deque[float] = collections.deque(maxlen=50)
        self._stepped = (0, 0.0)  # the last step, and when it was completed
        self._bereaved: set[int] = set()  # ranks that have lost another, and end
        channel.handlers["lost"] = self._hear_of_loss
        threading.Thread(target=self._run, name="gossip-deadline", daemon=True).start()

    def at(self, where: str, step: int):
        """See `Collectives.at`."""
        last, since = self._stepped
        if step != last:
            now = time.monotonic()
            if step == last + 1 and last:
                self._step_s.append(now - since)
            self._stepped = (step, now)
        self._status.at(where, step)

    @contextlib.contextmanager
    def deadline(self, doing: str, timeout_s: float):
        """Runs exchanges under a deadline; their failures come out as `ExchangeBroken`."""
        wait = _Wait(doing, timeout_s)
        with self._lock:
            if self.called_off:
                raise ExchangeBroken(doing, self.called_off)
            self._wait = wait
        self._status.wait(doing)
        try:
            yield
        except tf.errors.OpError as error:
            aborted = re.search("aborted by: (.*)", error.message)
            if not aborted and not isinstance(error, _OF_THE_NETWORK):
                raise
            reason = (aborted[1] if aborted else error.message).partition(" [type.")[0]
            peer = _peer(error.message)
            raise ExchangeBroken(doing, reason.strip(" .:"), peer, wait.findings) from None
        finally:
            with self._lock:
                self._wait = None
            self._status.arrive()

    def call_off(self, reason: str):
        """Breaks the exchange under way, if any, and every later one until `resume`."""
        with self._lock:
            if self.called_off is None:
                self.called_off = reason
                if self._wait is not None:
                    self._abort(reason)

    def resume(self):
        """Lets exchanges begin again."""
        with self._lock:
            self.called_off = None
            self._bereaved.clear()

    def text_of_loss(self, broken: ExchangeBroken) -> str:
        """What to say when an exchange has failed for good; lingers for those that ask why."""
        self._channel.ask_all("lost", rank=self._rank)
        findings, reason = broken.findings, broken.reason
        if findings is None:
            findings = self._channel.findings(self._bereaved)
            for _ in range(3):
                if not findings.silent:
                    break
                time.sleep(1.0)  # one that is ending closes its sockets one after the other
                findings = self._channel.findings(self._bereaved)
            reason = findings.text or reason
        time.sleep(_LINGER_S)
        return (
            f"Rank {self._rank} of {self._size} lost "
            f"{findings.names or broken.peer or 'another worker'} at {broken.doing}: {reason}.\n"
            "Look at the other workers' output for the cause (did each of them call fit with "
            "GossipPGA?), then start the job again. Where a worker was only slow, give every "
            "GossipPGA a longer timeout_s. With on_worker_lost='continue' those left go on."
        )

    def _hear_of_loss(self, request: dict) -> dict:
        """Another rank has lost one: no patience from now on, to find it while all still answer."""
        self._bereaved.add(request["rank"])
        return {}

    def _patience_s(self, timeout_s: float) -> float:
        """How long a wait that may last so long is nothing to speak of."""
        if self._bereaved:
            return 0.0
        if not self._step_s:
            return _PATIENCE_S
        longest_s = _PATIENCE_STEPS * statistics.median(self._step_s)
        return max(_PATIENCE_S, min(longest_s, timeout_s / 10))

    def _run(self):
        """Looks after what waits for long. One thread a process, asleep nearly always."""
        while True:
            time.sleep(0.5)
            wait = self._wait
            if wait:
                try:
                    self._look_after(wait)
                except Exception:  # without this thread a hang would be for ever
                    traceback.print_exc()

    def _look_after(self, wait: _Wait):
        """Asks whom an exchange waits for, if it does so for long; says it, or gives up."""
        now = time.monotonic()
        overdue = now > wait.started + wait.timeout_s
        if not overdue and now < max(wait.ask_at, wait.started + self._patience_s(wait.timeout_s)):
            return
        findings = self._channel.findings(self._bereaved)
        wait.silent_since = (wait.silent_since or now) if findings.silent else 0.0
        silent = wait.silent_since and now > wait.silent_since + _SILENT_S
        found = findings.text or _NOBODY_LATE
        if overdue or findings.never or silent:
            reason = f"no answer within {wait.timeout_s:g} s; {found}" if overdue else found
            with self._lock:
                if self._wait is wait:  # they may have come meanwhile
                    wait.findings = findings
                    self._abort(reason)
        elif now > wait.say_at and self._wait is wait:
            waited_s = now - wait.started
            say(f"Rank {self._rank} has waited {waited_s:.0f} s at {wait.doing}: {found}.")
            wait.say_at = now + waited_s  # when it has waited twice as long
        wait.ask_at = now + min(self._patience_s(wait.timeout_s), _SILENT_S / 4)


class Waiting:
    """A wait that begins now, and when to speak of it: at first, then when it has doubled.

    Args:
      first_s: seconds before it is worth a word.
    """

    def __init__(self, first_s: float):
        self._began = time.monotonic()
        self._say_at = self._began + first_s

    def due(self) -> float | None:
        """Seconds waited, where that is to be said now."""
        now = time.monotonic()
        if now <= self._say_at:
            return None
        self._say_at = now + (now - self._began)
        return now - self._began


def _peer(message: str) -> str | None:
    task = re.search(r"Error reported from /job:(\w+)/task:(\d+)", message)
    task = task or re.search(r"target /job:(\w+)/replica:0/task:(\d+)", message)
    return f"the {task[1]} of index {task[2]}" if task else None


def say(text: str):
    """Report one line to the user."""
    logger.info(text)
