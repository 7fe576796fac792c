"""Notice what makes a run worthless without ending it, and let the chief say so.

Ranks that all train on the same examples take identical steps; a NaN of one rank travels to all.
What each rank has seen of its own parameters is known to all after a global average.
"""

from __future__ import annotations

import numpy as np

from tf_gossip_pga._log import logger
from tf_gossip_pga.exchange.health import Health


class Symptoms:
    """What this rank has noticed, and the chief's warnings: each once in a run."""

    def __init__(self):
        self._start: int | None = None  # fingerprint where training began, with equal replicas
        self._moved: int | None = None  # fingerprint after the first step that has changed it
        self._compares_steps = True
        self._warned_of_nan = False

    @property
    def fingerprint(self) -> int:
        """Return this rank's fingerprint after its first step; 0 where it is of no interest."""
        return self._moved or 0

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

    def check_steps(self, fingerprints: np.ndarray, members: tuple[int, ...], is_chief: bool):
        """Warn, on the chief, where all ranks have taken the same first step.

        Args:
          fingerprints: of all ranks, as a global average has summed them, `[ranks, 2]`.
          members: the ranks that took part.
          is_chief: whether this rank is the chief.
        """
        if self._moved is None:
            return
        self._compares_steps, self._moved = False, None
        of_members = fingerprints[list(members)]
        if is_chief and len(members) > 1 and (of_members == of_members[0]).all():
            logger.warning(
                "All ranks took identical steps; is the data sharded? Each rank must train on "
                "its own part of the data: dataset = cluster.shard(dataset)."
            )

    def check_finite(self, non_finite: dict[int, int], is_chief: bool):
        """Warn, on the chief, where parameters are not finite.

        Args:
          non_finite: the first step after which a rank's were not, by rank.
          is_chief: whether this rank is the chief.
        """
        if self._warned_of_nan or not non_finite:
            return
        self._warned_of_nan = True
        first = min(non_finite.values())
        ranks = [str(rank) for rank, step in non_finite.items() if step == first]
        if is_chief:
            logger.warning(
                f"By step {first} the parameters of rank{'s' * (len(ranks) > 1)} "
                f"{', '.join(ranks)} were no longer finite (NaN or infinite), before "
                "those of any other rank. Averages carry this to all ranks. Look at that "
                "rank's data, or take a smaller learning rate."
            )
