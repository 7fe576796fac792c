"""Define `Record`: everything that a report shows about a run, as plain numbers and text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# With more distances than this, keep only the smallest and the largest of each group.
MOST_DISTANCES = 4000

# The logs that `GossipPGA` adds. They are not metrics of the model.
_OWN_LOGS = ("consensus_distance", "global_averages", "communication_seconds", "H")

Distance = tuple[int, float]  # step, consensus distance


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What a report keeps of one epoch.

    Attributes:
      number: the epoch, counted from 1.
      logs: Keras' logs at the end of the epoch, only the numbers.
      exchanging: for each member, the part of the epoch's time that it spent in exchanges, 0 … 1.
      seconds: how long the epoch took, mean over members. The first step of a `fit` is left out
        here and in `exchanging`.
    """

    number: int
    logs: dict[str, float]
    exchanging: list[float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of the members.

    Attributes:
      at: when the chief noticed the change, in seconds since 1970.
      step: number of steps that were completed by then.
      lost: ranks that were lost.
      joined: ranks that joined.
      members: number of members after the change.
    """

    at: float
    step: int
    lost: list[int]
    joined: list[int]
    members: int


@dataclasses.dataclass
class Record:
    """What a report shows about a run.

    A record can be converted to JSON and back, because the members of a run pass it on to joining
    workers.

    Attributes:
      model: name of the model.
      parameters: number of trainable parameters.
      hosts: the host of each rank.
      settings: the arguments of `GossipPGA`, as texts.
      versions: versions of Python and of packages, by name.
      command: the command line.
      started: when `fit` began, in seconds since 1970.
      planned: number of the last epoch that `fit` is to train, counted from 1.
      steps: number of completed steps.
      seconds: seconds since `fit` began.
      is_finished: whether training has ended.
      epochs: the completed epochs.
      changes: losses and joins of workers.
      distances: `(step, consensus distance)`, at most `MOST_DISTANCES`.
      waiting: `waiting[i][j]` is the number of seconds that rank i has waited for rank j.
      training_seconds: for each rank, the seconds in epochs that `waiting` covers.
      sent: bytes that each rank had sent by the end of the last epoch.
    """

    model: str
    parameters: int
    hosts: list[str]
    settings: dict[str, str]
    versions: dict[str, str]
    command: str
    started: float
    planned: int
    steps: int = 0
    seconds: float = 0.0
    is_finished: bool = False
    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    changes: list[Change] = dataclasses.field(default_factory=list)
    distances: list[Distance] = dataclasses.field(default_factory=list)
    waiting: list[list[float]] = dataclasses.field(default_factory=list)
    training_seconds: list[float] = dataclasses.field(default_factory=list)
    sent: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        """Begin with zeros for each rank."""
        size = len(self.hosts)
        self.waiting = self.waiting or [[0.0] * size for _ in range(size)]
        self.training_seconds = self.training_seconds or [0.0] * size
        self.sent = self.sent or [0] * size

    @property
    def size(self) -> int:
        """Return the number of workers with which the job began."""
        return len(self.hosts)

    @property
    def logs(self) -> list[str]:
        """Return the names of all logs, in the order in which they first appeared."""
        return list(dict.fromkeys(name for epoch in self.epochs for name in epoch.logs))

    @property
    def metrics(self) -> list[str]:
        """Return the names of the model's metrics, first `"loss"`, without the prefix `val_`."""
        names = [name.removeprefix("val_") for name in self.logs if name not in _OWN_LOGS]
        return sorted(dict.fromkeys(names), key=lambda name: name != "loss")

    @property
    def exchanging(self) -> float:
        """Return the part of all epochs' time that ranks spent in exchanges, 0 … 1."""
        total = sum(each.seconds for each in self.epochs)
        spent = sum(
            each.seconds * sum(each.exchanging) / len(each.exchanging) for each in self.epochs
        )
        return spent / total if total else 0.0

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the epochs that logged `name`, and the values."""
        found = [(each.number, each.logs[name]) for each in self.epochs if name in each.logs]
        return [number for number, _ in found], [value for _, value in found]

    def add_distances(self, distances: Sequence[Distance]):
        """Add consensus distances, and thin them out if there are too many."""
        self.distances = thinned([*self.distances, *distances])

    def add_waiting(self, members: Sequence[int], waiting: Sequence[Sequence[float]]):
        """Add the seconds that members have waited for one another.

        Args:
          members: the members' ranks.
          waiting: `[len(members), len(members)]`, in seconds.
        """
        for i, row in zip(members, waiting, strict=True):
            for j, seconds in zip(members, row, strict=True):
                self.waiting[i][j] += float(seconds)

    def as_json(self) -> dict[str, Any]:
        """Return this record as a JSON-serializable dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Return the record from which `as_json` made this dict."""
        return cls(
            **{
                **content,
                "epochs": [Epoch(**each) for each in content["epochs"]],
                "changes": [Change(**each) for each in content["changes"]],
                "distances": [(int(step), float(value)) for step, value in content["distances"]],
            }
        )


def thinned(distances: Sequence[Distance], most: int = MOST_DISTANCES) -> list[Distance]:
    """Return at most `most` distances, with the smallest and the largest of each neighborhood.

    Args:
      distances: `(step, consensus distance)`, in the order of the steps.
      most: how many to keep at most, at least 4.

    Example:
      >>> thinned([(1, 0.5), (2, 0.1), (3, 0.9), (4, 0.4), (5, 0.3)], most=4)
      [(2, 0.1), (3, 0.9), (5, 0.3)]
    """
    kept = list(distances)
    while len(kept) > most:
        kept = [
            each for start in range(0, len(kept), 4) for each in _extremes(kept[start : start + 4])
        ]
    return kept


def _extremes(group: Sequence[Distance]) -> list[Distance]:
    """Return the smallest and the largest distance of a group, in the order of their steps."""
    numbers = [each for each in group if not math.isnan(each[1])]
    if not numbers:
        return [group[0]]
    ends = {min(numbers, key=lambda each: each[1]), max(numbers, key=lambda each: each[1])}
    return sorted(ends)
