"""The launcher's question to running workers: do they still wait for others to start?"""

import threading

import pytest

from tests.support import deadlines
from tf_gossip_pga.coordination import greetings
from tf_gossip_pga.launch.inquiry import Inquiry

SETTINGS = b"\0\0\0\4"  # the first bytes of TensorFlow's server


@pytest.fixture
def asked(monkeypatch):
    """Return a function that asks ranks 0 and 1, and the list of all asked ranks."""
    monkeypatch.setattr("tf_gossip_pga.launch.inquiry._PAUSE_S", 0.01)
    inquiries = []

    def ask(answers):
        ranks = []

        def greeting(rank):
            ranks.append(rank)
            return answers[rank]

        inquiries.append(Inquiry(greeting))
        return inquiries[-1], ranks

    yield ask
    for each in inquiries:
        each.close()
        each._thread.join(deadlines.long())
        assert not each._thread.is_alive()


def test_the_launcher_does_not_wait_for_an_answer():
    released = threading.Event()

    def greeting(rank):  # as a name server that does not answer
        released.wait(deadlines.long())
        return greetings.ROLL_CALL

    inquiry = Inquiry(greeting)
    assert not any(inquiry.any_waits([0]) for _ in range(100))
    released.set()
    deadlines.Deadline(30).until(lambda: inquiry.any_waits([0]))
    inquiry.close()
    inquiry._thread.join(deadlines.long())
    assert not inquiry._thread.is_alive()


@pytest.mark.parametrize("other", [None, b"", SETTINGS])
def test_one_worker_in_the_roll_call_is_enough(asked, other):
    inquiry, _ = asked([other, greetings.ROLL_CALL])
    deadlines.Deadline(30).until(lambda: inquiry.any_waits([0, 1]))


def test_once_the_job_has_started_nobody_is_asked_again(asked):
    answers = [None, None]
    inquiry, ranks = asked(answers)
    assert not inquiry.any_waits([0, 1])
    deadlines.Deadline(30).until(lambda: len(ranks) > 4)
    answers[1] = SETTINGS
    inquiry._thread.join(deadlines.long())
    assert not inquiry._thread.is_alive()
    assert not inquiry.any_waits([0, 1])


@pytest.mark.parametrize("answer", [None, b"", greetings.JOINING, greetings.JOINING[:-5]])
def test_other_answers_do_not_tell_whether_the_job_has_started(asked, answer):
    inquiry, ranks = asked([answer])
    assert not inquiry.any_waits([0])
    deadlines.Deadline(30).until(lambda: len(ranks) > 4)
