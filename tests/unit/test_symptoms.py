"""What ranks tell of their own parameters, and what the chief says; no process is started."""

import numpy as np
import pytest

from tf_gossip_pga.training import symptoms
from tf_gossip_pga.training.symptoms import Symptoms


class _Health:
    """The parameters of a rank, as one number."""

    def __init__(self, value: int = 7, ill_since: int = 0):
        self.value = value
        self.ill_since = ill_since

    def fingerprint(self) -> int:
        return self.value

    def first_non_finite(self, step: int) -> int:
        return self.ill_since


class _Ranks:
    """The ranks of a run, with their own `Symptoms` and a global average of what they tell."""

    def __init__(self, members, ranks):
        self.members = members
        self.health = {rank: _Health() for rank in members}
        self.symptoms = {rank: Symptoms(rank, ranks) for rank in members}
        for rank in members:
            self.symptoms[rank].begin(self.health[rank])

    def step(self, values: dict[int, int]):
        for rank, value in values.items():
            self.health[rank].value = value
            self.symptoms[rank].after_step(self.health[rank])

    def average(self):
        for rank, each in self.symptoms.items():
            each.tell(self.health[rank], step=12)
        # As float32, which the wire carries.
        mean = np.mean([each.variables[0].numpy() for each in self.symptoms.values()], axis=0)
        for rank, each in self.symptoms.items():
            each.variables[0].assign(mean.astype("float32"))
            each.report(self.members, is_chief=rank == self.members[0])


@pytest.fixture
def said(monkeypatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(symptoms.logger, "warning", texts.append)
    return texts


MEMBERS = [((0, 1), 2), ((0, 1, 2), 3), ((1, 2, 5), 6)]


@pytest.mark.parametrize(("members", "ranks"), MEMBERS)
def test_identical_steps_are_noticed_at_the_first_average_and_only_there(said, members, ranks):
    run = _Ranks(members, ranks)
    run.step(dict.fromkeys(members, 0xFEDCBA98))
    assert not said
    run.average()
    assert len(said) == 1 and "took identical steps; is the data sharded?" in said[0]
    run.step(dict.fromkeys(members, 5))
    run.average()
    assert len(said) == 1


@pytest.mark.parametrize(("members", "ranks"), MEMBERS)
@pytest.mark.parametrize("odd", [0xFEDCBA99, 0xFEDDBA98])  # differs in one half
def test_ranks_whose_steps_differ_are_left_alone(said, members, ranks, odd):
    run = _Ranks(members, ranks)
    run.step(dict.fromkeys(members, 0xFEDCBA98) | {members[-1]: odd})
    run.average()
    run.step(dict.fromkeys(members, 5))  # as after an average
    run.average()
    assert not said


def test_steps_that_change_nothing_say_nothing_of_the_data(said):
    run = _Ranks((0, 1), 2)
    for _ in range(2):  # the learning rate is 0
        run.step({0: 7, 1: 7})
        run.average()
    assert not said
    run.step({0: 8, 1: 8})
    run.average()
    assert len(said) == 1


def test_a_lone_survivor_is_not_asked_for_its_data(said):
    run = _Ranks((1,), 2)
    run.step({1: 8})
    run.average()
    assert not said


@pytest.mark.parametrize(("members", "ranks"), MEMBERS)
def test_the_first_rank_and_step_with_numbers_that_are_not_finite_are_named_once(
    said, members, ranks
):
    run = _Ranks(members, ranks)
    run.step({rank: rank for rank in members})
    run.health[members[0]].ill_since = 11  # by the gossip of step 10
    run.health[members[-1]].ill_since = 10
    run.average()
    run.average()
    assert len(said) == 1
    assert f"By step 10 the parameters of rank {members[-1]} were no longer finite" in said[0]


def test_ranks_that_fail_in_one_step_are_all_named(said):
    run = _Ranks((0, 1, 2), 3)
    run.health[0].ill_since = run.health[2].ill_since = 3_000_001
    run.average()
    assert "By step 3000001 the parameters of ranks 0, 2 were" in said[0]
