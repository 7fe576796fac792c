"""Define where one `fit` is: its phases, and the states of its parts, with their transitions."""

from __future__ import annotations

import enum
from typing import Any


class Phase(enum.Enum):
    """Where one `fit` is.

    The transitions:

        STARTING   --epoch-->      WARMING_UP    all ranks begin the first epoch
        STARTING   --admission-->  WARMING_UP    this joining worker was taken in
        WARMING_UP --batch-->      TRAINING      the ranks have met after the first batch
        TRAINING   --admission-->  WARMING_UP    a joining worker has yet to compile
        any        --end-->        ENDED
    """

    STARTING = "starting"  # the ranks agree on what to train
    WARMING_UP = "warming up"  # the next batch is the first that these members take together
    TRAINING = "training"
    ENDED = "ended"

    def after(self, event: str) -> Phase:
        """Return the phase after an event: `"epoch"`, `"batch"`, `"admission"` or `"end"`.

        Raises:
          RuntimeError: the event cannot happen in this phase.
        """
        if event == "end":
            return Phase.ENDED
        if (self, event) not in _AFTER:
            raise RuntimeError(f"Keras called a hook for {event!r} while fit is {self.value}.")
        return _AFTER[self, event]


_AFTER = {
    (Phase.STARTING, "epoch"): Phase.WARMING_UP,
    (Phase.STARTING, "admission"): Phase.WARMING_UP,
    (Phase.WARMING_UP, "epoch"): Phase.WARMING_UP,  # an epoch without a batch
    (Phase.WARMING_UP, "admission"): Phase.WARMING_UP,
    (Phase.WARMING_UP, "batch"): Phase.TRAINING,
    (Phase.TRAINING, "epoch"): Phase.TRAINING,
    (Phase.TRAINING, "admission"): Phase.WARMING_UP,
    (Phase.TRAINING, "batch"): Phase.TRAINING,
}


class Vote(enum.Enum):
    """Where a `StopVote` is."""

    NO = "no"
    REQUESTED = "requested"
    AGREED = "agreed"


class StopVote:
    """Whether training is to stop in mid-epoch, which all ranks must do together.

        NO --request--> REQUESTED --agree--> AGREED

    A request is this rank's alone. The ranks agree at the next global average.

    Attributes:
      state: one of `Vote`.
    """

    def __init__(self):
        self.state = Vote.NO

    def request(self):
        """Note that this rank wants to stop."""
        if self.state is Vote.NO:
            self.state = Vote.REQUESTED

    def agree(self):
        """Note that all ranks stop."""
        self.state = Vote.AGREED

    @property
    def is_requested(self) -> bool:
        """Whether this rank wants to stop, or all do."""
        return self.state is not Vote.NO

    @property
    def is_agreed(self) -> bool:
        """Whether all ranks stop."""
        return self.state is Vote.AGREED


class Replica:
    """How this rank's model relates to those of the other ranks.

        EQUAL    --diverge-->    DIVERGED    an optimizer step, or another callback
        any      --equalize-->   EQUAL       a global average, a broadcast, a state transfer
        EQUAL    --lend-->       LENT        the average is validated, the local model put aside
        LENT     --take_back-->  DIVERGED    the epoch's callbacks are over, the local model is back

    Attributes:
      is_equal: whether all replicas are bit-identical at this moment.
    """

    def __init__(self):
        self.is_equal = False
        self._local: Any = None  # this rank's own weights, while the model holds the average

    @property
    def is_lent(self) -> bool:
        """Return whether the model holds the average in place of this rank's own weights."""
        return self._local is not None

    def diverge(self):
        """Note that the replicas may differ."""
        self.is_equal = False

    def equalize(self):
        """Note that all replicas are bit-identical; a model put aside is void."""
        self.is_equal = True
        self._local = None

    def lend(self, local: Any):
        """Note that all hold the average, and that `local` is to come back."""
        self.is_equal = True
        self._local = local

    def take_back(self) -> Any:
        """Return what was put aside, which this rank's model holds from now on; or None."""
        local, self._local = self._local, None
        if local is not None:
            self.is_equal = False
        return local
