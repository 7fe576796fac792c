"""The end of a fit: what the ranks make of one another's weights, with threads for ranks."""

import threading

import keras
import pytest

from tests.support import deadlines
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.errors import TrainingFinished, WorkerLost
from tf_gossip_pga.training.ending import Ending, check_all_or_none


class FakeRank:
    """A session, a group, an averager and a model in one whose weights are a number."""

    def __init__(self, rank: int, size: int, box: dict):
        self.cluster = Cluster(rank, size)
        self.averager = self
        self.model = float(rank)
        self.stop_training = False
        self.optimizer = keras.optimizers.SGD(0.1)
        self.averages = 0
        self.reconciled: float | None = None  # the model after a loss in the next sync point
        self.raises: Exception | None = None
        self._box = box

    def digests(self):
        return [str(self.model), "statistics"]

    def take_back(self):
        pass

    def sync(self, where, value=None):
        own = value() if callable(value) else value
        if self.reconciled is not None:
            self.model, self.reconciled = self.reconciled, None
            own = value() if callable(value) else value  # the exchange runs again
        if self.raises:
            raise self.raises
        return self._meet(own)

    def follow(self, leaders):
        self.model = self._meet(self.model)[min(leaders)]

    def run(self, exchange):
        exchange()

    def settle(self, where):
        models = self._meet(self.model)
        self.model = sum(models) / len(models)
        self.averages += 1

    def _meet(self, value):
        self._box[self.cluster.rank] = value
        self._box["barrier"].wait(deadlines.long())
        everyone = [self._box[rank] for rank in range(self.cluster.size)]
        self._box["barrier"].wait(deadlines.long())
        return everyone


def _end(before: dict, after: dict, size: int = 4, joined=(), reconciled=None) -> list:
    """Let ranks end a fit, in which callbacks set some models before and after GossipPGA's turn.

    Args:
      before: the models that are set before, by rank.
      after: those that are set after.
      size: the number of ranks.
      joined: those that have joined during this fit.
      reconciled: models that some have after a loss where they compare them, by rank.

    Returns:
      For each rank its model and how often it was averaged, or the error.
    """
    box = {"barrier": threading.Barrier(size)}
    results: list = [None] * size

    def end(rank: int):
        fake = FakeRank(rank, size, box)
        ending = Ending(fake, fake, fake, epochs=3)
        ending.has_joined = rank in joined
        try:
            ending.follow_epoch(3)
            fake.model = before.get(rank, fake.model)
            ending.average()
            fake.model = after.get(rank, fake.model)
            fake.reconciled = (reconciled or {}).get(rank)
            ending.check()
            results[rank] = (fake.model, fake.averages)
        except RuntimeError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=end, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


ALL = range(4)


@pytest.mark.parametrize(
    ("before", "after", "model", "averages"),
    [
        ({}, {}, 1.5, 1),
        # EarlyStopping before GossipPGA, and after it: all ranks restore one model.
        (dict.fromkeys(ALL, 7.0), {}, 7.0, 1),
        ({}, dict.fromkeys(ALL, 7.0), 7.0, 1),
        # Each rank its own best: their mean.
        ({}, {rank: 10.0 + rank for rank in ALL}, 11.5, 2),
    ],
)
def test_all_ranks_end_with_one_model(before, after, model, averages):
    assert _end(before, after) == [(model, averages)] * 4


@pytest.mark.parametrize("where", ["before", "after"])
def test_weights_that_a_callback_sets_on_some_ranks_alone_are_an_error_on_all(where):
    changes = {0: 7.0, 2: 8.0}
    errors = _end(**{"before": {}, "after": {}, where: changes})
    assert len(set(errors)) == 1
    assert (
        "set the weights of rank 0 and rank 2 when training ended, but not those of rank 1 and"
        in (errors[0])
    )


def test_a_reconciliation_where_models_are_compared_is_seen():
    # Rank 0 had completed the average, and restored the best model. Rank 1 had not: both
    # reconciled, the one with that model, and the other restores it only now.
    assert _end({}, {0: 7.0, 1: 7.0}, size=2, reconciled={0: 5.0}) == [(6.0, 2)] * 2


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("changes", "joined", "model"),
    [
        # EarlyStopping on all: who has joined may remember another best model, or none.
        ({0: 7.0, 1: 7.0, 2: 9.0, 3: 7.0}, {2}, 7.0),
        ({0: 7.0, 1: 7.0, 3: 7.0}, {2}, 7.0),
        ({0: 9.0, 1: 8.0, 2: 7.0, 3: 7.0}, {0, 1}, 7.0),
        # On those alone that have trained from the start, or that have joined.
        ({0: 7.0}, {1, 2, 3}, 7.0),
        # Nobody is left who has trained from the start.
        ({0: 4.0, 1: 5.0, 2: 6.0, 3: 7.0}, {0, 1, 2, 3}, 5.5),
    ],
)
def test_who_has_joined_ends_with_the_model_of_the_others(where, changes, joined, model):
    ends = _end(**{"before": {}, "after": {}, where: changes}, joined=joined)
    assert [each for each, _ in ends] == [model] * 4


def test_who_has_joined_is_no_excuse_for_the_others():
    errors = _end({}, {0: 7.0}, joined={3})
    assert len(set(errors)) == 1
    assert "of rank 0 when training ended, but not those of rank 1 and rank 2." in errors[0]


def test_a_rank_that_does_not_know_is_no_error():
    check_all_or_none({0: None, 1: True})
    check_all_or_none({0: None, 1: None})
    check_all_or_none({0: False, 1: False})


def _check_alone(raises: Exception, changed: bool, reconciled: float | None = None):
    fake = FakeRank(0, 1, {"barrier": threading.Barrier(1)})
    ending = Ending(fake, fake, fake, epochs=3)
    ending.follow_epoch(3)
    fake.model += changed
    fake.raises, fake.reconciled = raises, reconciled
    ending.check()


def test_a_worker_that_is_lost_after_the_last_average_costs_nothing(capsys):
    _check_alone(WorkerLost("Rank 0 has ended."), changed=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "it is the average of all ranks. These processes cannot run another fit." in said
    assert said.endswith("Rank 0 has ended.")
    _check_alone(TrainingFinished(), changed=True)  # the others would not have finished otherwise


@pytest.mark.parametrize(("changed", "reconciled"), [(True, None), (False, 5.0), (True, 5.0)])
def test_it_does_where_models_may_differ(changed, reconciled):
    with pytest.raises(WorkerLost):
        _check_alone(WorkerLost("Rank 0 has ended."), changed, reconciled)
