"""What a worker reports about itself."""

import contextlib

from tf_gossip_pga.coordination.status import Status


def _fit(body):
    """Stand for `fit`, which calls back."""
    return body()


def test_a_worker_is_in_fit_until_the_function_has_returned_or_raised():
    status = Status()

    def enter_and_fail():
        status.enter_fit(_fit.__code__)
        assert status.tell().in_fit
        raise KeyError

    assert not status.tell().in_fit
    with contextlib.suppress(KeyError):
        _fit(enter_and_fail)
    assert not status.tell().in_fit
    assert status.tell().fits == 1


def test_exchanges_are_counted_when_they_begin():
    status = Status()
    status.at("computing step 3", 2)
    status.wait("the gossip of step 2")
    where = status.tell()
    assert (where.where, where.step, where.exchanges) == ("computing step 3", 2, 1)
    assert where.waits_at == "the gossip of step 2" and where.waits_s >= 0
    status.arrive()
    assert (status.tell().waits_at, status.tell().waits_s) == (None, 0.0)
