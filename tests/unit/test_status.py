"""What a worker reports about itself, and of the exceptions that leave its `fit`."""

import contextlib
import sys
import threading
import time

import pytest

from tf_gossip_pga.coordination import running_call
from tf_gossip_pga.coordination.status import LEFT, Departure, Status

# A package of its own, as Keras is. Its wrapper cuts `fit` out of tracebacks, as Keras' does.
TRAINER: dict = {"__name__": "trainer.fit"}
exec(
    """
def fit(body):
    return body()

def wrapped_fit(body):
    try:
        return fit(body)
    except Exception as error:
        raise error.with_traceback(None) from None
""",
    TRAINER,
)
fit, wrapped_fit = TRAINER["fit"], TRAINER["wrapped_fit"]


def test_a_worker_is_in_fit_until_the_function_has_returned_or_raised():
    status = Status()

    def enter_and_fail():
        status.enter_fit(fit.__code__)
        assert status.tell().in_fit
        raise KeyError

    assert not status.tell().in_fit
    with contextlib.suppress(KeyError):
        fit(enter_and_fail)
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
    status.wait("the gossip of step 3")
    status.arrive(completed=False)
    assert (status.tell().waits_at, status.tell().unfinished) == (None, "the gossip of step 3")


def test_no_span_is_negative_where_another_thread_records_meanwhile(monkeypatch):
    status, now = Status(), time.monotonic

    def late():
        moment = now()
        monkeypatch.setattr(time, "monotonic", now)
        status.at("computing step 3", 2)
        status.wait("the gossip of step 3")
        return moment

    monkeypatch.setattr(time, "monotonic", late)
    where = status.tell()
    assert where.where_s >= 0 and where.waits_s >= 0


# ---- How fit was left ---------------------------------------------------------------------------


def _raising(status: Status, error: BaseException):
    def body():
        status.enter_fit(fit.__code__)
        assert status.tell().left is None
        raise error

    return body


@pytest.mark.parametrize("fit", [fit, wrapped_fit])
@pytest.mark.parametrize(
    ("error", "left"),
    [
        (OSError(28, "disk full"), "raised OSError: [Errno 28] disk full"),
        (KeyboardInterrupt(), "raised KeyboardInterrupt"),
        (MemoryError(), "raised MemoryError"),
        (SystemExit(3), "raised SystemExit: 3"),
        (ValueError("two\n  lines"), "raised ValueError: two lines"),
    ],
)
def test_the_exception_that_has_left_fit_is_reported_while_it_is_handled(fit, error, left):
    status = Status()
    with contextlib.suppress(BaseException):
        try:
            fit(_raising(status, error))
        finally:
            assert status.tell().left == left
    assert status.tell().left == left  # it is remembered
    assert status.departure() == Departure(left, ends=False)
    assert status.departure(ends=True) == Departure(f"{left}, and has ended", ends=True)


def test_an_exception_is_seen_by_another_thread():
    status, raised, released = Status(), threading.Event(), threading.Event()

    def train():
        try:
            fit(_raising(status, OSError("disk full")))
        except OSError:
            raised.set()
            released.wait(60)  # a handler that takes long

    thread = threading.Thread(target=train)
    thread.start()
    assert raised.wait(60)
    assert status.tell().left == "raised OSError: disk full"
    released.set()
    thread.join()


def test_other_exceptions_that_a_handler_meets_are_not_reported():
    status = Status()
    try:
        fit(_raising(status, OSError("disk full")))
    except OSError:
        try:
            raise KeyError("of the handler's own")
        except KeyError:
            assert status.tell().left == "raised OSError: disk full"


def test_an_exception_from_before_fit_is_not_reported():
    status = Status()
    try:
        raise KeyError("before")
    except KeyError:
        with contextlib.suppress(OSError):
            fit(_raising(status, OSError("disk full")))  # caught where nobody asks
        assert status.tell().left == LEFT


def test_what_nobody_has_caught_is_reported(monkeypatch):
    status, error = Status(), OSError("disk full")
    with contextlib.suppress(OSError):
        fit(_raising(status, error))
    assert status.departure() == Departure(LEFT, ends=False)
    ended = "has left fit and ended, by sys.exit or after an exception that it caught"
    assert status.departure(ends=True) == Departure(ended, ends=True)
    monkeypatch.setattr(
        sys, "last_value", error, raising=False
    )  # as Python does before it reports it
    assert status.departure() == Departure("raised OSError: disk full", ends=False)


def test_at_the_end_of_a_program_an_exception_outside_of_fit_counts_too(monkeypatch):
    status = Status()
    assert status.departure(ends=True) is None
    monkeypatch.setattr(sys, "last_value", OSError("disk full"), raising=False)
    assert status.departure() is None
    ended = Departure("raised OSError: disk full, and has ended", ends=True)
    assert status.departure(ends=True) == ended
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert status.departure(ends=True) is None  # at a prompt it has ended nothing


def test_a_fit_that_has_come_to_its_end_was_not_left():
    status = Status()

    def body():
        status.enter_fit(fit.__code__)
        status.end_fit()
        assert status.tell().in_fit

    fit(body)
    assert (status.tell().in_fit, status.tell().left) == (False, None)
    assert status.departure(ends=True) is None


def test_exceptions_are_worded_in_one_line():
    class UnprintableError(Exception):
        def __str__(self):
            raise RuntimeError

    assert running_call.worded(UnprintableError()) == "raised UnprintableError"
    assert running_call.worded(ValueError("x" * 1000)) == f"raised ValueError: {'x' * 300}…"
