"""Warn about mistakes that make a run useless but do not stop it.

If all ranks train on the same examples, they take identical steps, so several workers achieve no
more than one. A NaN on one rank spreads to all ranks. The ranks share their observations in each
global average, and the chief warns.
"""

from __future__ import annotations

import numpy as np

from tf_gossip_pga._log import logger
from tf_gossip_pga.exchange.health import Health


class Symptoms:
    """Observe this rank's parameters, and warn on the chief. Each warning appears once per run.

    To compare their steps, the ranks share fingerprints: 32-bit hashes of their parameters.
    """

    def __init__(self):
        """Start without observations."""
        self._start: int | None = None  # fingerprint of the equal replicas at the start
        self._moved: int | None = None  # fingerprint after the first step that changed it
        self._compares_steps = True
        self._warned_of_nan = False

    @property
    def fingerprint(self) -> int:
        """Return this rank's fingerprint after its first step, or 0 if there is none to compare."""
        return self._moved or 0

    def begin(self, health: Health):
        """Record the fingerprint at the start of training, when all replicas are equal."""
        if self._compares_steps:
            self._start, self._moved = health.fingerprint(), None

    def after_step(self, health: Health):
        """Record the fingerprint after the first optimizer step, before any exchange."""
        if self._compares_steps and self._moved is None:
            now = health.fingerprint()
            # A step that changes nothing (learning rate 0) reveals nothing about the data.
            self._moved = None if now == self._start else now

    def check_steps(self, fingerprints: np.ndarray, members: tuple[int, ...], is_chief: bool):
        """Warn on the chief if all ranks took the same first step.

        Args:
          fingerprints: the fingerprints of all ranks as two halves, `[ranks, 2]`.
          members: the ranks that took part in the global average.
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
        """Warn on the chief if parameters are not finite.

        Args:
          non_finite: `{rank: step}`, for each affected rank the first step after which its
            parameters were not finite.
          is_chief: whether this rank is the chief.
        """
        if self._warned_of_nan or not non_finite:
            return
        self._warned_of_nan = True
        first = min(non_finite.values())
        ranks = [str(rank) for rank, step in non_finite.items() if step == first]
        names = f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}"
        if is_chief:
            logger.warning(
                f"By step {first} the parameters of {names} were no longer finite (NaN or "
                "infinite), before those of any other rank. Averaging spreads these values to all "
                f"ranks. Check the data of {names}, or use a smaller learning rate."
            )
