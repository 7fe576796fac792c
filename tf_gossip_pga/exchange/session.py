"""Run one process's exchanges: for a single worker, and for a cluster with fixed members.

A session owns what an exchange needs beside the ops themselves: the deadline and the watchdog, the
background thread of overlapped gossips, the instance keys. `ElasticSession` adds members that
change. Code that exchanges need not know which session it has.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import types
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import tensorflow as tf

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.coordination.watchdog import Watchdog
from tf_gossip_pga.errors import ExchangeBroken, WorkerLost
from tf_gossip_pga.exchange import failures, gather, group_ops
from tf_gossip_pga.exchange.runtime import Transport

# What `run` returns for an exchange that the other ranks have completed without this one.
MISSED = object()


class SoloSession:
    """The session of a single worker: every exchange is with itself.

    Args:
      cluster: this process's place.

    Attributes:
      cluster: this process's place; `initialize` sets it once more, with its devices.
      ops: the collective ops of the present view.
      timing: every deadline of the control plane.
      is_joining: whether this worker waits to be taken in by the others.
      has_exchanged: whether anything but barriers was exchanged.
      all_workers: the `tf.distribute.MultiWorkerMirroredStrategy` that started TensorFlow's server;
        None for a single worker, and for one that has joined others.
    """

    def __init__(self, cluster: Cluster, timing: Timing | None = None):
        self.cluster = cluster
        self.is_joining = False
        self.has_exchanged = False
        self.all_workers: tf.distribute.Strategy | None = None
        self.timing = timing or Timing()
        self.ops: group_ops.Ops = group_ops.LoneOps()

    @property
    def view(self) -> View:
        """Return the present members and how often they have changed."""
        return View(0, (self.cluster.rank,))

    @property
    def size(self) -> int:
        """Return the number of members."""
        return self.ops.size

    @property
    def place(self) -> int:
        """Return this rank's index among the members: its node in topologies."""
        return self.ops.place

    def at(self, where: str, step: int):
        """Note what this rank does, for others that may wait for it.

        Args:
          where: the end of a sentence that begins with "It is".
          step: number of completed steps.
        """

    def enter_fit(self, code: types.CodeType):
        """Note that this thread trains until the function with this code object has returned."""

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer questions."""
        return []

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return what every member passed, in rank order.

        Args:
          value: this rank's contribution, anything JSON can hold.
          doing: the exchange's name in messages, e.g. `"the start of training"`.
          timeout_s: seconds before waiting ends with `WorkerLost`.
        """
        return [value]

    def reserve_keys(self, count: int, doing: str, timeout_s: float) -> int:
        """Return the first of `count` instance keys unused on every rank, the same on all."""
        return 0

    def waiting(self, doing: str, timeout_s: float) -> contextlib.AbstractContextManager[None]:
        """Return a context that runs exchanges under a deadline; see `FixedSession`."""
        return contextlib.nullcontext()

    def begin(self, exchange: Callable[[], Any], doing: str, timeout_s: float):
        """Run `exchange()` in the background from now on; `finish` returns its result.

        A single worker has nothing to exchange with anybody, and runs nothing.
        """

    def finish(self) -> Any:
        """Return the result of the exchange in the background; None if there is none."""
        return None

    def heard_all(self):
        """Note that an exchange with all members has just succeeded."""

    def run(self, exchange: Callable[[], Any]) -> Any:
        """Return `exchange()`, the next of the exchanges that all members do in one order."""
        return exchange()


class FixedSession(SoloSession):
    """The session of a worker in a cluster whose members stay: a lost worker ends it.

    Args:
      cluster: this process's place.
      transport: how exchanges travel.
      channel: what the other workers are asked through.
      status: what others are told of this process.
      watchdog: what looks after the exchange under way.
      timing: every deadline of the control plane.
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
        super().__init__(cluster, timing)
        self._transport = transport
        self._channel = channel
        self._status = status
        self._watchdog = watchdog
        self._background = concurrent.futures.ThreadPoolExecutor(1, "gossip")
        self._under_way: concurrent.futures.Future | None = None
        self._use_view()

    @property
    def view(self) -> View:
        """Return the present members: all workers."""
        return View(0, tuple(range(self.cluster.size)))

    def _use_view(self):
        """Make what belongs to the present members: ops with their keys, and the gathers."""
        self.ops = group_ops.for_view(
            self.view, self.cluster.rank, self.cluster.size, self._transport
        )
        self._gather = gather.Gatherer(self.ops, self.cluster.rank)
        self._next_key = group_ops.FIRST_FREE_KEY

    def at(self, where: str, step: int):
        """Note what this rank does, for others that may wait for it."""
        self._watchdog.at(where, step)

    def enter_fit(self, code: types.CodeType):
        """Note that this thread trains until the function with this code object has returned."""
        self._status.enter_fit(code)

    def unreachable(self) -> list[int]:
        """Return the ranks that do not answer questions, without which no view can be formed."""
        return self._channel.unreachable()

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """Return what every member passed, in rank order; see `SoloSession.gather`.

        Raises:
          RuntimeError: on every rank, if a call of the user's script meets another exchange.
        """
        if self.ops.size == 1:  # the last survivor
            return [value]
        self.has_exchanged |= doing != "cluster.barrier"
        with self.waiting(doing, timeout_s):
            everyone = self._gather([doing, value])
        self.heard_all()
        _check_that_calls_meet(self.view.members, [each for each, _ in everyone])
        return [each for _, each in everyone]

    def reserve_keys(self, count: int, doing: str, timeout_s: float) -> int:
        """Return the first of `count` instance keys unused on every rank, the same on all."""
        first = max(self.gather(self._next_key, doing, timeout_s))
        self._next_key = first + count
        return first

    @contextlib.contextmanager
    def waiting(self, doing: str, timeout_s: float) -> Generator[None, None, None]:
        """Run exchanges under a deadline.

        An exchange in the background ends first, and fails here if it fails: all ranks exchange in
        one order.

        Args:
          doing: the exchange's name in messages.
          timeout_s: seconds before the watchdog aborts it.

        Raises:
          WorkerLost: the exchange failed, and training cannot continue.
          ViewChanged: it failed, and the surviving workers have formed a new view.
          TrainingFinished: it failed, but others have trained to the end.
        """
        if self.ops.size == 1:  # the last survivor waits for nobody
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
        """Run `exchange()` in the background from now on; `finish` returns its result."""

        def run():
            with self._deadline(doing, timeout_s):
                return exchange()

        if self._under_way is not None:
            self.finish()
        self._under_way = self._background.submit(run)

    def finish(self) -> Any:
        """Return the result of the exchange in the background; raises as `waiting` does.

        Returns:
          None if there is no such exchange, also where it was lost with an earlier view.
        """
        if self._under_way is None:
            return None
        try:
            return self._under_way.result()
        except ExchangeBroken as broken:
            self._on_broken(broken)

    def heard_all(self):
        """Note that an exchange with all members has just succeeded."""
        self._channel.heard_all()

    @contextlib.contextmanager
    def _deadline(self, doing: str, timeout_s: float) -> Generator[None, None, None]:
        """Run an exchange under the watchdog; TensorFlow's errors come out as `ExchangeBroken`."""
        with self._watchdog.deadline(doing, timeout_s) as wait:
            try:
                yield
            except tf.errors.OpError as error:
                broken = failures.broken(error, doing, wait.findings)
                if broken is None:
                    raise
                raise broken from None

    def _on_broken(self, broken: ExchangeBroken) -> NoReturn:
        """Raise what a broken exchange means for training."""
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
    """Raise where `cluster.gather` or `cluster.barrier` on one rank meets something else."""
    if len(set(doings)) > 1 and any(doing.startswith("cluster.") for doing in doings):
        places = "; ".join(
            f"rank {rank} is at {doing}" for rank, doing in zip(members, doings, strict=True)
        )
        raise RuntimeError(
            f"The ranks are in different exchanges: {places}. Every rank must call cluster.gather "
            "and cluster.barrier at the same point of the script, and outside of fit."
        )
