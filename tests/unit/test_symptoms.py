"""What ranks notice of their own parameters, and what the chief says; no process is started."""

import numpy as np
import pytest

from tf_gossip_pga.training import piggyback, symptoms
from tf_gossip_pga.training.pace import Times
from tf_gossip_pga.training.piggyback import Heard, Piggyback
from tf_gossip_pga.training.symptoms import Symptoms


class _Health:
    """The parameters of a rank, as one number."""

    def __init__(self):
        self.value = 7

    def fingerprint(self) -> int:
        return self.value


class _Ranks:
    """The ranks of a run, with their own `Symptoms` and a global average of what they tell."""

    def __init__(self, members, ranks):
        self.members = members
        self.ranks = ranks
        self.health = {rank: _Health() for rank in members}
        self.symptoms = {rank: Symptoms() for rank in members}
        for rank in members:
            self.symptoms[rank].begin(self.health[rank])

    def step(self, values: dict[int, int]):
        for rank, value in values.items():
            self.health[rank].value = value
            self.symptoms[rank].after_step(self.health[rank])

    def average(self):
        encoded = [
            Piggyback(fingerprint=each.fingerprint).encode(rank, self.ranks)
            for rank, each in self.symptoms.items()
        ]
        heard = _heard(encoded)
        for rank, each in self.symptoms.items():
            each.check_steps(heard.fingerprints, self.members, rank == self.members[0])


def _heard(encoded: list[np.ndarray]) -> Heard:
    """Return what ranks hear of what they have encoded; averages are of float32."""
    mean = np.mean(encoded, axis=0, dtype=np.float32)
    return Heard.decode(mean.astype(np.float64) * len(encoded), len(encoded))


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


@pytest.mark.parametrize(
    ("non_finite", "expected"),
    [
        ({0: 11, 2: 10}, "By step 10 the parameters of rank 2 were no longer finite"),
        ({0: 3_000_001, 2: 3_000_001}, "By step 3000001 the parameters of ranks 0, 2 were"),
    ],
)
def test_the_first_rank_and_step_with_numbers_that_are_not_finite_are_named_once(
    said, non_finite, expected
):
    ranks = [Symptoms(), Symptoms()]
    for rank, each in enumerate(ranks):
        each.check_finite({}, is_chief=rank == 0)
    assert not said
    for _ in range(2):
        for rank, each in enumerate(ranks):
            each.check_finite(non_finite, is_chief=rank == 0)
    assert len(said) == 1 and expected in said[0]


@pytest.mark.parametrize("stops", [(), (1,), (0, 1, 2)])
def test_what_ranks_tell_is_heard(stops):
    prints = [0, 0xFFFFFFFF, 0x10000]
    heard = _heard(
        [
            Piggyback(
                rank in stops,
                loss=float(rank),
                times=Times(0.1 * rank, gossip_s=np.nan if rank else 0.2, average_s=0.5),
                squares=(4.0 * rank, 0.25 if rank == 0 else 0.0),
                fingerprint=each,
            ).encode(rank, 3)
            for rank, each in enumerate(prints)
        ]
    )
    assert heard.is_stop == bool(stops)
    assert heard.observed.loss == pytest.approx(1.0)
    assert heard.observed.compute_s == pytest.approx(0.1)
    assert np.isnan(heard.observed.gossip_s)  # two ranks do not know it
    assert heard.observed.average_s == pytest.approx(0.5)
    # The mean squared distance is (0 + 4 + 8) / 3, the squared norm of the mean 1/4.
    assert heard.observed.distance == pytest.approx(4.0)
    assert heard.fingerprints.tolist() == [list(divmod(each, 1 << 16)) for each in prints]
    assert len(Piggyback().encode(0, 3)) == piggyback.length(3)


def test_a_loss_that_is_nan_spoils_nothing_else():
    heard = _heard([Piggyback(loss=np.nan, fingerprint=7).encode(0, 2), Piggyback().encode(1, 2)])
    assert np.isnan(heard.observed.loss) and not heard.is_stop
    assert np.isnan(heard.observed.distance)  # no rank knows one
    assert heard.fingerprints.tolist() == [[0, 7], [0, 0]]
