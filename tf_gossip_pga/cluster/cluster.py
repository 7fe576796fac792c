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
    """One process's place among the workers, as `pga.initialize` returns it.

    Attributes:
      rank: this worker's number, 0 … size-1.
      size: number of workers at the start.
      addresses: `"host:port"` of every worker in rank order; empty for a single worker without a
        `TF_CONFIG`.
      strategy: the `tf.distribute.Strategy` in whose scope to build and compile the model. If this
        worker has several devices, the strategy splits each batch over them. With one device it is
        TensorFlow's default strategy, and the scope changes nothing. None in a `Cluster`
        constructed directly.
      lost: ranks of lost workers, without which the others continue (`on_worker_lost="continue"`).
      exchange_values: function that exchanges a value with the other surviving workers for `gather`
        and `barrier`, called as `exchange_values(value, doing, timeout_s)`. None in a `Cluster`
        constructed directly.

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
        """Return this worker's part of a dataset: the same number of elements on every rank.

        Of n surviving workers, the i-th gets element e if `e % n == i`. Up to `n - 1` elements at
        the end are dropped to keep the parts equal. Call `shard` before `batch`, and before
        `shuffle` (or shuffle with the same seed on every rank).

        Args:
          dataset: a `tf.data.Dataset` that yields the same elements in the same order on every
            rank. Its length may be unknown, but every rank then reads all of it.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          TypeError: `dataset` is not a `tf.data.Dataset`.
          ValueError: the dataset has fewer elements than there are workers.

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

        Every surviving worker must call `gather` outside of `fit`, in the same order relative to
        its other calls of `gather` and `barrier`. If only the chief calls it, for example, the
        chief waits until the deadline, and then all workers fail.

        Args:
          value: any value that JSON can hold, including NaN and infinity. Tuples come back as
            lists, and keys of dicts as strings.
          timeout_s: seconds to wait for the other workers, > 0. Default 300.

        Returns:
          A list with one value per rank in `members`; with one worker `[value]`.

        Raises:
          TypeError: JSON cannot hold `value`.
          ValueError: `timeout_s` is not a number > 0.
          RuntimeError: another worker is in a different exchange, e.g. in `barrier`; or this worker
            is inside a `fit` with `on_worker_lost="continue"`.
          WorkerLost: another worker died, or did not call `gather` before the deadline. If the
            script catches it, the next `fit` with `on_worker_lost="continue"` begins with the
            surviving workers.

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

        As with `gather`, every surviving worker must call it, and outside of `fit`.

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
