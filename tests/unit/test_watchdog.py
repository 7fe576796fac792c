"""The watchdog reports long exchanges and aborts hopeless ones; the others are a table."""

import contextlib
import dataclasses
import sys
import threading

import pytest

from tf_gossip_pga.coordination.diagnosis import Findings
from tf_gossip_pga.coordination.reports import Waiting, named
from tf_gossip_pga.coordination.status import Absence, Departure, Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.watchdog import Watchdog
from tf_gossip_pga.errors import ExchangeBroken, WorkerLost

QUICK = Timing(watch_every_s=0.01, patience_s=0.05, suspect_s=0.2, linger_s=0.0, closing_s=0.0)


class Others:
    """A channel whose others answer with what `answers` holds."""

    def __init__(self, answers):
        self.answers = answers
        self.handlers = {}
        self.asked = []
        self.reported = []
        self.at_exit = False

    def ask_all(self, kind, timeout_s=None, **details):
        self.asked.append(kind)
        self.reported += [details] if kind == "departure" else []
        return self.answers

    def tell_at_exit(self, kind, **details):
        self.at_exit = True
        self.ask_all(kind, **details)

    def last_heard_s(self):
        return dict.fromkeys(self.answers, 3.0)


class Watched:
    """A watchdog, and an exchange that ends when it is aborted."""

    def __init__(self, answers, timing=QUICK):
        self.aborted = threading.Event()
        self.reasons = []
        self.status = Status()
        self.channel = Others(answers)
        self.dog = Watchdog(0, 2, self.channel, self.status, timing, self._abort)

    def _abort(self, reason):
        self.reasons.append(reason)
        self.aborted.set()

    def exchange(self, timeout_s=60.0):
        """Return what the watchdog found before it aborted the exchange."""
        with self.dog.deadline("the gossip of step 7", timeout_s) as wait:
            assert self.aborted.wait(60)
        return wait.findings


@contextlib.contextmanager
def _watched(answers, timing=QUICK):
    watched = Watched(answers, timing)
    try:
        yield watched
    finally:
        watched.dog.close()


def _elsewhere(**arguments):
    status = Status()
    status.at("computing step 8", 7)
    return {**dataclasses.asdict(status.tell()), **arguments}


@pytest.mark.parametrize(
    ("answer", "timeout_s", "reason"),
    [
        (Absence.DEAD, 60.0, "rank 1 has ended"),
        (Absence.SUSPECTED, 60.0, "rank 1 does not answer"),  # for `suspect_s`
        (_elsewhere(), 0.1, "no answer within 0.1 s; rank 1 has not called fit"),
        (
            _elsewhere(exchanges=1, waits_at="the gossip of step 7"),
            0.1,
            "no answer within 0.1 s; all ranks have reached it, the last of them 0 s ago",
        ),
        # An exception has left the exchange itself.
        (
            _elsewhere(exchanges=1, left="raised OSError: disk full", unfinished="the gossip"),
            60.0,
            "rank 1 raised OSError: disk full in the gossip, and must be restarted",
        ),
    ],
)
def test_an_exchange_without_hope_is_aborted(answer, timeout_s, reason):
    with _watched({1: answer}) as watched:
        findings = watched.exchange(timeout_s)
        assert reason in watched.reasons[0]
        assert findings.text in watched.reasons[0]
        assert watched.status.tell().waits_at is None


def test_a_transport_that_reports_no_ends_is_asked_about_sooner(capfd):
    slow = dataclasses.replace(QUICK, patience_s=3600.0)
    with _watched({1: _elsewhere(fits=0)}, slow) as watched:
        watched.dog.patience_s = 0.0
        with watched.dog.deadline("the gossip of step 7", 60.0):
            while watched.channel.asked.count("status") < 3:
                threading.Event().wait(0.01)
    assert "has waited" not in capfd.readouterr().err  # a report has its own time


def test_a_slow_worker_is_reported_and_waited_for(capfd):
    with _watched({1: _elsewhere(fits=0)}) as watched:
        with watched.dog.deadline("the gossip of step 7", 60.0) as wait:
            while watched.channel.asked.count("status") < 3:
                threading.Event().wait(0.01)
        assert wait.findings is None and not watched.reasons
    said = capfd.readouterr().err
    assert "at the gossip of step 7: rank 1 has not called fit with GossipPGA yet." in said


@pytest.mark.parametrize(
    ("since_s", "said"),
    [
        (1.0, None),  # it may be tracing the exchange
        (10.0, "all ranks have reached it, the last of them 10 s ago."),
        (70.0, "the last of them 70 s ago, so the network between them is slow or cut."),
    ],
)
def test_the_network_is_blamed_only_where_all_have_been_there_for_long(capfd, since_s, said):
    timing = Timing(watch_every_s=3600.0)  # the test looks itself
    there = _elsewhere(exchanges=1, waits_at="the gossip of step 7", waits_s=since_s)
    with _watched({1: there}, timing) as watched:
        exchange = watched.dog.deadline("the gossip of step 7", 600.0)
        with exchange as wait:
            wait.started -= 100.0
            watched.status._waits = (wait.doing, wait.started)
            watched.dog._look_after(wait)
    reported = capfd.readouterr().err
    assert said in reported if said else not reported


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExchangeBroken("the gossip", "cut")])
def test_after_an_exchange_that_was_not_completed_no_other_begins(error):
    with _watched({}) as watched:
        exchange = watched.dog.deadline("the gossip of step 7", 60.0)
        with pytest.raises(type(error)), exchange:
            raise error
        text = r"Rank 0 of 2 can no longer exchange.*complete the gossip of step 7.*Restart all"
        with pytest.raises(WorkerLost, match=text), watched.dog.deadline("the start", 60.0):
            pass
        watched.dog.resume()  # with a new view
        with watched.dog.deadline("the reconciliation", 60.0):
            pass


def test_after_one_that_was_broken_between_fits_the_next_fit_may_regroup():
    with _watched({}) as watched:
        with pytest.raises(ExchangeBroken), watched.dog.deadline("cluster.barrier", 60.0):
            raise ExchangeBroken("cluster.barrier", "rank 1 has ended")
        watched.dog.give_up("rank 1 has ended")
        own = watched.status.tell()  # others that wait there know that it does not
        assert (own.unfinished, own.can_regroup) == ("cluster.barrier", True)
        with (
            pytest.raises(ExchangeBroken, match="rank 1 has ended"),
            watched.dog.deadline("the start", 60.0),
        ):
            pass
        assert not watched.reasons
        watched.dog.resume()
        own = watched.status.tell()
        assert (own.unfinished, own.can_regroup) == (None, False)


# ---- Exceptions that leave fit ------------------------------------------------------------------


def _fit(body):
    return body()


def test_the_others_hear_once_of_an_exception_that_has_left_fit():
    with _watched({}) as watched:

        def fail():
            watched.status.enter_fit(_fit.__code__)
            raise OSError("disk full")

        try:
            _fit(fail)
        except OSError:
            while not watched.channel.reported:
                threading.Event().wait(0.01)
        watched.dog.departures.tell()
        assert not watched.channel.at_exit
        watched.dog.departures.tell(ends=True)
        assert watched.channel.at_exit
        raised = "raised OSError: disk full"
        watched.dog.departures.tell()  # nothing after its last
        assert watched.channel.reported == [
            {"rank": 0, "text": raised, "ends": False},
            {"rank": 0, "text": f"{raised}, and has ended", "ends": True},
        ]


def test_a_forked_child_tells_nothing(monkeypatch):
    with _watched({}) as watched:
        monkeypatch.setattr(sys, "last_value", OSError("disk full"), raising=False)
        monkeypatch.setattr("os.getpid", lambda: 1)
        watched.dog.departures.tell(ends=True)
        assert not watched.channel.reported


def test_a_worker_that_hears_of_an_exception_loses_patience_and_quotes_it():
    timing = dataclasses.replace(QUICK, patience_s=600.0)
    with _watched({1: Absence.SUSPECTED}, timing) as watched:
        report = {"rank": 1, "text": "raised OSError: disk full, and has ended", "ends": True}
        assert watched.channel.handlers["departure"](report) == {}
        watched.exchange()
        assert watched.reasons == ["rank 1 raised OSError: disk full, and has ended"]


def test_what_a_worker_has_raised_is_known_until_it_trains_again_or_is_no_member():
    with _watched({}) as watched:
        departures = watched.dog.departures
        departures.learn({1: _elsewhere(left="raised OSError"), 2: _elsewhere()})
        assert departures.known == {1: Departure("raised OSError", ends=False)}
        departures.learn({1: Absence.SUSPECTED})
        assert set(departures.known) == {1}
        departures.learn({1: _elsewhere()})
        assert not departures.known
        departures.learn({1: _elsewhere(left="raised OSError")})
        departures.learn({2: _elsewhere()})
        assert not departures.known
        watched.channel.handlers["departure"]({"rank": 1, "text": "raised OSError", "ends": True})
        departures.learn({1: _elsewhere(left="raised OSError")})  # it is about to end
        assert departures.known[1].ends


def test_exchanges_that_are_called_off_end_and_do_not_begin_until_they_are_resumed():
    with _watched({}) as watched:
        with watched.dog.deadline("one", 60.0):
            watched.dog.call_off("another rank has lost a worker")
            assert watched.reasons == ["another rank has lost a worker"]
        watched.dog.call_off("a second reason")
        assert watched.dog.called_off == "another rank has lost a worker"
        with pytest.raises(ExchangeBroken) as broken, watched.dog.deadline("two", 60.0):
            pass
        assert (broken.value.doing, broken.value.reason) == ("two", watched.reasons[0])
        watched.dog.resume()
        with watched.dog.deadline("three", 60.0):
            assert watched.dog.called_off is None
        assert len(watched.reasons) == 1


def test_the_text_of_a_loss_names_the_worker_and_the_exchange():
    with _watched({1: Absence.DEAD}) as watched:
        text = watched.dog.text_of_loss(ExchangeBroken("the gossip of step 7", "Socket closed"))
        assert text.startswith("Rank 0 of 2 lost rank 1 at the gossip of step 7: rank 1 has ended")
        assert watched.channel.asked == ["ending", "status"]
        watched.channel.answers = {1: Absence.SUSPECTED}  # it may just be closing its sockets
        watched.dog.text_of_loss(ExchangeBroken("the gossip of step 7", "Socket closed"))
        assert watched.channel.asked == ["ending", "status", "ending", *["status"] * 4]


def test_the_text_of_a_loss_gives_the_watchdogs_reason_rather_than_tensorflows():
    found = Findings((1,), never=True, text="rank 1 raised OSError: disk full, and has ended")
    with _watched({1: Absence.DEAD}) as watched:
        for reason in ("Socket closed", f"no answer within 3 s; {found.text}"):
            text = watched.dog.text_of_loss(ExchangeBroken("the gossip", reason, None, found))
            assert found.text in text
            assert "Socket closed" not in text
            assert "longer timeout_s" not in text  # which would not help


def test_a_live_worker_that_misses_one_question_is_not_blamed():
    stopped = {1: Absence.SUSPECTED, 2: _elsewhere(exchanges=1, waits_at="the gossip of step 7")}
    with _watched(stopped) as watched:
        ask_all = watched.channel.ask_all

        def miss_the_first_question(kind, timeout_s=None, **details):
            answers = ask_all(kind, timeout_s, **details)
            return {**answers, 2: Absence.SUSPECTED} if len(watched.channel.asked) == 1 else answers

        watched.channel.ask_all = miss_the_first_question
        findings = watched.exchange(timeout_s=0.0)
        assert (findings.ranks, len(watched.reasons)) == ((1,), 1)
        assert "rank 2" not in watched.reasons[0]


def test_a_worker_that_hears_of_a_loss_loses_patience():
    with _watched({1: Absence.DEAD}, Timing(watch_every_s=0.01, patience_s=600.0)) as watched:
        assert watched.channel.handlers["ending"]({"rank": 1}) == {}
        watched.exchange()
        assert watched.reasons


def test_patience_grows_with_the_length_of_steps():
    with _watched({}, dataclasses.replace(QUICK, patience_s=5.0)) as watched:
        assert watched.dog._patience_s(600.0) == 5.0
        watched.dog._step_s.extend([1.0, 2.0, 3.0])
        assert watched.dog._patience_s(600.0) == 40.0  # 20 median steps
        assert watched.dog._patience_s(100.0) == 10.0  # at most a tenth of the timeout
        watched.dog.at("computing step 2", 1)
        assert watched.status.tell().step == 1


def test_a_wait_is_reported_first_late_and_then_when_it_has_doubled():
    waiting = Waiting(5.0, now=100.0)
    moments = [(101.0, None), (105.5, 5.5), (110.0, None), (111.5, 11.5), (120.0, None)]
    assert [(now, waiting.due(now)) for now, _ in moments] == moments


def test_ranks_are_named_in_order():
    assert named({3, 1}) == "rank 1 and rank 3"
    assert named({3, 1}, {1: "raised OSError"}) == "rank 1, which raised OSError and rank 3"
