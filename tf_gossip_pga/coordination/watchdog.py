"""Watch the exchange in progress: find which ranks it waits for, and report or abort it.

TensorFlow's collectives wait silently and forever. They accept a timeout, but each collective with
a timeout starts two threads. Instead, a single thread, the watchdog, watches the exchange in
progress. If the exchange takes long, the watchdog asks the other workers what they are doing
(`channel`). If the exchange takes too long, the watchdog aborts it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Generator

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import messages
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.departures import Departures
from tf_gossip_pga.coordination.diagnosis import Findings, diagnose
from tf_gossip_pga.coordination.messages import Message, Rank
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import ExchangeBroken, WorkerLost


@dataclasses.dataclass
class Wait:
    """An exchange in progress. All times are from `time.monotonic`.

    Attributes:
      doing: the exchange, e.g. `"the gossip of step 7"`.
      timeout_s: how many seconds it may take.
      started: when it began.
      ask_at: when to ask the other workers again.
      report_at: when to report the wait again.
      suspected_since: when a worker that the exchange waits for was first found not answering. None
        if all of them answer.
      findings: what the watchdog found before it aborted the exchange. None while the exchange
        runs, or if another worker noticed the failure first.
    """

    doing: str
    timeout_s: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    ask_at: float = 0.0
    report_at: float = 0.0
    suspected_since: float | None = None
    findings: Findings | None = None


class Watchdog:
    """Watch the exchange in progress of this process.

    Args:
      rank: this worker's rank.
      size: number of workers at the start.
      channel: sends requests to the other workers.
      status: this worker's status.
      timing: every deadline of the control plane.
      abort: function that takes a reason, and makes the exchange in progress and all later ones
        fail.

    Attributes:
      called_off: why no exchange may begin, or None.
      patience_s: minimum duration of an exchange before the watchdog asks about it.
      departures: the workers that have left `fit`, or ended, because of an exception.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        channel: Channel,
        status: Status,
        timing: Timing,
        abort: Callable[[str], None],
    ) -> None:
        self._rank = rank
        self._size = size
        self._channel = channel
        self._status = status
        self._timing = timing
        self._abort = abort
        self.patience_s = timing.patience_s
        self._lock = threading.Lock()  # an abort must not hit a later exchange
        self._wait: Wait | None = None
        self.called_off: str | None = None
        self._step_s: collections.deque[float] = collections.deque(maxlen=50)
        self._last_step = (0, 0.0)  # its number, and when it was completed
        self._ending: set[int] = set()  # ranks that are ending because they lost another rank
        self._closed = threading.Event()
        self.departures = Departures(rank, size, channel, status)
        channel.handlers["ending"] = self._note_ending
        threading.Thread(target=self._run, name="gossip-watchdog", daemon=True).start()

    def at(self, where: str, step: int) -> None:
        """Record what this process is doing now, and how long its last step took.

        Args:
          where: the activity, phrased to follow "It is" in a sentence.
          step: number of completed steps.
        """
        last, since = self._last_step
        if step != last:
            now = time.monotonic()
            if step == last + 1 and last:
                self._step_s.append(now - since)
            self._last_step = (step, now)
        self._status.at(where, step)

    @contextlib.contextmanager
    def deadline(self, doing: str, timeout_s: float) -> Generator[Wait, None, None]:
        """Run exchanges under a deadline, and abort them when the deadline passes.

        An aborted exchange raises an error of TensorFlow, which the caller converts to
        `ExchangeBroken`. The `findings` of the yielded `Wait` say why the watchdog aborted the
        exchange.

        Args:
          doing: the exchange, e.g. `"the gossip of step 7"`.
          timeout_s: how many seconds it may take.

        Raises:
          ExchangeBroken: exchanges have been called off.
          WorkerLost: an earlier exchange was not completed, and no new view can repair that.
        """
        wait = Wait(doing, timeout_s)
        completed = False
        with self._lock:
            if self._status.unfinished and not self._status.can_regroup:
                raise WorkerLost(self._text_of_unfinished(self._status.unfinished))
            if self.called_off:
                raise ExchangeBroken(doing, self.called_off)
            self._wait = wait
        self._status.wait(doing)
        try:
            yield wait
            completed = True
        finally:
            with self._lock:
                self._wait = None
            self._status.arrive(completed)

    def call_off(self, reason: str) -> None:
        """Abort the exchange in progress, if any, and refuse every later one until `resume`."""
        with self._lock:
            if self.called_off is None:
                self.called_off = reason
                if self._wait is not None:
                    self._abort(reason)

    def give_up(self, reason: str) -> None:
        """Call off all exchanges of this view after one of them failed between two `fit` calls.

        The script may catch the resulting exception. The next `fit` then forms a new view.
        """
        self._status.can_regroup = True
        self.call_off(reason)

    def resume(self) -> None:
        """Allow exchanges to begin again."""
        with self._lock:
            self.called_off = None
            self._status.unfinished = None
            self._status.can_regroup = False
            self._ending.clear()
            self.departures.forget()

    def text_of_loss(self, broken: ExchangeBroken) -> str:
        """Tell the others that this worker ends, and return the report of the exchange that failed.

        The caller raises `WorkerLost` with this report, which usually ends the process. Wait before
        returning, because the others would blame a process that ends immediately.
        """
        self._channel.ask_all("ending", rank=self._rank)
        findings, reason = broken.findings, broken.reason
        if findings is None:
            findings = self._settled_findings()
        if findings.text not in reason:  # TensorFlow gave `reason`, e.g. a closed socket
            reason = findings.text
        time.sleep(self._timing.linger_s)
        text = (
            f"Rank {self._rank} of {self._size} lost "
            f"{findings.names or broken.peer or 'another worker'} at {broken.doing}: {reason}.\n"
            "Check the other workers' output for the cause (did each of them call fit with "
            "GossipPGA?), then restart the job."
        )
        if findings.never:
            return text
        return f"{text} If a worker was only slow, give every GossipPGA a longer timeout_s."

    def _text_of_unfinished(self, doing: str) -> str:
        return (
            f"Rank {self._rank} of {self._size} can no longer exchange, because it did not "
            f"complete {doing}: it was interrupted there, or lost another worker. Restart all "
            "workers (in a notebook, restart each kernel), and resume from a checkpoint."
        )

    def close(self) -> None:
        """Stop the thread. Only tests call this. A process keeps its watchdog until it ends."""
        self._closed.set()

    def _findings(self) -> Findings:
        """Ask all other workers what they are doing. Return which of them keep this one waiting."""
        self.departures.heard = None
        answers = self._channel.ask_all("status")
        self.departures.learn(answers)
        return diagnose(
            answers,
            self._status.tell(),
            self._channel.last_heard_s(),
            ending=self._ending,
            departed=self.departures.known,
        )

    def _settled_findings(self) -> Findings:
        """Ask again while a worker is suspected. Return the findings that blame the fewest ranks.

        The first findings may blame too many ranks: an ending worker closes its sockets one by one,
        and a live worker on a busy machine may miss a request.
        """
        fewest = self._findings()
        for _ in range(self._timing.closing_checks):
            if not fewest.suspected:
                break
            time.sleep(self._timing.closing_s)
            findings = self._findings()
            if len(findings.ranks) <= len(fewest.ranks):
                fewest = findings
        return fewest

    def _note_ending(self, request: Message) -> Message:
        """Record that a rank is ending because it has lost another rank.

        The watchdog then asks the others immediately, while all of them still answer.
        """
        self._ending.add(messages.checked(request, self._size, rank=Rank)["rank"])
        return {}

    def _patience_s(self, timeout_s: float) -> float:
        """Return how many seconds an exchange may take before the watchdog asks about it."""
        if self._ending:
            return 0.0
        if not self._step_s:
            return self.patience_s
        longest_s = self._timing.patience_steps * statistics.median(self._step_s)
        return max(self.patience_s, min(longest_s, timeout_s / 10))

    def _run(self) -> None:
        """Watch the exchanges of this process, on a thread that sleeps most of the time."""
        while not self._closed.wait(self._timing.watch_every_s):
            try:
                self.departures.tell()
                if wait := self._wait:
                    self._look_after(wait)
            except Exception:  # without this thread a hang would last forever
                traceback.print_exc()

    def _look_after(self, wait: Wait) -> None:
        """If an exchange takes long, ask which ranks it waits for, and report or abort it."""
        now = time.monotonic()
        overdue = now > wait.started + wait.timeout_s
        if not overdue and not self._has_news(now):
            patient_until = wait.started + self._patience_s(wait.timeout_s)
            if now < max(wait.ask_at, patient_until):
                return
        findings = self._findings()
        silent = self._silent_too_long(wait, findings, now)
        if (overdue or silent) and findings.suspected and not findings.never:
            findings = self._settled_findings()
            silent = silent and findings.suspected  # the worker may have answered just now
        found = findings.text or self._text_of_all_there(findings.reached_s)
        if overdue or findings.never or silent:
            reason = f"no answer within {wait.timeout_s:g} s; {found}" if overdue else found
            with self._lock:
                if self._wait is wait:  # else the exchange has since completed
                    wait.findings = findings
                    self._abort(reason)
        elif self._is_to_report(wait, findings, now):
            waited_s = now - wait.started
            logger.info(f"Rank {self._rank} has waited {waited_s:.0f} s at {wait.doing}: {found}.")
            wait.report_at = now + waited_s  # when the wait has doubled
        wait.ask_at = now + min(self._patience_s(wait.timeout_s), self._timing.suspect_s / 4)

    def _has_news(self, now: float) -> bool:
        """Return whether a worker reported an exception at least `closing_s` ago.

        If that worker had completed the exchange, the delay lets the others complete it too.
        """
        heard = self.departures.heard
        return heard is not None and now > heard + self._timing.closing_s

    def _is_to_report(self, wait: Wait, findings: Findings, now: float) -> bool:
        """Return whether to report a wait. False if all ranks have just reached the exchange."""
        is_due = now > max(wait.report_at, wait.started + self._timing.patience_s)
        is_worth_a_line = bool(findings.text) or findings.reached_s > self._timing.patience_s
        return is_due and self._wait is wait and is_worth_a_line

    def _text_of_all_there(self, reached_s: float) -> str:
        text = f"all ranks have reached it, the last of them {reached_s:.0f} s ago"
        if reached_s < self._timing.suspect_s:  # they may still be tracing the function
            return text
        return f"{text}, so the network between them is slow or cut"

    def _silent_too_long(self, wait: Wait, findings: Findings, now: float) -> bool:
        if not findings.suspected:
            wait.suspected_since = None
            return False
        if wait.suspected_since is None:
            wait.suspected_since = now
        return now > wait.suspected_since + self._timing.suspect_s
