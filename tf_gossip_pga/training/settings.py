"""Validate the arguments of `GossipPGA` once, at construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.auto import AutoPeriod
from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.exchange.averager import Patience

# What a global average may do with the optimizer's slots, such as momentum.
OPTIMIZER_STATES = ("local", "average", "reset")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `GossipPGA`. See `GossipPGA` for their meaning.

    Args:
      size: number of workers.

    Raises:
      ValueError: an argument is out of range. The message names the accepted values.
      TypeError: the topology is neither a name nor a `Topology`.
    """

    H: int | Literal["auto"] | schedule.ChangingPeriod | None
    topology: str | Topology | None
    gossip_every: int
    optimizer_state: str
    outer_optimizer: Outer | None
    overlap: bool
    wire_dtype: str
    timeout_s: float
    on_worker_lost: str
    min_workers: int
    local: Sequence[str]
    size: dataclasses.InitVar[int]

    def __post_init__(self, size: int):
        """Validate the arguments, and convert them to their declared types."""
        if isinstance(self.H, str) and self.H == "auto":
            object.__setattr__(self, "H", AutoPeriod())
        gossip_every = schedule.resolve(self.H, self.gossip_every).gossip_every
        if self.optimizer_state not in OPTIMIZER_STATES:
            raise ValueError(
                f"optimizer_state must be one of {', '.join(map(repr, OPTIMIZER_STATES))}; "
                f"received {self.optimizer_state!r}."
            )
        self._check_outer()
        wire_lib.resolve(self.wire_dtype)
        if self.topology is not None:
            topology_lib.resolve(self.topology, size)
        timeout_s = _validate.number(self.timeout_s)
        if timeout_s is None or timeout_s <= 0:
            raise ValueError(
                f"timeout_s must be a number of seconds > 0, received {self.timeout_s!r}."
            )
        if self.on_worker_lost not in ("raise", "continue"):
            raise ValueError(
                f"on_worker_lost must be 'raise' or 'continue', received {self.on_worker_lost!r}."
            )
        min_workers = _validate.whole(self.min_workers, 1, size)
        if min_workers is None:
            raise ValueError(
                "min_workers must be a whole number, from 1 to the number of workers, "
                f"{size}; received {self.min_workers!r}."
            )
        is_list = isinstance(self.local, Collection) and not isinstance(self.local, str)
        if not is_list or not all(isinstance(name, str) for name in self.local):
            raise ValueError(
                f"local must be a list of names of variables or layers, received {self.local!r}."
            )
        object.__setattr__(self, "gossip_every", gossip_every)
        object.__setattr__(self, "local", tuple(self.local))
        object.__setattr__(self, "overlap", bool(self.overlap))
        object.__setattr__(self, "timeout_s", timeout_s)
        object.__setattr__(self, "min_workers", min_workers)

    def _check_outer(self):
        outer = self.outer_optimizer
        if outer is not None and not isinstance(outer, Outer):
            raise ValueError(
                f"outer_optimizer must be a pga.Outer or None, received {outer!r}. For SlowMo, "
                "pass pga.Outer(1.0, 0.5, nesterov=False); for DiLoCo, pga.Outer()."
            )
        if outer is not None and self.H is None:
            raise ValueError(
                "outer_optimizer takes its steps at global averages, but H=None has none; received "
                f"{outer!r}. Pass a period H, or outer_optimizer=None."
            )

    @property
    def wire(self) -> wire_lib.Wire:
        """Return the encoding of gossips."""
        return wire_lib.resolve(self.wire_dtype)

    @property
    def survives(self) -> bool:
        """Return whether training continues after a worker is lost."""
        return self.on_worker_lost == "continue"

    def patience(self, timing: Timing) -> Patience:
        """Return how long exchanges wait for other workers."""
        return Patience(self.timeout_s, self.timeout_s * timing.between_work_factor)

    def facts(self) -> dict:
        """Return the settings that must be equal on all ranks, as a JSON-serializable dict.

        They do not include H and the topology, which `training.start` adds.
        """
        return {
            "gossip_every": self.gossip_every,
            "optimizer_state": self.optimizer_state,
            "outer_optimizer": str(self.outer_optimizer),
            "overlap": self.overlap,
            "wire_dtype": self.wire_dtype,
            "timeout_s": self.timeout_s,
            "on_worker_lost": self.on_worker_lost,
            "min_workers": self.min_workers if self.survives else None,
            "local": sorted(self.local),
        }
