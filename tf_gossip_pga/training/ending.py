"""Stop all ranks together at the end of an epoch, and make their models equal after training."""

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
    """Handle the end of each epoch and the end of one `fit` call, on one of several workers.

    When training ends, all ranks average globally in GossipPGA's `on_train_end`, so that callbacks
    after GossipPGA in the list see the common model. After all callbacks have run, the ranks
    compare their models, and make them equal if callbacks have changed them.

    Args:
      session: runs the exchanges of this process (`exchange.session`).
      group: this rank's exchanges with the other ranks.
      model: the model that Keras trains.
      epochs: number of the last epoch, counted from 1.

    Attributes:
      has_joined: whether this rank joined the others during this fit. If so, its callbacks have no
        memory of the epochs before it joined.
    """

    def __init__(self, session: ElasticSession, group: Group, model: keras.Model, epochs: int):
        """Store the arguments without exchanging anything."""
        self._session = session
        self._group = group
        self._model = model
        self._epochs = epochs
        self._has_warned = False  # about learning rates
        self.has_joined = False
        # Two digests that the last `_note` stored: of the parameters, and of the averaged
        # non-trainable variables.
        self._noted: tuple[str, str] | None = None

    def follow_epoch(self, epoch: int):
        """Restore this rank's own model after an epoch's callbacks. Stop all ranks if one stops.

        In an epoch with validation, the average over ranks has replaced this rank's own model. This
        method restores the own model. It also warns if the learning rates differ between ranks.

        Args:
          epoch: the epoch that has just ended, counted from 1.
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
                f"The learning rates have differed since epoch {epoch}: {found}. A callback set "
                "the learning rate of its own rank only. Pass that callback on every rank, after "
                "GossipPGA in the list, where the logs are the same on all ranks."
            )
        if epoch == self._epochs or self._model.stop_training:
            self._note()

    def average(self):
        """Average globally when training ends.

        Raises:
          RuntimeError: on every rank, if callbacks set the weights of only some ranks.
        """
        where = "the end of training"
        own = [self._session.cluster.rank, self._has_changed()]
        changed = dict(self._group.sync(where, own))
        check_all_or_none(changed)
        if {True, None} <= set(changed.values()):
            self._session.run(lambda: self._group.follow(_informed(changed)))
        # Average even if all replicas were equal after the last exchange. Since then, callbacks may
        # have set weights, or the optimizer may have replaced weights with their moving averages.
        self._session.run(lambda: self._group.settle(where))
        self._note()

    def check(self):
        """Compare all ranks' models after all callbacks have run, and make them equal.

        If the models differ, average globally. The exception is a fit that some ranks joined while
        it was running: then copy the model of the lowest rank that did not join.

        Raises:
          RuntimeError: on every rank, if callbacks set the weights of only some ranks.
          WorkerLost: a worker was lost, and this rank's model may differ from the others'.
        """
        where = "the end of fit"
        has_changed = self._has_changed()

        def own():  # called again after a reconciliation, which changes the digests
            return [self._session.cluster.rank, has_changed, self._group.averager.digests()]

        try:
            everyone = self._group.sync(where, own)
        except TrainingFinished:  # the others found all models equal
            return
        except WorkerLost as error:
            if self._group.averager.digests() != self._noted:  # changed since the last average
                raise
            logger.warning(
                "A worker was lost after training had ended. The model is complete: it is the "
                f"average of all ranks. These processes cannot run another fit. {error}"
            )
            return
        changed = {rank: has_changed for rank, has_changed, _ in everyone}
        check_all_or_none(changed)
        if all(digests == everyone[0][2] for *_, digests in everyone):
            return
        trained = _informed(changed)
        if 0 < len(trained) < len(changed):
            self._session.run(lambda: self._group.follow(trained))
        else:
            if has_changed:
                self._warn(
                    "Callbacks after GossipPGA set different weights on different ranks when "
                    "training ended. The model is now the mean of these weights."
                )
            self._session.run(lambda: self._group.settle(where))
        with contextlib.suppress(TrainingFinished):  # the models are equal already
            self._group.sync(where)

    def _note(self):
        self._noted = self._group.averager.digests()

    def _has_changed(self) -> bool | None:
        """Return whether parameters have changed since the last `_note`, or None if unknown.

        Callbacks may have changed them, or the optimizer may have replaced them with their moving
        averages. The answer is unknown in a fit without any epoch. It is also unknown on a rank
        that joined the others during this fit, because the callbacks of that rank have no memory of
        the epochs before it joined.
        """
        if self._noted is None or self.has_joined:
            return None
        return self._group.averager.digests()[0] != self._noted[0]

    def _warn(self, text: str):
        callback_facts.warn(self._session.cluster, text)


def _informed(changed: dict[int, bool | None]) -> list[int]:
    """Return the ranks that know whether callbacks set their weights. See `check_all_or_none`."""
    return [rank for rank, has_changed in changed.items() if has_changed is not None]


def check_all_or_none(changed: dict[int, bool | None]):
    """Raise if callbacks set the weights of some ranks but not of others.

    Args:
      changed: for each rank, whether its parameters have changed, or None if unknown.

    Raises:
      RuntimeError: some ranks' parameters have changed, others' have not. The message names all of
        them.
    """
    if not {True, False} <= set(changed.values()):
        return
    some = [rank for rank, has_changed in changed.items() if has_changed]
    others = [rank for rank, has_changed in changed.items() if has_changed is False]
    raise RuntimeError(
        f"A callback set the weights of {named(some)} when training ended, but not those of "
        f"{named(others)}. The ranks would return different models. Pass that callback on every "
        "rank, after GossipPGA in the list, or set weights after fit."
    )
