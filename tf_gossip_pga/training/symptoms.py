"""Tell all ranks, with a global average, what each has noticed of its own parameters.

Two things make a run worthless without ending it: ranks that all train on the same examples, and a
NaN. Each rank has a row of a matrix, zero on the other ranks, so that the mean over n ranks that
every global average takes is 1/n of all rows. Nothing else has to be exchanged.
"""

from __future__ import annotations

import keras
import numpy as np

from tf_gossip_pga._log import logger
from tf_gossip_pga.exchange.health import Health

# Columns: the first step with parameters that are not finite; a fingerprint, as two halves, since
# float32 holds no integers of 32 bits.
_STEP, _LOW, _HIGH = range(3)


class Symptoms:
    """What ranks have noticed, and the chief's warnings: each once in a run.

    Args:
      rank: this rank.
      ranks: the number of ranks, lost ones included.
    """

    def __init__(self, rank: int, ranks: int):
        self._rank = rank
        self._rows = keras.Variable(np.zeros([ranks, 3], "float32"), trainable=False, name="rows")
        self._start: int | None = None  # fingerprint where training began, with equal replicas
        self._moved: int | None = None  # fingerprint after the first step that has changed it
        self._compares_steps = True
        self._warned_of_nan = False

    @property
    def variables(self) -> list:
        """The `tf.Variable`s that global averages are to average."""
        return [self._rows.value]

    def begin(self, health: Health):
        """Note that all replicas are equal and training begins."""
        if self._compares_steps:
            self._start, self._moved = health.fingerprint(), None

    def after_step(self, health: Health):
        """Note what an optimizer step has done, before any exchange."""
        if self._compares_steps and self._moved is None:
            now = health.fingerprint()
            # Equal replicas say nothing of the data before a step has changed them.
            self._moved = None if now == self._start else now

    def tell(self, health: Health, step: int):
        """Set what this rank contributes to the next global average, after so many steps."""
        rows = np.zeros(self._rows.shape, "float32")
        high, low = divmod(self._moved or 0, 2**16)
        rows[self._rank] = health.first_non_finite(step), low, high
        self._rows.assign(rows)

    def report(self, members: tuple[int, ...], is_chief: bool):
        """Warn, on the chief, of what the ranks have told at a global average.

        Args:
          members: the ranks that took part.
          is_chief: whether this rank is the chief.
        """
        told = np.rint(self._rows.numpy() * len(members)).astype(int)[list(members)]
        if self._moved is not None:
            identical = len(members) > 1 and bool(np.all(told[:, _LOW:] == told[0, _LOW:]))
            if identical and is_chief:
                logger.warning(
                    "All ranks took identical steps; is the data sharded? Each rank must train on "
                    "its own part of the data: dataset = cluster.shard(dataset)."
                )
            self._compares_steps, self._moved = False, None
        ill = {rank: int(row[_STEP]) for rank, row in zip(members, told, strict=True) if row[_STEP]}
        if ill and not self._warned_of_nan:
            self._warned_of_nan = True
            first = min(ill.values())
            ranks = [rank for rank, step in ill.items() if step == first]
            if is_chief:
                logger.warning(
                    f"By step {first} the parameters of rank{'s' * (len(ranks) > 1)} "
                    f"{', '.join(map(str, ranks))} were no longer finite (NaN or infinite), before "
                    "those of any other rank. Averages carry this to all ranks. Look at that "
                    "rank's data, or take a smaller learning rate."
                )
