"""Define the states and transitions of a `fit`: its phase, stop vote, and replica."""

from __future__ import annotations

import enum
from typing import Any


class Phase(enum.Enum):
    """The phase of one `fit`.

    Transitions::

        STARTING   --epoch-->      WARMING_UP    all ranks begin the first epoch
        STARTING   --admission-->  WARMING_UP    this joining worker was admitted
        WARMING_UP --batch-->      TRAINING      the ranks synced after the first batch
        TRAINING   --admission-->  WARMING_UP    a joining worker must compile its first step
        any        --end-->        ENDED
    """

    STARTING = "starting"  # the ranks agree on what to train
    WARMING_UP = "warming up"  # the next batch is the first one with these members
    TRAINING = "training"
    ENDED = "ended"

    def after(self, event: str) -> Phase:
        """Return the phase after an event.

        Args:
          event: `"epoch"`, `"batch"`, `"admission"` or `"end"`.

        Raises:
          RuntimeError: the event cannot occur in this phase.
        """
        if event == "end":
            return Phase.ENDED
        if (self, event) not in _AFTER:
            raise RuntimeError(
                f"{_CALLS[event]} was called out of order: fit is in the phase {self.value!r}. If "
                "you call hooks yourself, call them in the same order as Keras: on_train_begin, "
                "on_epoch_begin before the batches of each epoch, on_train_batch_end after each "
                "batch, and on_train_end."
            )
        return _AFTER[self, event]


_CALLS = {
    "epoch": "on_epoch_begin",
    "batch": "on_train_batch_end",
    "admission": "The admission of a worker",
}

_AFTER = {
    (Phase.STARTING, "epoch"): Phase.WARMING_UP,
    (Phase.STARTING, "admission"): Phase.WARMING_UP,
    (Phase.WARMING_UP, "epoch"): Phase.WARMING_UP,  # an epoch without any batch
    (Phase.WARMING_UP, "admission"): Phase.WARMING_UP,
    (Phase.WARMING_UP, "batch"): Phase.TRAINING,
    (Phase.TRAINING, "epoch"): Phase.TRAINING,
    (Phase.TRAINING, "admission"): Phase.WARMING_UP,
    (Phase.TRAINING, "batch"): Phase.TRAINING,
}


class Vote(enum.Enum):
    """The state of a `StopVote`."""

    NO = "no"
    REQUESTED = "requested"
    AGREED = "agreed"


class StopVote:
    """Whether all ranks stop training together before the end of the epoch.

    Transitions::

        NO --request--> REQUESTED --agree--> AGREED

    Any rank can request a stop. All ranks agree to the request at the next global average.

    Attributes:
      state: one of `Vote`.
    """

    def __init__(self):
        """Start without a request."""
        self.state = Vote.NO

    def request(self):
        """Record that this rank has requested a stop."""
        if self.state is Vote.NO:
            self.state = Vote.REQUESTED

    def agree(self):
        """Record that all ranks have agreed to stop."""
        self.state = Vote.AGREED

    @property
    def is_requested(self) -> bool:
        """Return whether this rank has requested a stop, or all ranks have agreed to stop."""
        return self.state is not Vote.NO

    @property
    def is_agreed(self) -> bool:
        """Return whether all ranks have agreed to stop."""
        return self.state is Vote.AGREED


class Replica:
    """How this rank's model relates to the other ranks' models.

    For validation, the average over ranks is lent: it replaces this rank's own, local model until
    the epoch's callbacks have run.

    Transitions::

        EQUAL    --diverge-->    DIVERGED    an optimizer step
        any      --equalize-->   EQUAL       a global average, a broadcast, a state transfer
        EQUAL    --lend-->       LENT        the model holds the average; the local model is saved
        LENT     --take_back-->  DIVERGED    after the epoch's callbacks the local model is restored

    Attributes:
      is_equal: whether all replicas are known to be bit-identical.
    """

    def __init__(self):
        """Start with replicas that may differ."""
        self.is_equal = False
        self._local: Any = None  # this rank's own weights while the average is lent

    @property
    def is_lent(self) -> bool:
        """Return whether the model holds the average in place of this rank's own weights."""
        return self._local is not None

    def diverge(self):
        """Record that the replicas may differ."""
        self.is_equal = False

    def equalize(self):
        """Record that all replicas are bit-identical, and discard any saved local model."""
        self.is_equal = True
        self._local = None

    def lend(self, local: Any):
        """Record that all ranks hold the average, and save the local model for `take_back`."""
        self.is_equal = True
        self._local = local

    def take_back(self) -> Any:
        """Return the saved local model for the caller to restore, or None if none is saved."""
        local, self._local = self._local, None
        if local is not None:
            self.is_equal = False
        return local
