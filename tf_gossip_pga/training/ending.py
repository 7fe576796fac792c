"""Follow the callbacks of an epoch's end and of a fit's: the ranks stay in step, and end equal."""

from __future__ import annotations

import contextlib

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.errors import TrainingFinished, WorkerLost
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import callback_facts, preflight
from tf_gossip_pga.training.group import Group


class Ending:
    """The ends of epochs, and of one `fit`, of a worker among others.

    When training ends all ranks average globally where GossipPGA's turn is, so that callbacks after
    it see the model that all have. They compare it once more after all callbacks.

    Args:
      session: the exchanges of this process.
      group: the other ranks.
      model: the model that Keras trains.
      epochs: the epoch that ends training, counted from 1.
    """

    def __init__(self, session: ElasticSession, group: Group, model: keras.Model, epochs: int):
        self._session = session
        self._group = group
        self._model = model
        self._epochs = epochs
        self._has_warned = False  # of learning rates
        self._parameters: str | None = None  # their digest, where it was last noted

    def follow_epoch(self, epoch: int):
        """Go on from this rank's own model, and with the same stop, after an epoch's callbacks.

        Args:
          epoch: the epoch that has ended, counted from 1.
        """
        self._group.take_back()
        where = f"the end of the callbacks of epoch {epoch}"
        rate = callback_facts.learning_rates(self._model.optimizer)
        ranks, rates = zip(
            *self._group.sync(where, [self._session.cluster.rank, rate]), strict=True
        )
        found = preflight.difference(list(rates), ranks)
        if found and not self._has_warned:
            self._has_warned = True
            self._warn(
                f"The learning rates differ since epoch {epoch}: {found}. A callback has set them "
                "on its own rank alone: give it to every rank, after GossipPGA in the list, where "
                "logs are the same on all."
            )
        if epoch == self._epochs or self._model.stop_training:
            self._note()

    def average(self):
        """Average globally.

        Raises:
          RuntimeError: on every rank, if callbacks have set the weights of some ranks alone.
        """
        where = "the end of training"
        changed = None  # not known after a fit without an epoch
        if self._parameters is not None:
            changed = self._group.averager.digests()[0] != self._parameters
        check_alike(dict(self._group.sync(where, [self._session.cluster.rank, changed])))
        # Even if all replicas are equal: callbacks may have set weights, or the optimizer its
        # moving averages.
        self._session.run(lambda: self._group.settle(where))
        self._note()

    def check(self):
        """Compare the models of all ranks, and average once more where callbacks have set them.

        Raises:
          RuntimeError: on every rank, if callbacks have set the weights of some ranks alone.
        """
        where = "the end of fit"
        now = self._group.averager.digests()
        changed = now[0] != self._parameters
        try:
            everyone = self._group.sync(where, [self._session.cluster.rank, changed, now])
        except TrainingFinished:  # the others have found all models equal
            return
        except WorkerLost as error:
            if changed or self._group.loss_policy is not None:
                raise
            logger.warning(
                "Training had ended, and the model is the same on all ranks. No further fit of "
                f"these processes is possible. {error}"
            )
            return
        check_alike({rank: changed for rank, changed, _ in everyone})
        if all(digests == everyone[0][2] for *_, digests in everyone):
            return
        if changed:
            self._warn(
                "Callbacks after GossipPGA have set other weights on each rank when training "
                "ended. The model is now the mean of these."
            )
        self._session.run(lambda: self._group.settle(where))
        with contextlib.suppress(TrainingFinished):  # nothing is missing, though this was lost
            self._group.sync(where)

    def _note(self):
        self._parameters = self._group.averager.digests()[0]

    def _warn(self, text: str):
        callback_facts.warn(self._session.cluster, text)


def check_alike(changed: dict[int, bool | None]):
    """Raise where callbacks have set the weights of some ranks, and not those of others.

    Args:
      changed: by rank whether its parameters have changed; None where it does not know.

    Raises:
      RuntimeError: they have; the message names these ranks.
    """
    if set(changed.values()) != {True, False}:
        return
    some = [rank for rank, has_changed in changed.items() if has_changed]
    others = [rank for rank, has_changed in changed.items() if not has_changed]
    raise RuntimeError(
        f"A callback has set the weights of {named(some)} when training ended, but not those of "
        f"{named(others)}, so that the ranks would not return the same model. Give that callback "
        "to every rank, after GossipPGA in the list, or set weights after fit."
    )
