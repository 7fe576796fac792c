"""Connect all workers before TensorFlow starts, or report who is missing and why.

When TensorFlow starts, it waits for the other workers silently and ignores signals. Every worker
therefore first listens on its own port, where TensorFlow's server will listen later, and repeatedly
calls all addresses in `TF_CONFIG` (`roll_call_sockets`).

A worker has met a rank once that rank has answered a call to its own address. In each call, both
workers send a report. A worker's report lists the missing ranks: those that the worker has not met
yet. The roll call is complete for a worker once it has met all others and their latest reports list
no missing rank. Before the worker leaves the roll call, it tells all others that the roll call is
complete. If this message is lost, the others can still tell that the worker has left, because
TensorFlow's server now listens at its address.

Workers do not authenticate here. Anyone who can reach the ports can prevent a job from starting.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination import roster
from tf_gossip_pga.coordination.reports import Waiting, named, shortened
from tf_gossip_pga.coordination.roll_call_sockets import Calls
from tf_gossip_pga.coordination.roster import Report
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost


class RollCall:
    """This worker's part in the roll call.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: this worker's rank.
      facts: facts that must be equal on all ranks, such as package versions, by name.
      gpu: name of the GPU that this worker can exchange from (see `Report` in `roster`). Default:
        none.
      timing: how often to call, and how long to wait.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        rank: int,
        facts: Mapping[str, str],
        timing: Timing | None = None,
        gpu: str = "",
    ) -> None:
        self._timing = timing or Timing()
        self._rank = rank
        self._calls = Calls(addresses, rank, gpu, facts, self._timing)
        self._seats, self._others = self._calls.seats, self._calls.others
        self._port_error: OSError | None = None
        self._trouble_since: float | None = None
        self._began: float | None = None  # when `run` was first called
        self._waiting = Waiting(self._timing.start_report_s)
        self._warned: set[str] = set()  # nonces of processes already reported by `_is_spare`

    def run(self) -> list[Report] | None:
        """Return the reports of all workers in rank order, once all workers have met each other.

        Return None if TensorFlow's server, or another gRPC server, listens at all other addresses,
        and this worker has met none of the other workers. These may then be training already, and
        may send a probe to this worker (see `joining`). If no probe arrives, the caller may call
        `run` again.

        Raises:
          RuntimeError: this worker's port is taken.
          ValueError: the workers differ in facts or addresses, or two processes have this rank.
          WorkerLost: another worker cannot start, or the roll call was not complete within
            `Timing.start_s`.
        """
        if self._began is None:
            self._began = time.monotonic()
            self._waiting = Waiting(self._timing.start_report_s, self._began)
        with self._calls.under_way() as self._port_error:
            return self._wait(self._began)

    def _wait(self, began: float) -> list[Report] | None:
        began_now = time.monotonic()
        while True:
            self._calls.changed.wait(self._timing.poll_s)
            self._calls.changed.clear()
            now = time.monotonic()
            self._count()
            # Call `_is_complete` first, so that `_trouble` checks every report that it has used.
            complete = self._is_complete()
            if error := self._trouble(now):
                raise error
            if complete and self._trouble_since is None:
                self._calls.tell(self._timing.closing_s, complete=True)
                return [self._calls.own if each is None else each for each in self._reports()]
            if now > began_now + self._timing.serve_s and self._others_serve():
                return None
            if now > began + self._timing.start_s:
                raise WorkerLost(
                    f"{self._waited(now - began)} The deadline has passed, so this worker ends."
                )

            if waited_s := self._waiting.due(now):
                logger.warning(self._waited(waited_s))

    def _reports(self) -> list[Report | None]:
        """Return the last report of each rank, or None for a rank that has never answered."""
        return [seat.report or seat.left for seat in self._seats]

    def _count(self) -> None:
        """Update the missing ranks in this worker's report."""
        missing = tuple(rank for rank in self._others if self._seats[rank].report is None)
        if missing != self._calls.own.missing:
            self._calls.say(missing=missing)

    def _is_complete(self) -> bool:
        others = [self._seats[rank] for rank in self._others]
        reports = [seat.report for seat in others if seat.report]
        return (
            (len(reports) == len(others) and not any(each.missing for each in reports))
            or any(each.complete for each in reports)
            or any(seat.left and (seat.left.complete or seat.is_server) for seat in others)
        )

    def _others_serve(self) -> bool:
        """Return whether servers listen at all other addresses, and this worker has met nobody."""
        # If it has met one that has left, the roll call is complete: the server may have begun to
        # listen since `_is_complete` looked.
        seats = [self._seats[rank] for rank in self._others]
        return all(seat.is_server and not seat.left for seat in seats)

    def _trouble(self, now: float) -> Exception | None:
        """Return the error that prevents this worker from starting, if any, and tell the others."""
        error = self._error()
        if error is None:
            self._trouble_since = None
            return None
        if self._trouble_since is None:
            self._trouble_since = now
        # Wait briefly for more reports: they may contain a third list of addresses, or the cause.
        if now < self._trouble_since + self._timing.start_settle_s:
            return None
        text = str(error)
        self._calls.tell(self._timing.start_tell_s, failure=text)
        if isinstance(error, WorkerLost):  # then the text is about another worker
            text = f"rank {self._rank} of {len(self._seats)} cannot start: {text}"
        return type(error)(f"{text[:1].upper()}{text[1:]}")

    def _error(self) -> Exception | None:
        own, heard = self._calls.own, self._calls.heard()
        if text := roster.difference([own, *heard]):
            return ValueError(text)
        here = self._seats[self._rank].report  # None if this machine cannot call itself
        address = own.addresses[self._rank]
        if self._port_error:
            return RuntimeError(
                f"rank {self._rank} cannot listen on {address}: {self._why_not(here)}"
            )
        if here and here.nonce != own.nonce:
            return ValueError(
                f"rank {self._rank} was started twice, or on the wrong machine: {here.process} "
                f"answers as rank {here.rank} at its address {address}, but this is {own.process}. "
                "Give each process the index of its own address."
            )
        for report in heard:
            if report.failure and not self._is_spare(report):
                return WorkerLost(report.failure)
        return None

    def _why_not(self, here: Report | None) -> str:
        """Return why this worker cannot listen."""
        error = self._port_error
        if error is None or error.errno != errno.EADDRINUSE:
            return f"{error}."
        who = f" Yes: {here.process} answers there as rank {here.rank}." if here else ""
        return f"address in use. Is rank {self._rank} already running?{who}"

    def _is_spare(self, report: Report) -> bool:
        """Return whether a process that has failed is superfluous: its rank has a running process.

        In this case, rank 0 also logs a warning, once for each such process.
        """
        met = self._calls.own if report.rank == self._rank else self._seats[report.rank].report
        if met is None or met.nonce == report.nonce:
            return False
        if self._rank == 0 and report.nonce not in self._warned:
            self._warned.add(report.nonce)
            logger.warning(
                f"A second process of rank {report.rank} ({report.process}) has ended, which does "
                f"not affect this job: {report.failure}"
            )
        return True

    def _waited(self, seconds: float) -> str:
        """Return a sentence that says how long this worker has waited, and for which ranks."""
        missing = [rank for rank in self._others if not self._seats[rank].report]
        texts = [f"rank {rank}: {self._absence(rank)}" for rank in missing]
        if not missing:
            texts = [
                f"rank {report.rank} has not reached {named(report.missing)}, but this worker has"
                for report in self._reports()
                if report and report.missing
            ]
        return (
            f"Rank {self._rank} of {len(self._seats)} has waited {seconds:.0f} s for the other "
            f"workers to start: {'; '.join(shortened(texts))}."
        )

    def _absence(self, rank: int) -> str:
        seat = self._seats[rank]
        text = seat.absence
        if seat.left:
            text = f"it answered earlier ({seat.left.process}), then ended or was cut off: {text}"
        elif seat.called_by:
            address = self._calls.own.addresses[rank]
            text += f" (but it has called this worker: is {address} correct?)"
        return text
