"""Sessions without TensorFlow's server or other processes: the parts around them are stand-ins."""

import atexit
import contextlib
import dataclasses
import json
import os
import sys
import threading
import types
import weakref

import pytest
import tensorflow as tf

from tf_gossip_pga.cluster import gpus
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import running_call
from tf_gossip_pga.coordination.diagnosis import Findings
from tf_gossip_pga.coordination.joining import Invitation
from tf_gossip_pga.coordination.status import Absence, Departure, Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.errors import (
    ExchangeBroken,
    TrainingFinished,
    ViewAbandoned,
    ViewChanged,
    WorkerLost,
)
from tf_gossip_pga.exchange import process
from tf_gossip_pga.exchange.elastic import ElasticSession, LossPolicy
from tf_gossip_pga.exchange.session import MISSED, FixedSession, SoloSession
from tf_gossip_pga.exchange.transport import NCCL, RING

CLUSTER = Cluster(1, 3, ("a:1", "b:1", "c:1"))


class StandInChannel:
    """Note what a session tells its channel."""

    def __init__(self):
        self.handlers = {}
        self.kept = self.probed = None
        self.heard = 0

    def keep(self, ranks):
        self.kept = set(ranks)

    def probe(self, ranks):
        self.probed = list(ranks)

    def heard_all(self):
        self.heard += 1


class StandInWatchdog:
    """A watchdog that never aborts, and refuses exchanges while they are called off."""

    def __init__(self):
        self.called_off = None
        self.entered = []
        self.departures = types.SimpleNamespace(known={})

    @contextlib.contextmanager
    def deadline(self, doing, timeout_s):
        if self.called_off:
            raise ExchangeBroken(doing, self.called_off)
        self.entered.append(doing)

        class Wait:
            findings = Findings(ranks=(2,), never=True, text="rank 2 has ended")

        yield Wait

    def call_off(self, reason):
        self.called_off = reason

    give_up = call_off

    def resume(self):
        self.called_off = None

    def text_of_loss(self, broken):
        return f"lost at {broken.doing}: {broken.reason}"


class StandInMembership:
    """Form the views that a test says: each `(members, most completed)`, or an exception."""

    def __init__(self, *views):
        self.view = View(0, (0, 1, 2))
        self._views = list(views)
        self.asked = []
        self.calls = []

    def regroup(self, completed, min_workers, timeout_s, join):
        self.asked.append((completed, min_workers, timeout_s))
        found = self._views.pop(0)
        if isinstance(found, Exception):
            raise found
        members, most = found
        self.view = View(self.view.number + 1, members)
        join(self.view)
        return most

    def recheck(self):
        pass

    def watch(self):
        self.calls.append("watch")

    def begin_fit(self, patience_s):
        self.calls.append(("begin", patience_s))

    def end_fit(self):
        self.calls.append("end")

    def meet(self):
        self.calls.append("meet")


class StandInRuntime:
    strategy = None

    def __init__(self):
        self.views = []

    def set_view(self, view):
        self.views.append(view)


def _status(in_fit: bool = True) -> Status:
    status = Status()
    if in_fit:
        _enter(status)
    return status


_entered = weakref.WeakSet()


def _enter(status: Status):
    """Enter `fit`, for which `_test_body` stands: a worker is in it while that runs."""
    status.enter_fit(_enter.__code__)
    _entered.add(status)


def _test_body(action):
    for status in _entered:
        status._fit = running_call.Call(_test_body.__code__)
    return action()


def _elastic(*views, in_fit: bool = True, timing: Timing | None = None) -> ElasticSession:
    # A cluster of its own: a session marks its lost workers.
    cluster = dataclasses.replace(CLUSTER, lost=set())
    return ElasticSession(
        cluster,
        RING,
        StandInRuntime(),
        StandInChannel(),
        _status(in_fit),
        StandInWatchdog(),
        StandInMembership(*views),
        timing,
    )


def _broken(doing: str = "the gossip of step 7"):
    raise ExchangeBroken(doing, "a worker has died")


def _exchange(session, doing: str = "the gossip of step 7", error: Exception | None = None):
    """An exchange that fails with an error, or succeeds."""
    with session.waiting(doing, 60):
        if error is not None:
            raise error
    return doing


# ---- One worker ---------------------------------------------------------------------------------


def test_a_single_worker_exchanges_with_itself():
    session = SoloSession(Cluster())
    assert session.gather({"a": 1}, "the start", 60) == [{"a": 1}]
    assert (session.size, session.place, session.view) == (1, 0, View(0, (0,)))
    assert session.run(lambda: 5) == 5
    assert session.unreachable() == []
    session.begin(lambda: 5, "the gossip", 60)
    assert session.finish() is None
    with session.waiting("the start", 60):
        pass


# ---- Fixed members ------------------------------------------------------------------------------


def _fixed(watchdog=None) -> FixedSession:
    watchdog = watchdog or StandInWatchdog()
    return FixedSession(CLUSTER, RING, StandInChannel(), _status(), watchdog)


@pytest.mark.parametrize(("hint", "patience_s"), [("ring", 5.0), ("nccl", 1.0)])
def test_the_watchdog_asks_sooner_over_nccl_which_reports_no_ends(hint, patience_s):
    transport = dataclasses.replace(RING, hint=hint)  # from the CPU, as there may be no GPU
    watchdog = StandInWatchdog()
    FixedSession(CLUSTER, transport, StandInChannel(), _status(), watchdog)
    assert watchdog.patience_s == patience_s


def test_a_network_failure_ends_a_fixed_session():
    error = tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(WorkerLost, match="lost at the gossip of step 7: Socket closed"):
        _exchange(_fixed(), error=error)


@pytest.mark.parametrize("place", [0, 1])
def test_a_call_of_the_script_that_meets_something_else_is_an_error(place):
    session = _fixed()
    doings = ["cluster.barrier", "cluster.barrier", "cluster.barrier"]
    session._gather = lambda message: [[doing, None] for doing in doings]
    assert session.gather(None, "cluster.barrier", 60) == [None] * 3
    doings[place] = "the start of training"
    text = rf"rank {place} is at the start of training.*call cluster.gather"
    with pytest.raises(RuntimeError, match=text):
        session.gather(None, doings[1], 60)


def test_an_error_of_our_own_is_not_taken_for_a_loss():
    error = tf.errors.InvalidArgumentError(None, None, "shapes differ")
    with pytest.raises(tf.errors.InvalidArgumentError, match="shapes differ"):
        _exchange(_fixed(), error=error)


def test_an_exchange_in_the_background_ends_before_the_next_begins():
    session, released, order = _fixed(), threading.Event(), []

    def slow():
        released.wait(60)
        order.append("gossip")
        return "changes"

    session.begin(slow, "the gossip", 60)
    threading.Timer(0.05, released.set).start()
    with session.waiting("the global average", 60):
        order.append("average")
    assert order == ["gossip", "average"]
    assert session.finish() == "changes"


def test_a_failure_in_the_background_shows_where_it_is_waited_for():
    session = _fixed()
    session.begin(_broken, "the gossip of step 7", 60)
    with pytest.raises(WorkerLost, match="lost at the gossip of step 7"):
        session.finish()


def test_exceptions_that_end_a_thread_or_the_process_are_reported(monkeypatch):
    reported, shown, at_exit = [], [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_type))
    monkeypatch.setattr(atexit, "register", lambda *call, **kw: at_exit.append((*call, kw)))
    departures = types.SimpleNamespace(tell=lambda ends=False: reported.append(ends))
    process._tell_of_exceptions(departures)
    thread = threading.Thread(target=_broken)
    thread.start()
    thread.join()
    assert (reported, shown) == ([False], [ExchangeBroken])
    ((tell, arguments),) = at_exit
    tell(**arguments)
    assert reported == [False, True]


# ---- Members that change ------------------------------------------------------------------------


def test_without_a_policy_a_loss_is_the_end():
    session = _elastic()
    with pytest.raises(WorkerLost, match="lost at the gossip of step 7"):
        _test_body(lambda: _exchange(session, error=ExchangeBroken("the gossip of step 7", "x")))
    assert not session._membership.asked


def test_a_loss_between_fits_is_raised_and_the_next_fit_regroups():
    session, seen = _elastic(((0, 1), 0), in_fit=False), []
    with pytest.raises(WorkerLost, match="next fit with on_worker_lost='continue' trains with"):
        _exchange(session, "cluster.barrier", ExchangeBroken("cluster.barrier", "x"))
    with pytest.raises(WorkerLost, match=r"lost at cluster.gather: x"):
        _exchange(session, "cluster.gather")
    assert not session._membership.asked
    _enter(session._status)
    session.begin_sequence(LossPolicy(1, 60.0, lambda completed: None))
    _test_body(lambda: session.start(_noting(session, seen, "the start", fails=0)))
    assert (seen, session.view) == (["the start"], View(1, (0, 1)))


def test_where_a_loss_ends_training_the_fit_after_one_between_fits_fails_too():
    session = _elastic(in_fit=False)
    with pytest.raises(WorkerLost):
        _exchange(session, "cluster.barrier", ExchangeBroken("cluster.barrier", "x"))
    _enter(session._status)
    session.begin_sequence(None)
    text = "lost at the start: x With on_worker_lost='continue' the surviving workers continue"
    with pytest.raises(WorkerLost, match=text):
        _test_body(lambda: session.start(_noting(session, [], "the start", fails=0)))


def _failing_once(session, log: list):
    """Exchanges that note their names; the one called `"breaks"` fails the first time."""

    def run(name: str):
        def exchange():
            with session.waiting(name, 60):
                log.append(name)
                if name == "breaks" and log.count("breaks") == 1:
                    raise ExchangeBroken(name, "a worker has died")
            return name

        return session.run(exchange)

    return run


@pytest.mark.parametrize(
    ("most", "log", "results"),
    [
        # The others stand where this worker does: the exchange is run again, after reconciling.
        (2, ["a", "b", "breaks", ("reconcile", 2), "breaks", "c"], ["a", "b", "breaks", "c"]),
        # They have completed it: this worker skips it.
        (3, ["a", "b", "breaks", ("reconcile", 2), "c"], ["a", "b", MISSED, "c"]),
    ],
)
def test_the_sequence_has_no_gap_after_a_loss(most, log, results):
    session, seen = _elastic(((0, 1), most)), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: seen.append(("reconcile", n))))
    run = _failing_once(session, seen)
    assert _test_body(lambda: [run(name) for name in ("a", "b", "breaks", "c")]) == results
    assert seen == log
    assert session.view == View(1, (0, 1))
    assert session.cluster.lost == {2}
    assert session._runtime.views == [View(1, (0, 1))]
    assert session._channel.kept == {0, 1}
    assert session._channel.probed == []  # rank 0 is the chief, which probes
    assert session._membership.asked == [(2, 1, 60.0)]


def test_the_survivors_say_what_the_lost_worker_has_reported(capfd):
    session = _elastic(((0, 1), 0))
    departure = Departure("raised OSError: disk full", ends=False)
    session._watchdog.departures.known = {2: departure}
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    _test_body(lambda: _failing_once(session, [])("breaks"))
    assert "Rank 1 continues without rank 2, which raised OSError: disk full: 2 of 3 workers" in (
        capfd.readouterr().err
    )


def test_the_new_chief_probes_the_lost_workers_and_warns_of_the_chiefs_callbacks(capfd):
    session = _elastic(((1, 2), 0))
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    _test_body(lambda: _failing_once(session, [])("breaks"))
    assert session.cluster.is_chief
    assert session._channel.probed == [0]
    assert "Rank 1 is the chief from now on. Callbacks that" in capfd.readouterr().err


def test_a_loss_while_reconciling_makes_all_reconcile_again():
    session, seen = _elastic(((0, 1), 1), ((1,), 1)), []

    def reconcile(completed):
        seen.append(session.view.members)
        if len(seen) == 1:
            with session.waiting("the reconciliation", 60):
                raise ExchangeBroken("the reconciliation", "another has died")

    session.begin_sequence(LossPolicy(1, 60.0, reconcile), completed=1)
    assert _test_body(lambda: _failing_once(session, [])("breaks")) == "breaks"
    assert seen == [(0, 1), (1,)]


def test_another_ranks_loss_is_met_before_reconciling():
    session, seen = _elastic(((0, 1), 1), ((1,), 1)), []
    policy = LossPolicy(1, 60.0, lambda n: seen.append(session.view.members))
    session.begin_sequence(policy, completed=1)
    resume = session._watchdog.resume

    def called_off_at_once():  # another worker already wants the next view
        resume()
        if len(session._membership.asked) == 1:
            session._watchdog.called_off = "another rank has lost a worker"

    session._watchdog.resume = called_off_at_once
    _test_body(lambda: _failing_once(session, [])("breaks"))
    assert seen == [(1,)]


def test_the_same_exchange_does_not_fail_forever():
    everybody = ((0, 1, 2), 0)
    session = _elastic(*[everybody] * 10, timing=Timing(futile_regroups=3))
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))

    def always():
        with session.waiting("the gossip", 60):
            raise ExchangeBroken("the gossip", "cut")

    with pytest.raises(WorkerLost, match=r"lost at the gossip: cut$"):
        _test_body(lambda: session.run(always))
    assert len(session._membership.asked) == 1 + 3


def test_training_that_others_have_finished_is_reported_and_exchanges_may_continue():
    session = _elastic(TrainingFinished())
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    with pytest.raises(TrainingFinished):
        _test_body(lambda: _failing_once(session, [])("breaks"))
    assert session._watchdog.called_off is None


def test_an_attempt_that_changes_the_view_is_reconciled_by_the_next_exchange():
    session, seen = _elastic(((0, 1), 1)), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: seen.append("reconciled")), completed=1)

    def action():
        with session.waiting("the admission", 60):
            raise ExchangeBroken("the admission", "gone")

    _test_body(lambda: session.attempt(action))
    assert (session.view.number, seen) == (1, [])
    assert _test_body(lambda: session.run(lambda: "next")) == "next"
    assert seen == ["reconciled"]


def test_an_exchange_in_the_background_is_gone_with_its_view():
    session = _elastic(((0, 1), 0))
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    session.begin(_broken, "the gossip of step 7", 60)

    def next_exchange():
        with session.waiting("the global average", 60):
            return "average"

    assert _test_body(lambda: session.run(next_exchange)) == "average"
    assert session.finish() is None


def test_a_sequence_begins_where_the_others_are():
    session = _elastic(((0, 1), 8))
    session.begin_sequence(LossPolicy(2, 60.0, lambda n: None), completed=7)
    missed = _test_body(lambda: _failing_once(session, [])("breaks"))
    assert missed is MISSED  # the others have it
    assert session._membership.asked == [(7, 2, 60.0)]


def test_the_end_of_training_is_reported():
    session = _elastic()
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    session.end_sequence()
    session.begin_sequence(None)
    assert session._membership.calls == ["watch", ("begin", 60.0), "end", ("begin", None)]


def test_a_lost_worker_is_no_reason_against_the_next_fit():
    session = _elastic()
    session._channel.unreachable = lambda: [2]
    assert session.unreachable() == [2]
    _enter(session._status)
    assert session.unreachable() == []


def test_an_exchange_with_all_shows_that_they_live():
    session = _elastic()
    session.heard_all()
    assert (session._channel.heard, session._membership.calls) == (1, ["watch", "meet"])


# ---- The start ----------------------------------------------------------------------------------


def _noting(session, log: list, name: str, fails: int):
    """A part of the start, which fails so many times."""

    def exchange():
        with session.waiting(name, 60):
            log.append(name)
            if log.count(name) <= fails:
                raise ExchangeBroken(name, "a worker has died")

    return exchange


@pytest.mark.parametrize(
    ("breaks", "log"),
    [
        ("none", ["facts", "weights", "first"]),
        ("facts", ["facts", "facts", "weights", "first"]),
        ("weights", ["facts", "weights", "facts", "weights", "first"]),
        # Nobody has completed the first exchange, so that others may still be in the start.
        ("first", ["facts", "weights", "first", "facts", "weights", "first"]),
    ],
)
def test_where_a_worker_is_lost_in_the_start_all_start_again(breaks, log):
    session, seen = _elastic(((0, 1), 0)), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: seen.append("reconciled")))

    def fit():
        for name in ("facts", "weights"):
            session.start(_noting(session, seen, name, fails=int(name == breaks)))
        session.run(_noting(session, seen, "first", fails=int(breaks == "first")))

    _test_body(fit)
    assert seen == log


def test_who_has_missed_the_first_exchange_does_not_start_again():
    session, seen = _elastic(((0, 1), 1)), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: seen.append("reconciled")))
    session.start(lambda: seen.append("weights"))
    assert _test_body(lambda: _failing_once(session, seen)("breaks")) is MISSED
    assert seen == ["weights", "breaks", "reconciled"]


@pytest.mark.parametrize(
    ("breaks", "views", "log"),
    [
        ([], [], "facts callback weights first"),
        # Lost in the callback's exchange. Nobody has completed it: all start again.
        (["callback"], [0], "facts callback facts callback weights first"),
        # Others have completed it, and are called off at the weights; or this worker is.
        (["callback"], [1], "facts callback reconciled weights first"),
        (["weights"], [1], "facts callback weights reconciled weights first"),
        # Lost while weights are sent: others have them, or this worker alone has.
        (["weights"], [2], "facts callback weights reconciled first"),
        (["first"], [2], "facts callback weights first reconciled first"),
        # Lost twice.
        (
            ["callback", "weights"],
            [1, 1],
            "facts callback reconciled weights reconciled weights first",
        ),
        (["weights"] * 2, [1, 2], "facts callback weights reconciled weights reconciled first"),
        (["callback"] * 2, [0, 1], "facts callback facts callback reconciled weights first"),
    ],
)
def test_a_start_after_an_exchange_of_a_callback_is_counted(breaks, views, log):
    session, seen = _elastic(*[((0, 1), most) for most in views]), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: seen.append("reconciled")))

    def part(name):
        return _noting(session, seen, name, fails=breaks.count(name))

    def fit():
        session.start(part("facts"))
        session.run(part("callback"))
        session.start(part("weights"))
        session.run(part("first"))

    _test_body(fit)
    assert seen == log.split()


def test_a_second_loss_in_the_start_makes_all_start_once_more():
    session, seen = _elastic(((0, 1), 0), ((1,), 0)), []
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    _test_body(lambda: session.start(_noting(session, seen, "weights", fails=2)))
    assert seen == ["weights"] * 3
    assert session.view == View(2, (1,))


def test_view_changed_never_leaves_the_sequence():
    session = _elastic(((0, 1), 0))
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    with pytest.raises(ViewChanged):  # only where an exchange runs outside of it
        _test_body(lambda: _exchange(session, error=ExchangeBroken("the gossip", "x")))


def test_a_joining_worker_counts_all_workers_until_it_is_alone_no_longer():
    membership = StandInMembership()
    membership.view = View(0, (1,))  # it knows only itself
    session = ElasticSession(
        CLUSTER,
        RING,
        StandInRuntime(),
        StandInChannel(),
        _status(),
        StandInWatchdog(),
        membership,
        is_joining=True,
    )
    assert (session.size, session.ops.size) == (3, 1)
    assert session.gather("own", "the start", 60) == ["own"]


def test_a_joining_worker_changes_to_the_transport_of_the_members_or_keeps_its_own(monkeypatch):
    session = _elastic()
    monkeypatch.setattr(gpus, "own_gpu", lambda: "")
    with pytest.raises(ValueError, match=r"Rank 1 cannot join: .* no GPU that NCCL can use"):
        session.use_transport("nccl")
    session.communication = "nccl"
    with pytest.raises(ValueError, match=r"Rank 1 cannot join: .* this worker requests 'nccl'"):
        session.use_transport("ring")
    assert session.transport is RING
    monkeypatch.setattr(gpus, "own_gpu", lambda: "0000:3b:00.0")
    session.use_transport("nccl")
    assert session.transport is NCCL


def test_only_the_first_fit_can_be_joined():
    session = _elastic()
    session.admission.announced = lambda: {"2": 7}
    assert session.joining() == {}  # a loss ends training
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    assert session.joining() == {"2": 7}
    _enter(session._status)
    assert session.joining() == {}


def _connected(timing: Timing | None = None) -> tuple[ElasticSession, ElasticSession]:
    """Return sessions of a member, rank 0, and of a worker that wants to join as rank 1."""
    members, own = _elastic(timing=timing), _elastic(timing=timing)
    members.admission.listen()
    members._channel.endpoints = {0: 7}
    members._channel.learn = members._channel.endpoints.__setitem__
    own._channel.endpoint, own.learned = 8, {}
    own._channel.learn = own.learned.__setitem__

    def ask_all(kind, **details):
        answer = members._channel.handlers[kind](details)
        return {0: json.loads(json.dumps(answer))}

    own._channel.ask_all = ask_all
    return members, own


INVITATION = Invitation(2, 9, [0], [1], "ring", 3, "digest", {"step": 9})


def test_a_lost_invitation_is_repeated_until_the_admission_ends():
    members, own = _connected(Timing(announce_every_s=0.0))
    deliver, answers = own._channel.ask_all, []

    def lose_the_first(kind, **details):
        answers.append(deliver(kind, **details))
        assert len(answers) <= 2
        return answers[1] if len(answers) == 2 else {0: Absence.SUSPECTED}

    own._channel.ask_all = lose_the_first
    with members.admission.inviting(INVITATION, {"1": 8}, asks=True):
        assert own.admission.await_invitation() == INVITATION
    assert answers[0] == answers[1]
    assert own.learned == {0: 7, 1: 8}
    assert own._channel.kept == {0, 1}
    assert own.admission.await_invitation() == INVITATION  # without another announcement
    assert len(answers) == 2


def test_of_several_invitations_the_newest_counts():
    members, own = _connected()
    old = dataclasses.replace(INVITATION, view_number=1)
    with members.admission.inviting(INVITATION, {"1": 8}, asks=True):
        answer = own._channel.ask_all("join", rank=1, endpoint=8)[0]
    own._channel.ask_all = lambda *_, **__: {
        0: {**answer, "invitation": dataclasses.asdict(old)},
        2: answer,
    }
    assert own.admission.await_invitation() == INVITATION


def test_only_the_process_that_is_admitted_is_invited_and_by_one_member():
    members, own = _connected()

    def invited(rank: int, endpoint: int) -> bool:
        answer = own._channel.ask_all("join", rank=rank, endpoint=endpoint)[0]
        return answer["invitation"] is not None

    with members.admission.inviting(INVITATION, {"1": 8}, asks=False):
        assert not invited(1, 8)
    with members.admission.inviting(INVITATION, {"1": 8}, asks=True):
        assert invited(1, 8)
        assert not invited(1, 9)  # it was restarted again
        assert not invited(2, 8)  # it announces itself for the first time
    assert not invited(1, 8)


@pytest.mark.parametrize("error", [None, ViewAbandoned("gone"), WorkerLost("all have ended")])
def test_nobody_is_invited_after_an_admission(error):
    members, own = _connected()
    members.ops = types.SimpleNamespace(place=0)  # the lowest member
    invited = []

    def grow(number, current, joining, set_view):
        invited.append(own._channel.ask_all("join", rank=1, endpoint=8)[0]["invitation"])
        if error:
            raise error

    members._membership.grow = grow
    members._on_broken = lambda *_: None  # the survivors regroup
    with contextlib.suppress(WorkerLost):
        members.admit({"1": 8}, 3, "digest", {})
    invited.append(own._channel.ask_all("join", rank=1, endpoint=8)[0]["invitation"])
    assert [each is not None for each in invited] == [True, False]


def test_a_worker_that_comes_back_to_a_later_fit_ends_and_says_why():
    members, own = _connected()
    _enter(members._status)
    text = "Rank 1 cannot join: rank 0 is already in a later call of fit"
    with pytest.raises(WorkerLost, match=text):
        own.admission.await_invitation()


def test_the_last_survivor_waits_for_nobody():
    session = _elastic(((1,), 0))
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    assert _test_body(lambda: _failing_once(session, [])("breaks")) == "breaks"
    session._watchdog.entered.clear()
    assert session.gather({"a": 1}, "the end", 60) == [{"a": 1}]
    assert _exchange(session) and not session._watchdog.entered


def test_a_script_does_not_gather_inside_of_a_fit_that_survives_losses():
    session = _elastic()
    session.begin_sequence(LossPolicy(1, 60.0, lambda n: None))
    with pytest.raises(RuntimeError, match=r"cluster.gather cannot be called inside a fit"):
        _test_body(lambda: session.gather(1, "cluster.gather", 60))


# ---- A script that never averages ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "doings", "is_child", "failed", "is_warned"),
    [
        (0, [], False, None, True),
        (0, ["cluster.barrier"], False, None, True),
        (0, ["cluster.barrier", "the start of training"], False, None, False),
        (0, ["cluster.gather"], False, None, False),  # a script that evaluates, perhaps
        (1, [], False, None, False),
        (0, [], True, None, False),  # a forked child
        (0, [], False, OSError("its own words are enough"), False),
    ],
)
def test_workers_that_never_exchange_are_warned_of_when_the_script_ends(
    rank, doings, is_child, failed, is_warned, capsys, monkeypatch
):
    session = _elastic()
    session.cluster = dataclasses.replace(session.cluster, rank=rank)
    session._gather = lambda value: [value] * 3
    monkeypatch.setattr(sys, "last_value", failed, raising=False)
    for doing in doings:
        session.gather(None, doing, 60)
    process._warn_of_no_average(session, os.getpid() + is_child)
    said = "3 workers were connected, but nothing was averaged" in capsys.readouterr().err
    assert said is is_warned
