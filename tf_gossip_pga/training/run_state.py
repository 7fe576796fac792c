"""Hold the state that outlives a `fit`: step count, period, outer optimizer, averager."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator

from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.averager import Averager
from tf_gossip_pga.exchange.outer_state import OuterState
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training.pace import Pace
from tf_gossip_pga.training.recorder import Recorder
from tf_gossip_pga.training.settings import Settings
from tf_gossip_pga.training.symptoms import Symptoms


class RunState:
    """The state of a run across all of its `fit` calls.

    Args:
      settings: the arguments of `GossipPGA`.
      session: runs the exchanges of this process (`exchange.session`).

    Attributes:
      settings: the arguments of `GossipPGA`.
      schedule: decides when to average globally.
      topology: which of the current members gossip with each other.
      averager: exchanges the model's variables. None before the first `fit` and for a single
        worker.
      outer: the state of the outer optimizer, or None if there is no outer optimizer.
      pace: measures how long this rank computes and exchanges.
      recorder: tells listeners what this rank spends its time on. Listeners stay for all `fit`
        calls.
      symptoms: detects steps that are identical on all ranks, and non-finite parameters.
      step: number of completed batches.
      gossip_steps: number of steps that ended with a gossip or without an exchange.
      global_steps: number of steps that ended with a global average.
      distances: `(step, consensus distance)` of each global average. Averages of replicas that are
        known to be equal are left out.
      communication_seconds: seconds spent in exchanges, including the wait for other workers.
    """

    def __init__(self, settings: Settings, session: SoloSession):
        """Start a run at step 0."""
        self.settings = settings
        self.schedule = schedule.resolve(settings.H, settings.gossip_every)
        self._session = session
        self.topology = self._topology_for(session.size)
        self.averager: Averager | None = None
        outer = settings.outer_optimizer
        self.outer = None if outer is None else OuterState(outer)
        self.pace = Pace()
        self.recorder = Recorder(lambda: (self.step, self.bytes_sent))
        self.symptoms = Symptoms()
        self.step = 0
        self.gossip_steps = 0
        self.global_steps = 0
        self.distances: list[tuple[int, float]] = []
        self.communication_seconds = 0.0
        self._earlier_bytes = 0  # sent by earlier averagers

    @property
    def bytes_sent(self) -> int:
        """Return the number of payload bytes that this rank has sent."""
        return self._earlier_bytes + (self.averager.bytes_sent if self.averager else 0)

    @property
    def snapshot(self) -> dict:
        """Return step count and period, JSON-serializable. Set this property to continue a run."""
        return {"step": self.step, "period": self.schedule.state}

    @snapshot.setter
    def snapshot(self, snapshot: dict):
        try:
            step, period = operator.index(snapshot["step"]), snapshot["period"]
            if step < 0 or (period is not None and operator.index(period["last"]) > step):
                raise ValueError
            self.schedule.restore(period)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                "state must be the state of a GossipPGA with the same kind of H, for example "
                f"{self.snapshot!r}; received {snapshot!r}."
            ) from None
        self.step = step

    def use_averager(self, averager: Averager):
        """Use another averager from now on. `bytes_sent` still counts what earlier ones sent."""
        self._earlier_bytes = self.bytes_sent
        self.averager = averager
        self.pace.restart()

    def use_topology_for(self, size: int):
        """Use a topology for this number of members.

        Keep a topology that the user has chosen if it already has this size. Choose the default
        topology again in any case, because it also depends on the transport.
        """
        if self.topology.size != size or self.settings.topology is None:
            self.topology = self._topology_for(size)

    def _topology_for(self, size: int) -> Topology:
        if self.settings.topology is None:
            return topology_lib.default(size, self._session.transport.pairs)
        return topology_lib.resolve_for_survivors(self.settings.topology, size)

    def count(self, was_global: bool):
        """Count a completed step, which ended with a global average if `was_global`."""
        self.global_steps += was_global
        self.gossip_steps += not was_global

    @contextlib.contextmanager
    def communicating(self) -> Iterator[None]:
        """Return a context manager. The time spent inside it counts as communication time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.communication_seconds += time.perf_counter() - started
