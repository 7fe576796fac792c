"""The states of one fit and of its parts: every transition, as tables."""

import pytest

from tf_gossip_pga.training.phase import Phase, Replica, StopVote, Vote

STARTING, WARMING_UP, TRAINING, ENDED = Phase
PHASES = {  # (phase, event) -> the phase after it; every other event is refused
    (STARTING, "epoch"): WARMING_UP,
    (STARTING, "admission"): WARMING_UP,
    (WARMING_UP, "epoch"): WARMING_UP,
    (WARMING_UP, "admission"): WARMING_UP,
    (WARMING_UP, "batch"): TRAINING,
    (TRAINING, "epoch"): TRAINING,
    (TRAINING, "batch"): TRAINING,
    (TRAINING, "admission"): WARMING_UP,
    **{(phase, "end"): ENDED for phase in Phase},
}


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", ["epoch", "batch", "admission", "end"])
def test_each_event_leads_to_one_phase_or_is_refused(phase, event):
    if (phase, event) in PHASES:
        assert phase.after(event) is PHASES[phase, event]
    else:
        calls = {"epoch": "on_epoch_begin", "batch": "on_train_batch_end"}
        call = calls.get(event, "The admission of a worker")
        text = f"^{call} was called out of order: fit is in the phase '{phase.value}'"
        with pytest.raises(RuntimeError, match=text):
            phase.after(event)


def test_a_whole_fit_with_a_joining_worker():
    phase = STARTING
    seen = []
    for event in ["epoch", "batch", "batch", "epoch", "admission", "batch", "end"]:
        phase = phase.after(event)
        seen.append(phase)
    assert seen == [WARMING_UP, TRAINING, TRAINING, TRAINING, WARMING_UP, TRAINING, ENDED]


VOTES = {  # (state, event) -> the state after it
    (Vote.NO, "request"): Vote.REQUESTED,
    (Vote.REQUESTED, "request"): Vote.REQUESTED,
    (Vote.AGREED, "request"): Vote.AGREED,  # a request never undoes an agreement
    (Vote.NO, "agree"): Vote.AGREED,  # another rank has asked for it
    (Vote.REQUESTED, "agree"): Vote.AGREED,
    (Vote.AGREED, "agree"): Vote.AGREED,
}


@pytest.mark.parametrize(("state", "event"), list(VOTES))
def test_a_vote_goes_from_no_to_agreed(state, event):
    vote = StopVote()
    assert vote.state is Vote.NO
    vote.state = state
    getattr(vote, event)()
    assert vote.state is VOTES[state, event]
    assert vote.is_requested is (vote.state is not Vote.NO)
    assert vote.is_agreed is (vote.state is Vote.AGREED)


# event -> (is_equal, is_lent) after it, from a state in which the model may or may not be lent.
EQUAL, DIVERGED, LENT = (True, False), (False, False), (True, True)
REPLICA = {
    "diverge": lambda before: (False, before[1]),
    "equalize": lambda before: EQUAL,
    "lend": lambda before: LENT,
    "take_back": lambda before: DIVERGED if before[1] else before,
}


def _replica(state: tuple[bool, bool]) -> Replica:
    replica = Replica()
    if state != DIVERGED:
        replica.equalize()
    if state == LENT:
        replica.lend("local")
    assert (replica.is_equal, replica.is_lent) == state
    return replica


@pytest.mark.parametrize("before", [EQUAL, DIVERGED, LENT], ids=["equal", "diverged", "lent"])
@pytest.mark.parametrize("event", list(REPLICA))
def test_a_replica_knows_whether_it_is_equal_and_lent(before, event):
    replica = _replica(before)
    arguments = ["other"] if event == "lend" else []
    returned = getattr(replica, event)(*arguments)
    assert (replica.is_equal, replica.is_lent) == REPLICA[event](before)
    if event == "take_back":
        assert returned == ("local" if before == LENT else None)


def test_an_average_voids_what_was_put_aside():
    replica = _replica(LENT)
    replica.equalize()  # a worker was lost in the validation, and the survivors were reconciled
    assert replica.take_back() is None
    assert replica.is_equal
