"""Define and evaluate the reports that ranks exchange at a sync point."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.exchange.averager import consensus_distance

# For each global average: (step, (squared distance from the mean, squared norm of the mean)).
Measured = list[tuple[int, tuple[float, float]]]

# Largest array in the logs that is averaged, in elements. The size is limited because reports are
# sent as text.
_LARGEST_LOG = 100_000

_BEGINNING = "the beginning of epoch "


@dataclasses.dataclass(frozen=True)
class Report:
    """One rank's JSON-serializable report at a sync point.

    Attributes:
      rank: the rank.
      where: name of the sync point.
      step: number of completed steps.
      stop: whether this rank requests a stop.
      measured: what the rank measured in each global average since the last sync point.
      logs: the numbers in Keras' logs, with arrays as nested lists.
      value: the value that the caller of `Group.sync` shares.
    """

    rank: int
    where: str
    step: int
    stop: bool
    measured: Measured
    logs: dict[str, Any]
    value: Any


def beginning_of(epoch: int) -> str:
    """Return the name of the sync point at the beginning of an epoch; `epoch` counts from 0."""
    return f"{_BEGINNING}{epoch + 1}"


def check_same_point(reports: list[Report]):
    """Raise on every rank if the ranks are at different points of training.

    Raises:
      RuntimeError: the ranks are at different points. The message names each rank's point.
    """
    if len({(each.where, each.step) for each in reports}) > 1:
        places = "; ".join(
            f"rank {each.rank} is at {each.where}, step {each.step}" for each in reports
        )
        odd = [each.rank for each in reports if each.where != reports[0].where]
        if odd and all(each.where.startswith(_BEGINNING) for each in reports):
            raise RuntimeError(
                f"The ranks begin at different epochs: {places}. Pass the same initial_epoch to "
                "fit on all ranks. If BackupAndRestore chose the epoch, replace the backup of "
                f"{named(odd)} with a copy of rank {reports[0].rank}'s."
            )
        raise RuntimeError(
            f"The ranks are at different points of training: {places}. Every rank must run the "
            "same epochs and validations, and stop at the same step. Pass the same arguments to "
            "fit on all ranks, and the same callbacks that can stop training. Resume all ranks or "
            "none."
        )


def check_whole_epoch(rank: int, epoch: int, batches: int, steps: int, is_stopped: bool):
    """Raise if a rank ends an epoch before the last batch of the epoch.

    Args:
      rank: this rank.
      epoch: the epoch, counted from 1.
      batches: number of completed batches in the epoch.
      steps: number of batches in the epoch.
      is_stopped: whether a callback has set `model.stop_training`.

    Raises:
      RuntimeError: batches are missing. The message names the likely cause.
    """
    if batches >= steps:
        return
    if is_stopped:  # if a CallbackList called the hooks, all ranks would have stopped together
        cause = "a callback that runs after GossipPGA set model.stop_training"
        advice = "If you call hooks yourself, call those of a keras.callbacks.CallbackList"
    else:
        cause = "its dataset ran out of data"
        advice = "Give every rank the same number of batches: use cluster.shard or dataset.repeat()"
    raise RuntimeError(
        f"Rank {rank} left epoch {epoch} after {batches} of {steps} batches: {cause}. Every rank "
        f"must complete all batches, because the other ranks wait for it. {advice}."
    )


def distances(reports: list[Report]) -> list[tuple[int, float]]:
    """Return `(step, consensus distance)` for each global average that the reports cover."""
    return [
        (measured[0][0], consensus_distance([squares for _, squares in measured]))
        for measured in zip(*(each.measured for each in reports), strict=True)
    ]


def mean_logs(reports: list[Report], names) -> dict[str, float | np.ndarray]:
    """Return the mean over ranks of each named log that all ranks have in the same shape."""
    means = {}
    for name in names:
        if not all(name in each.logs for each in reports):
            continue
        values = [np.asarray(each.logs[name]) for each in reports]
        if len({value.shape for value in values}) == 1:
            mean = np.asarray(sum(values) / len(values))
            means[name] = mean if mean.shape else float(mean)
    return means


def numbers_in(logs: dict | None) -> dict[str, float | list]:
    """Return the numbers in Keras' logs in JSON-serializable form, with arrays as nested lists."""
    found = {name: _number(value) for name, value in (logs or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value) -> float | list | None:
    """Return a number or array in JSON-serializable form, or None for anything else."""
    if not isinstance(value, (float, int, list, tuple)) and not hasattr(value, "shape"):
        return None
    try:
        array = np.asarray(value)
        if array.size > _LARGEST_LOG or not np.can_cast(array.dtype, np.float64, "same_kind"):
            return None
        return array.astype(np.float64).tolist()
    except (TypeError, ValueError):  # ragged
        return None
