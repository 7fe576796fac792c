"""Run one process's exchanges, for a single worker or for a cluster with fixed members.

A session holds what the exchanges need: the collective ops, the deadlines, the watchdog, the
background thread for overlapped gossips, and the instance keys (see `group_ops`). `ElasticSession`
supports members that change. All sessions have the same interface.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import types
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import tensorflow as tf

from tf_gossip_pga.cluster import gpus
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.coordination.watchdog import Watchdog
from tf_gossip_pga.errors import ExchangeBroken, WorkerLost
from tf_gossip_pga.exchange import failures, gather, group_ops
from tf_gossip_pga.exchange import transport as transport_lib
from tf_gossip_pga.exchange.transport import RING, Transport

# The result of `run` for an exchange that the other ranks completed without this rank.
MISSED = object()


class SoloSession:
    """The session of a single worker, which exchanges nothing.

    Args:
      cluster: this process's place among the workers.
      timing: the deadlines of the control plane. Default: `Timing()`.

    Attributes:
      cluster: this process's place among the workers. `initialize` adds a strategy to it.
      ops: the collective ops of the current view.
      transport: the transport of exchanges.
      communication: the transport that the script requests, one of `transport.CHOICES`.
        `initialize` sets it.
      timing: the deadlines of the control plane.
      is_joining: whether this worker is joining and not a member yet.
      has_exchanged: whether this process has exchanged anything other than barriers.
      all_workers: the `tf.distribute.MultiWorkerMirroredStrategy` that started TensorFlow's server.
        None for a single worker, and for a worker that joined a running job.
    """

    def __init__(self, cluster: Cluster, timing: Timing | None = None):
        """Store the arguments without exchanging anything."""
        self.cluster = cluster
        self.is_joining = False
        self.has_exchanged = False
        self.all_workers: tf.distribute.Strategy | None = None
        self.timing = timing or Timing()
        self.ops: group_ops.Ops = group_ops.LoneOps()
        self.transport = RING
        self.communication = transport_lib.AUTO

    @property
    def view(self) -> View:
        """Return the current view: its number and its members."""
        return View(0, (self.cluster.rank,))

    @property
    def size(self) -> int:
        """Return the number of members."""
        return self.ops.size

    @property
    def place(self) -> int:
        """Return this rank's index among the members, which is its node in topologies."""
        return self.ops.place

    def at(self, where: str, step: int):
        """Record what this rank is doing, for workers that wait for it.

        Args:
          where: what this rank is doing, as words that can follow "It is" in a message.
          step: number of completed steps.
        """

    def enter_fit(self, code: types.CodeType):
        """Record that this thread is training until the function with this code object returns."""

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer requests."""
        return []

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return the values of all members, in rank order.

        Args:
          value: this rank's value, JSON-serializable.
          doing: name of the exchange in log and error messages, e.g. `"the start of training"`.
          timeout_s: seconds to wait for the other members before raising `WorkerLost`.
        """
        return [value]

    def reserve_keys(self, count: int, doing: str, timeout_s: float) -> int:
        """Reserve `count` unused instance keys. Return the first, which is equal on all ranks."""
        return 0

    def waiting(self, doing: str, timeout_s: float) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that runs exchanges under a deadline. See `FixedSession`."""
        return contextlib.nullcontext()

    def begin(self, exchange: Callable[[], Any], doing: str, timeout_s: float):
        """Start `exchange()` in the background; `finish` returns its result.

        A single worker does not call `exchange`.
        """

    def finish(self) -> Any:
        """Return the result of the background exchange, or None if there is none."""
        return None

    def heard_all(self):
        """Record that an exchange with all members has just succeeded."""

    def run(self, exchange: Callable[[], Any]) -> Any:
        """Run the next exchange of the sequence, which all members run in the same order."""
        return exchange()


class FixedSession(SoloSession):
    """The session of a worker in a cluster with fixed members. A loss ends training.

    Args:
      cluster: this process's place among the workers.
      transport: the transport of exchanges.
      channel: sends requests to the other workers.
      status: what this process answers to requests of the other workers.
      watchdog: monitors the exchange in progress.
      timing: the deadlines of the control plane. Default: `Timing()`.
    """

    def __init__(
        self,
        cluster: Cluster,
        transport: Transport,
        channel: Channel,
        status: Status,
        watchdog: Watchdog,
        timing: Timing | None = None,
    ):
        """Build the ops of the current view without exchanging anything."""
        super().__init__(cluster, timing)
        self.transport = transport
        self._channel = channel
        self._status = status
        self._watchdog = watchdog
        self._background = concurrent.futures.ThreadPoolExecutor(1, "gossip")
        self._under_way: concurrent.futures.Future | None = None
        self._use_view()

    @property
    def view(self) -> View:
        """Return view 0, which contains all workers."""
        return View(0, tuple(range(self.cluster.size)))

    def use_transport(self, hint: str):
        """Use the transport of the members that this joining worker joins.

        Args:
          hint: `Transport.hint` of their transport.

        Raises:
          ValueError: this worker requests another transport, or has no GPU for NCCL.
        """
        self.transport = transport_lib.of_members(
            hint, self.cluster.rank, self.communication, gpus.own_gpu()
        )

    def _use_view(self):
        """Build the ops and gathers of the current members, with new instance keys."""
        self.ops = group_ops.for_view(
            self.view, self.cluster.rank, self.cluster.size, self.transport
        )
        self._watchdog.patience_s = (
            self.timing.nccl_patience_s if self.transport.is_nccl else self.timing.patience_s
        )
        self._gather = gather.Gatherer(self.ops, self.cluster.rank)
        self._next_key = group_ops.FIRST_FREE_KEY

    def at(self, where: str, step: int):
        """Record what this rank is doing, for workers that wait for it. See `SoloSession.at`."""
        self._watchdog.at(where, step)

    def enter_fit(self, code: types.CodeType):
        """Record that this thread is training until the function with this code object returns."""
        self._status.enter_fit(code)

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer requests, and so could not join a new view."""
        return self._channel.unreachable()

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return the values of all members, in rank order. See `SoloSession.gather`.

        Raises:
          RuntimeError: on every rank, if `cluster.gather` or `cluster.barrier` on one rank
            coincides with a different exchange on another.
          WorkerLost: see `waiting`.
        """
        if self.ops.size == 1:  # the last surviving worker
            return [value]
        self.has_exchanged |= doing != "cluster.barrier"
        with self.waiting(doing, timeout_s):
            everyone = self._gather([doing, value])
        self.heard_all()
        _check_that_calls_meet(self.view.members, [each for each, _ in everyone])
        return [each for _, each in everyone]

    def reserve_keys(self, count: int, doing: str, timeout_s: float) -> int:
        """Reserve `count` unused instance keys. Return the first, which is equal on all ranks."""
        first = max(self.gather(self._next_key, doing, timeout_s))
        self._next_key = first + count
        return first

    @contextlib.contextmanager
    def waiting(self, doing: str, timeout_s: float) -> Generator[None, None, None]:
        """Run exchanges under a deadline.

        First wait for any background exchange, and raise its error here, because all ranks run
        exchanges in the same order.

        Args:
          doing: name of the exchange, for log and error messages.
          timeout_s: seconds until the watchdog aborts the exchange.

        Raises:
          WorkerLost: the exchange failed, and training cannot continue.
          ViewChanged: the exchange failed, and the surviving workers formed a new view.
          TrainingFinished: the exchange failed, but other workers have completed training.
        """
        if self.ops.size == 1:  # the last surviving worker has no one to wait for
            yield
            return
        try:
            if self._under_way is not None:
                self._under_way.result()
            with self._deadline(doing, timeout_s):
                yield
        except ExchangeBroken as broken:
            self._on_broken(broken)

    def begin(self, exchange: Callable[[], Any], doing: str, timeout_s: float):
        """Start `exchange()` in the background; `finish` returns its result.

        Args:
          exchange: the exchange, which is called in another thread.
          doing: name of the exchange, for log and error messages.
          timeout_s: seconds until the watchdog aborts the exchange.
        """

        def run():
            with self._deadline(doing, timeout_s):
                return exchange()

        if self._under_way is not None:
            self.finish()
        self._under_way = self._background.submit(run)

    def finish(self) -> Any:
        """Wait for the background exchange, and return its result.

        Returns:
          The result, or None if there is no such exchange, for example because a change of the view
          discarded it.

        Raises:
          WorkerLost, ViewChanged, TrainingFinished: see `waiting`.
        """
        if self._under_way is None:
            return None
        try:
            return self._under_way.result()
        except ExchangeBroken as broken:
            self._on_broken(broken)

    def heard_all(self):
        """Record that an exchange with all members has just succeeded."""
        self._channel.heard_all()

    @contextlib.contextmanager
    def _deadline(self, doing: str, timeout_s: float) -> Generator[None, None, None]:
        """Run an exchange under the watchdog. Convert TensorFlow's errors to `ExchangeBroken`."""
        with self._watchdog.deadline(doing, timeout_s) as wait:
            try:
                yield
            except tf.errors.OpError as error:
                broken = failures.broken(error, doing, wait.findings)
                if broken is None:
                    raise
                raise broken from None

    def _on_broken(self, broken: ExchangeBroken) -> NoReturn:
        """Raise the exception by which a broken exchange ends training."""
        advice = "With on_worker_lost='continue' the surviving workers continue."
        if not self._status.tell().in_fit:
            self._watchdog.give_up(broken.reason)
            advice = (
                "If the script catches this error between two fits, its next fit with "
                "on_worker_lost='continue' trains with the surviving workers."
            )
        self._end(broken, advice)

    def _end(self, broken: ExchangeBroken, advice: str = "") -> NoReturn:
        raise WorkerLost(f"{self._watchdog.text_of_loss(broken)} {advice}".rstrip()) from None


def _check_that_calls_meet(members: tuple[int, ...], doings: list[str]):
    """Raise if `cluster.gather` or `cluster.barrier` on a rank meets a different exchange."""
    if len(set(doings)) > 1 and any(doing.startswith("cluster.") for doing in doings):
        places = "; ".join(
            f"rank {rank} is at {doing}" for rank, doing in zip(members, doings, strict=True)
        )
        raise RuntimeError(
            f"The ranks are in different exchanges: {places}. Every rank must call cluster.gather "
            "and cluster.barrier at the same point of the script, and outside of fit."
        )
