"""Describe one process's place among the workers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tf_gossip_pga import _validate
from tf_gossip_pga.cluster import sharding

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One process's place among the workers. `pga.initialize` makes it.

    Attributes:
      rank: this worker's number, 0 … size-1.
      size: number of workers.
      addresses: `"host:port"` of every worker in rank order; empty for a single worker without a
        `TF_CONFIG`.
      strategy: the `tf.distribute.Strategy` to build and compile the model in. Where this worker
        has several devices it splits each batch over them; with one it is TensorFlow's default,
        and the scope changes nothing. None in a `Cluster` made by hand.
      lost: ranks without which the surviving workers train (`on_worker_lost="continue"`).
      exchange_values: exchanges a value with the other surviving workers, as
        `exchange_values(value, doing, timeout_s)`, for `gather` and `barrier`. None for one worker,
        and in a `Cluster` made by hand.
    """

    rank: int = 0
    size: int = 1
    addresses: tuple[str, ...] = ()
    strategy: Any = dataclasses.field(default=None, compare=False, repr=False)
    lost: set[int] = dataclasses.field(default_factory=set, compare=False, repr=False)
    exchange_values: Callable[[object, str, float], list] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @property
    def members(self) -> tuple[int, ...]:
        """The surviving ranks, in order."""
        return tuple(rank for rank in range(self.size) if rank not in self.lost)

    @property
    def is_chief(self) -> bool:
        """Whether this is the lowest surviving rank, which prints, saves and reports for all."""
        return self.rank == self.members[0]

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return this worker's part of a dataset: the same number of elements on every rank.

        Of n surviving workers, the i-th gets element e if `e % n == i`; up to `n - 1` last elements
        are dropped to keep the parts equal. Call it before `shuffle` (or shuffle with the same seed
        on every rank) and before `batch`.

        Args:
          dataset: a `tf.data.Dataset` that yields the same elements in the same order on every
            rank. One of unknown length works too, but every rank then reads all of it.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          TypeError: not a `tf.data.Dataset`.
          ValueError: fewer elements than workers.

        Example:

            dataset = cluster.shard(dataset).shuffle(10_000).batch(32)
        """
        members = self.members
        return sharding.shard(dataset, members.index(self.rank), len(members))

    def gather(self, value: object, timeout_s: float = 300.0) -> list:
        """Return what every surviving worker passed, in the order of ranks.

        Every surviving worker must call it, in the same order among its other calls of `gather` and
        `barrier`, and outside of `fit`. A worker that calls it alone, as in
        `if cluster.is_chief: cluster.gather(…)`, waits until the deadline, and then all fail.

        Args:
          value: anything JSON can hold; NaN and infinity too. Tuples come back as lists, and the
            keys of dicts as strings.
          timeout_s: seconds to wait for the other workers, > 0. Default 300.

        Returns:
          A list with one value for each of `members`; with one worker `[value]`.

        Raises:
          TypeError: JSON cannot hold `value`.
          ValueError: `timeout_s` is no number > 0.
          WorkerLost: another worker died, or did not call `gather` before the deadline. The next
            `fit` with `on_worker_lost="continue"` begins with the survivors, if the script catches
            it.

        Example:

            losses = cluster.gather(float(loss))     # on every rank
            if cluster.is_chief:
                print(sum(losses) / len(losses))
        """
        return self._exchange(_as_json_holds(value), "cluster.gather", timeout_s)

    def barrier(self, timeout_s: float = 300.0) -> None:
        """Wait until every surviving worker has called `barrier`.

        As with `gather`, every surviving worker must call it, and outside of `fit`.

        Args:
          timeout_s: seconds to wait for the other workers, > 0. Default 300.

        Raises:
          ValueError: `timeout_s` is no number > 0.
          WorkerLost: as `gather`.

        Example:

            if cluster.is_chief:
                prepare("data")                      # the other workers read it afterwards
            cluster.barrier(timeout_s=3600)
        """
        self._exchange(None, "cluster.barrier", timeout_s)

    def _exchange(self, value: object, doing: str, timeout_s: float) -> list:
        seconds = _validate.number(timeout_s)
        if seconds is None or seconds <= 0:
            raise ValueError(
                f"timeout_s of {doing} must be a number of seconds > 0, received {timeout_s!r}."
            )
        if self.exchange_values is None:
            return [value]
        return self.exchange_values(value, doing, seconds)


def _as_json_holds(value: object) -> Any:
    """Return a copy of `value` as the other workers receive it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: it contains itself
        raise TypeError(
            "cluster.gather needs a value that JSON can hold (None, a bool, number or string, or "
            f"lists and dicts of such), received {type(value).__name__}: {error}. Convert NumPy "
            "and TensorFlow values with float(…), or .tolist()."
        ) from None
