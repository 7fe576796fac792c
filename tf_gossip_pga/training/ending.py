"""Keep the ranks equal after the callbacks of an epoch and of a fit have run."""

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

    When training ends, all ranks average globally during GossipPGA's `on_train_end`, so that later
    callbacks see the common model. After all callbacks the ranks compare their models once more.

    Args:
      session: the exchanges of this process.
      group: the other ranks.
      model: the model that Keras trains.
      epochs: the epoch that ends training, counted from 1.

    Attributes:
      has_joined: whether this rank joined the others during this fit. Its callbacks then lack the
        memory of earlier epochs.
    """

    def __init__(self, session: ElasticSession, group: Group, model: keras.Model, epochs: int):
        """Store the arguments; exchange nothing."""
        self._session = session
        self._group = group
        self._model = model
        self._epochs = epochs
        self._has_warned = False  # about learning rates
        self.has_joined = False
        # The digests of parameters and statistics when `_note` was last called.
        self._noted: tuple[str, str] | None = None

    def follow_epoch(self, epoch: int):
        """Restore this rank's own model after an epoch's callbacks; let all ranks stop together.

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
                f"The learning rates have differed since epoch {epoch}: {found}. A callback set "
                "them on its own rank only. Pass it on every rank, after GossipPGA in the list: "
                "there the logs are the same on all ranks."
            )
        if epoch == self._epochs or self._model.stop_training:
            self._note()

    def average(self):
        """Average globally when training ends.

        Raises:
          RuntimeError: on every rank, if callbacks set the weights of some ranks only.
        """
        where = "the end of training"
        own = [self._session.cluster.rank, self._has_changed()]
        changed = dict(self._group.sync(where, own))
        check_all_or_none(changed)
        if {True, None} <= set(changed.values()):
            self._session.run(lambda: self._group.follow(_informed(changed)))
        # Even if all replicas were equal: callbacks may have set weights, or the optimizer may have
        # replaced them by its moving averages.
        self._session.run(lambda: self._group.settle(where))
        self._note()

    def check(self):
        """Compare the models of all ranks after all callbacks, and make them equal.

        If they differ, average globally. If some ranks joined during this fit and others did not,
        use instead the model of the lowest rank that did not.

        Raises:
          RuntimeError: on every rank, if callbacks set the weights of some ranks only.
          WorkerLost: a worker was lost, and this rank's model may differ from the others.
        """
        where = "the end of fit"
        has_changed = self._has_changed()

        def own():  # after a reconciliation the digests differ, but not what callbacks did
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
        """Return whether callbacks set the parameters since `_note`; None if this is unknown.

        It is unknown after a fit without an epoch, and on a rank that joined: its callbacks lack
        the memory of earlier epochs.
        """
        if self._noted is None or self.has_joined:
            return None
        return self._group.averager.digests()[0] != self._noted[0]

    def _warn(self, text: str):
        callback_facts.warn(self._session.cluster, text)


def _informed(changed: dict[int, bool | None]) -> list[int]:
    """Return the ranks that know whether callbacks set their weights; see `check_all_or_none`."""
    return [rank for rank, has_changed in changed.items() if has_changed is not None]


def check_all_or_none(changed: dict[int, bool | None]):
    """Raise if callbacks set the weights of some ranks but not those of others.

    Args:
      changed: for each rank, whether its parameters have changed; None if it does not know.

    Raises:
      RuntimeError: some have changed and some have not; the message names both.
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
