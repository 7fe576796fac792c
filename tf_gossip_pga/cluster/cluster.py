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
    """One process's place among the workers, as returned by `pga.initialize`.

    Attributes:
      rank: this worker's number, 0 … size-1.
      size: number of workers with which the job began.
      addresses: `"host:port"` of every worker in rank order. Empty for a single worker without a
        `TF_CONFIG`.
      strategy: the `tf.distribute.Strategy` in whose scope to build and compile the model. If this
        worker has several devices, the strategy splits each batch across them. With one device, it
        is TensorFlow's default strategy, whose scope has no effect. None if the `Cluster` was not
        returned by `pga.initialize`.
      lost: ranks of the workers that were lost while the others continued, with
        `GossipPGA(on_worker_lost="continue")`.
      exchange_values: function with which `gather` and `barrier` exchange a value with the other
        surviving workers, called as `exchange_values(value, doing, timeout_s)`. `doing` names the
        exchange in messages. None if the `Cluster` was not returned by `pga.initialize`.

    Example:
      >>> import tf_gossip_pga as pga
      >>> cluster = pga.Cluster(rank=1, size=4)  # in a script: pga.initialize()
      >>> cluster.is_chief, cluster.members
      (False, (0, 1, 2, 3))
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
        """The surviving ranks, in increasing order."""
        return tuple(rank for rank in range(self.size) if rank not in self.lost)

    @property
    def is_chief(self) -> bool:
        """Whether this is the lowest surviving rank, which prints, saves and reports for all."""
        return self.rank == self.members[0]

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return this worker's share of a dataset, with the same number of elements on every rank.

        The surviving workers are numbered from 0 in rank order, and the elements from 0 in the
        order of the dataset. If there are n surviving workers, worker i gets each element e with
        `e % n == i`. Up to `n - 1` elements at the end are dropped to keep the shares equal. Call
        `shard` before `batch`, and before `shuffle` (or shuffle with the same seed on every rank).

        Args:
          dataset: a `tf.data.Dataset` that yields the same elements in the same order on every
            rank. If its length is unknown, every rank reads the whole dataset, and keeps its share.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          TypeError: `dataset` is not a `tf.data.Dataset`.
          ValueError: the dataset has fewer elements than there are surviving workers.

        Example:
          >>> import tensorflow as tf
          >>> part = Cluster(rank=1, size=4).shard(tf.data.Dataset.range(10))
          >>> [int(each) for each in part]  # 8 and 9 are dropped
          [1, 5]
          >>> batches = part.shuffle(10_000).batch(32)
        """
        members = self.members
        return sharding.shard(dataset, members.index(self.rank), len(members))

    def gather(self, value: object, timeout_s: float = 300.0) -> list:
        """Return the values that all surviving workers passed, in rank order.

        Every surviving worker must call `gather` outside `fit`, and all workers must make their
        `gather` and `barrier` calls in the same order. If, for example, only the chief
        calls `gather`, the chief waits until the deadline, and then all workers fail.

        Args:
          value: any JSON-serializable value, including NaN and infinity. Tuples are returned as
            lists, and dict keys as strings.
          timeout_s: seconds to wait for the other workers, > 0. Default 300.

        Returns:
          A list with one value per rank in `members`: `[value]` if there is only one worker.

        Raises:
          TypeError: `value` is not JSON-serializable.
          ValueError: `timeout_s` is not a number > 0.
          RuntimeError: another worker is in a different exchange, e.g. `barrier`, or this worker is
            inside a `fit` with `GossipPGA(on_worker_lost="continue")`.
          WorkerLost: another worker died, or did not call `gather` before the deadline. If the
            script catches this error, the next `fit` with `GossipPGA(on_worker_lost="continue")`
            starts with the surviving workers.

        Example:
          >>> cluster, loss = Cluster(), 0.25  # in a script: pga.initialize()
          >>> losses = cluster.gather(loss)  # on every rank
          >>> if cluster.is_chief:
          ...     print(sum(losses) / len(losses))
          0.25
        """
        return self._exchange(_as_json_holds(value), "cluster.gather", timeout_s)

    def barrier(self, timeout_s: float = 300.0) -> None:
        """Wait until every surviving worker has called `barrier`.

        As with `gather`, every surviving worker must call `barrier`, and must do so outside `fit`.

        Args:
          timeout_s: seconds to wait for the other workers, > 0. Default 300.

        Raises:
          ValueError: `timeout_s` is not a number > 0.
          RuntimeError: as in `gather`.
          WorkerLost: another worker died, or did not call `barrier` before the deadline, as in
            `gather`.

        Example:
          >>> cluster = Cluster()  # in a script: pga.initialize()
          >>> if cluster.is_chief:
          ...     pass  # download the data, which the other workers read after the barrier
          >>> cluster.barrier(timeout_s=3600)
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
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: circular reference
        raise TypeError(
            "cluster.gather needs a value that JSON can hold (None, a bool, number or string, or "
            f"lists and dicts of these), received {type(value).__name__}: {error}. Convert NumPy "
            "and TensorFlow values with float(…) or .tolist()."
        ) from None
