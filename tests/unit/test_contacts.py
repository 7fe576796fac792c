"""Which dead workers cannot have continued without this one: no clock, no channel."""

import pytest

from tf_gossip_pga.coordination.contacts import Contacts
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.view import Standing

DEAD, SUSPECTED, ALIVE = Absence.DEAD, Absence.SUSPECTED, Standing()
OTHERS = (1, 2)


def _contacts(patience_s: float = 60.0) -> Contacts:
    """Contacts of rank 0, which both others have answered at 10.0."""
    contacts = Contacts(silent_s=15.0)
    contacts.patience_s = patience_s
    contacts.answer(OTHERS, {1: ALIVE, 2: ALIVE}, asked=10.0, now=11.0)
    return contacts


@pytest.mark.parametrize(
    ("answers", "now", "gone"),
    [
        ({1: ALIVE, 2: DEAD}, 15.0, {2}),
        ({1: DEAD, 2: DEAD}, 24.9, {1, 2}),
        ({1: SUSPECTED, 2: DEAD}, 24.9, {2}),  # rank 1 may be cut off, but not for long
        ({1: SUSPECTED, 2: DEAD}, 25.0, set()),  # it may have continued with rank 2
        ({1: DEAD, 2: DEAD}, 25.0, set()),  # this worker was stopped, and they have continued
    ],
)
def test_a_dead_worker_is_gone_where_all_have_answered_lately(answers, now, gone):
    contacts = _contacts()
    contacts.answer(OTHERS, answers, asked=now - 1.0, now=now)
    assert contacts.gone == gone


def test_who_was_gone_before_a_silence_began_stays_so():
    contacts = _contacts()
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=20.0, now=20.0)
    contacts.answer(OTHERS, {1: SUSPECTED, 2: DEAD}, asked=100.0, now=102.0)
    contacts.answer(OTHERS, {1: DEAD, 2: DEAD}, asked=103.0, now=103.0)
    assert contacts.gone == {2}


def test_a_live_answer_ends_the_silence():
    contacts = _contacts()
    contacts.answer(OTHERS, {1: ALIVE, 2: ALIVE}, asked=100.0, now=100.0)
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=101.0, now=101.0)
    assert contacts.gone == {2}


def test_the_exchange_before_the_one_before_the_last_shows_that_all_were_there():
    contacts = Contacts(silent_s=15.0)
    for now in (100.0, 110.0):
        contacts.record_exchange(now)
        assert contacts.age_s(1, now) == float("inf")
    contacts.record_exchange(120.0)
    assert contacts.age_s(1, 121.0) == 21.0
    contacts.record_exchange(121.0)
    assert contacts.age_s(1, 121.0) == 11.0


@pytest.mark.parametrize(("now", "gone"), [(79.0, {2}), (81.0, set())])
def test_who_was_asked_to_come_and_did_not_may_be_excluded_though_it_answers(now, gone):
    contacts = _contacts(patience_s=60.0)
    contacts.record_wanted(20.0)
    contacts.record_wanted(70.0)  # the first one counts
    contacts.answer(OTHERS, {1: ALIVE, 2: ALIVE}, asked=now - 2.0, now=now - 1.0)
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=now, now=now)
    assert contacts.gone == gone
    contacts.record_regrouping(now)
    contacts.answer(OTHERS, {1: DEAD, 2: DEAD}, asked=now, now=now)
    assert contacts.gone == (gone and {1, 2})


def test_who_comes_in_time_is_late_no_more():
    contacts = _contacts(patience_s=60.0)
    contacts.record_wanted(20.0)
    contacts.record_regrouping(30.0)
    contacts.answer(OTHERS, {1: ALIVE, 2: ALIVE}, asked=90.0, now=90.0)
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=91.0, now=91.0)
    assert contacts.gone == {2}


def test_each_view_has_its_own_dead():
    contacts = _contacts()
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=12.0, now=12.0)
    contacts.begin()
    assert contacts.gone == set()
    contacts.forget()
    contacts.answer(OTHERS, {1: ALIVE, 2: DEAD}, asked=13.0, now=13.0)
    assert contacts.gone == set()
