"""The surviving workers' agreement on a view, with threads for workers and their real channels."""

import contextlib
import dataclasses
import inspect
import re
import socket
import threading

import pytest

from tests.support import addresses, deadlines
from tf_gossip_pga.coordination import channel, membership
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import Standing, View
from tf_gossip_pga.errors import TrainingFinished, ViewAbandoned, WorkerLost

# Where a cut lets no answers through. The second is far longer than one question.
CUT = {"ask_s": 0.5, "silent_s": 5.0}

# A channel that is closed while it serves leaves asyncio a few things to complain of.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _patient(**deadlines_s: float) -> Timing:
    """Return deadlines that a busy machine meets, except for those that are given."""
    patient = dict.fromkeys(("ask_s", "serve_s", "silent_s"), deadlines.scaled(60))
    return Timing(**{**patient, **deadlines_s})


class Crew:
    """Workers of one process: each has a channel, a membership and a thread that trains."""

    def __init__(self, size: int, timing: Timing):
        # Nobody listens there, as if all had died; those that live answer on the channel.
        mains = addresses.free(size)
        self.statuses = [Status() for _ in range(size)]
        self.channels = [
            channel.Channel(mains, rank, status, timing)
            for rank, status in enumerate(self.statuses)
        ]
        for each in self.channels:
            each.learn_all([other.introduction for other in self.channels])
        self.called_off = [[] for _ in range(size)]
        self.memberships = [
            membership.Membership(*pair, rank, size, timing, self.called_off[rank].append)
            for rank, pair in enumerate(zip(self.channels, self.statuses, strict=True))
        ]
        for each in self.memberships:  # all have heard of one another
            each._run(each._protocol.ping(), lambda view: None)
        self.joined = [[] for _ in range(size)]
        self.silent = socket.create_server(("127.0.0.1", 0))
        self.results = {}
        self.in_fit = threading.Barrier(1)  # nobody asks before all train
        self.ended = threading.Event()

    def enter(self, rank: int):
        """Let the function that calls this be the first `fit` of a rank."""
        status = self.statuses[rank]
        status.enter_fit(inspect.currentframe().f_back.f_code)
        status._fits = 1

    def die(self, rank: int):
        self.channels[rank].close()

    def cut(self, one: int, other: int):
        """Lets nothing through between two of them."""
        for here, there in ((one, other), (other, one)):
            peers = dict(self.channels[here]._peers)
            silent = self.silent.getsockname()[1]
            peers[there] = dataclasses.replace(peers[there], port=silent)
            self.channels[here]._peers = peers

    def start(
        self, rank: int, completed: int, least: int = 1, timeout_s=60.0, on_join=lambda: None
    ):
        def regroup(own: membership.Membership, join):
            def join_and_more(*arguments):
                join(*arguments)
                on_join()

            return own.regroup(completed, least, timeout_s, join_and_more)

        self.train(rank, regroup)

    def train(self, rank: int, action):
        """Lets a thread do `action(membership, join)`, and then train on."""

        def fit():
            self.enter(rank)
            in_fit.wait()

            def join(view):
                self.joined[rank].append((view.number, view.members))

            try:
                self.results[rank] = action(self.memberships[rank], join)
            except WorkerLost as error:
                self.results[rank] = str(error)
            except InterruptedError:  # it has died
                return
            ended.wait()  # it trains on

        in_fit, ended = self.in_fit, self.ended
        threading.Thread(target=fit, daemon=True).start()

    def regroup(self, completed: dict[int, int], **arguments) -> dict:
        """What `regroup` returned or raised on each rank, which had completed so many exchanges."""
        self.in_fit, self.ended = threading.Barrier(len(completed)), threading.Event()
        self.results = {}
        for rank, count in completed.items():
            self.start(rank, count, **arguments)
        self.wait(completed)
        self.ended.set()
        return self.results

    def wait(self, ranks):
        come = set(ranks)
        deadlines.Deadline(120).until(
            lambda: come <= set(self.results), describe=lambda: str(self.results)
        )


@contextlib.contextmanager
def _crew(size: int, **deadlines_s: float):
    crew = Crew(size, _patient(**deadlines_s))
    try:
        yield crew
    finally:
        crew.silent.close()
        for each in crew.channels:
            each.close()


@pytest.mark.parametrize("dead", [{0}, {2}, {0, 3}, {0, 1, 2}])
def test_all_that_are_left_become_members_and_learn_who_came_furthest(dead):
    with _crew(4) as crew:
        for rank in dead:
            crew.die(rank)
        left = tuple(sorted({0, 1, 2, 3} - dead))
        results = crew.regroup({rank: 40 + rank for rank in left})
        assert results == dict.fromkeys(left, 40 + max(left))
        for rank in left:
            assert crew.joined[rank] == [(1, left)]
            assert crew.memberships[rank].view == View(1, left)


def test_a_second_loss_makes_a_second_view():
    with _crew(4) as crew:
        crew.die(3)
        crew.regroup({0: 5, 1: 5, 2: 5})
        crew.die(0)
        assert crew.regroup({1: 7, 2: 8}) == {1: 8, 2: 8}
        assert crew.joined[2] == [(1, (0, 1, 2)), (2, (1, 2))]


def test_one_that_dies_while_they_regroup_is_left_out():
    with _crew(4) as crew:
        crew.die(3)

        def die():
            crew.die(2)
            raise InterruptedError

        crew.in_fit = threading.Barrier(3)
        crew.start(2, 1, on_join=die)
        for rank in (0, 1):
            crew.start(rank, 1)
        crew.wait((0, 1))
        crew.ended.set()
        for rank in (0, 1):
            assert crew.memberships[rank].view.members == (0, 1)
            assert crew.joined[rank][-1][1] == (0, 1)


def test_the_others_are_called_off_and_waited_for():
    with _crew(3) as crew:
        crew.die(0)
        crew.enter(2)  # this thread stands for rank 2
        crew.start(1, 9)
        while not crew.called_off[2]:
            threading.Event().wait(0.05)
        assert 1 not in crew.results  # it waits for rank 2, which lives and trains
        crew.start(2, 8)
        crew.wait((1, 2))
        crew.ended.set()
        assert crew.results == {1: 9, 2: 9}
        assert crew.called_off == [[], [], ["another rank has lost a worker"]]


def test_fewer_than_wanted_end_with_the_reason():
    with _crew(3) as crew:
        crew.die(2)
        crew.in_fit = threading.Barrier(2)
        crew.start(0, 1, least=3)
        crew.start(1, 1, least=3)
        crew.wait([0])  # which decides
        assert "2 of 3 workers survive, fewer than min_workers=3" in crew.results[0]
        crew.ended.set()  # it leaves fit, so that rank 1 has to decide
        crew.wait([1])
        assert "1 of 3 workers survive, fewer than min_workers=3" in crew.results[1]


def test_who_reaches_others_than_the_rest_do_is_in_no_group_of_its_own():
    with _crew(3, **CUT) as crew:
        crew.cut(0, 1)  # rank 2 reaches both
        results = crew.regroup({0: 5, 1: 5, 2: 5})
        assert (results[0], results[2]) == (5, 5)
        assert "rank 2 has continued without it" in results[1]
        assert crew.memberships[0].view.members == crew.memberships[2].view.members == (0, 2)
        called_off = list(crew.called_off[2])
        crew.channels[1].keep({2})
        answers = crew.channels[1].ask_all("regroup", deadlines.long(), rank=1, wants=2, fit=1)
        assert answers[2]["wants"] == 1
        assert crew.called_off[2] == called_off  # nor does it disturb them


def test_of_two_that_cannot_reach_each_other_the_higher_is_left_out():
    with _crew(3, **CUT) as crew:
        crew.cut(1, 2)  # rank 0, which decides, reaches both
        results = crew.regroup({0: 5, 1: 5, 2: 5})
        assert (results[0], results[1]) == (5, 5)
        assert "has continued without it" in results[2]
        # No view was formed and abandoned.
        assert crew.joined == [[(1, (0, 1))], [(1, (0, 1))], []]


def test_one_that_answers_and_does_not_come_is_left_out_and_named(capfd):
    with _crew(3, report_s=0.0, silent_s=4.0) as crew:
        crew.enter(0)  # this thread hangs as rank 0
        assert crew.regroup({1: 5, 2: 4}, timeout_s=4.0) == {1: 5, 2: 5}
        assert crew.memberships[1].view.members == (1, 2)
    text = r"Rank 1 has waited \d+ s for rank 0 (and rank 2 )?to regroup after the loss of a worker"
    assert re.search(text, capfd.readouterr().err)


def test_who_was_left_out_and_comes_when_the_others_have_ended_continues_with_nobody():
    with _crew(3, silent_s=4.0) as crew:
        crew.enter(2)  # this thread answers as rank 2, and does not come
        assert crew.regroup({0: 5, 1: 5}, timeout_s=4.0) == {0: 5, 1: 5}
        crew.die(0)
        crew.die(1)
        crew.in_fit = threading.Barrier(1)
        crew.start(2, 5)
        crew.wait([2])
        assert "This worker knows only that rank 0 and rank 1 ended" in crew.results[2]
        assert crew.joined[2] == []


def test_who_asks_once_in_a_while_learns_that_it_is_excluded():
    with _crew(3, ping_every_s=0.0) as crew:
        crew.memberships[0]._protocol._standing = Standing(view=1, view_members=(0, 1), wants=1)
        own = crew.memberships[2]
        own._run(own._protocol.ping(), lambda view: None)
        assert crew.called_off == [[], [], ["other workers have continued without this rank"]]


def test_nobody_regroups_with_one_that_has_trained_to_the_end():
    with _crew(2) as crew:
        crew.memberships[0]._protocol.finished = 1
        own = crew.memberships[1]
        with pytest.raises(TrainingFinished):
            own.regroup(9, 1, 60, lambda view: None)
        assert own.view.members == (0, 1)


class _Silent:
    """A channel whose others always answer the same."""

    def __init__(self, answers):
        self.handlers = {}
        self._answers = answers

    def ask_all(self, kind, **details):
        return self._answers


def _membership(answers, rank: int, size: int, **deadlines_s: float) -> membership.Membership:
    return membership.Membership(
        _Silent(answers), Status(), rank, size, _patient(**deadlines_s), lambda reason: None
    )


@pytest.mark.parametrize(
    ("rank", "silent", "continues"),
    [
        (0, [1], True),  # one against one: the lowest rank
        (1, [0], False),
        (2, [0, 1], False),
        (0, [1, 2], False),  # rank 0 alone is fewer
    ],
)
def test_of_two_sides_of_a_cut_one_continues(rank, silent, continues):
    answers = dict.fromkeys(silent, Absence.SUSPECTED)
    size = 1 + len(silent)
    own = _membership(answers, rank, size, silent_s=0.2)
    if continues:
        assert own.regroup(3, 1, 60, lambda view: None) == 3
        assert own.view.members == (rank,)
    else:
        with pytest.raises(WorkerLost, match="which may be continuing without"):
            own.regroup(3, 1, 60, lambda view: None)


def test_one_that_was_silent_for_long_learns_that_others_have_continued():
    continued = {"view": 1, "wants": 1, "completed": 5, "members": None}
    answers = {1: {**continued, "is_member": False, "in_fit": True}}
    own = _membership(answers, 0, 2)
    with pytest.raises(WorkerLost, match="rank 1 has continued without it"):
        own.regroup(3, 1, 60, lambda view: None)


def _grow(own: membership.Membership, join):
    try:
        own.grow(1, [0, 1], [2], join)
    except ViewAbandoned:
        return "abandoned"
    return "grown"


def test_members_and_joining_workers_form_one_view():
    with _crew(3) as crew:
        crew.in_fit = threading.Barrier(2)
        crew.train(0, _grow)
        crew.train(1, _grow)
        crew.ended.wait(0.5)  # a joining worker may still be on its way into fit
        assert crew.results == {}
        crew.in_fit = threading.Barrier(1)
        crew.train(2, _grow)
        crew.wait(range(3))
        assert set(crew.results.values()) == {"grown"}
        for own in crew.memberships:
            assert own.view == View(1, (0, 1, 2))
        assert crew.joined == 3 * [[(1, (0, 1, 2))]]
        assert crew.called_off == [[], [], []]


def test_nobody_grows_with_one_that_has_lost_the_exchange_before():
    def grow_or_regroup(own, join):
        assert _grow(own, join) == "abandoned"
        return own.regroup(7, 1, 60.0, join)

    with _crew(3) as crew:
        crew.memberships[2].restrict((2,))  # a joining worker, which lives
        crew.in_fit = threading.Barrier(2)
        crew.train(0, grow_or_regroup)
        crew.start(1, completed=6)
        crew.wait([0, 1])
        assert crew.results == {0: 7, 1: 7}
        # Rank 0 may join view 1 with rank 2 before it learns that rank 1 does not come.
        assert crew.joined[0][-1] == (2, (0, 1))
        assert crew.joined[1] == [(2, (0, 1))]
        for own in crew.memberships[:2]:
            assert own.view == View(2, (0, 1))
        assert crew.called_off[2] == []


def test_a_joining_worker_that_cannot_be_reached_is_no_side_of_a_cut():
    def grow_or_regroup(own, join):
        with contextlib.suppress(ViewAbandoned):
            own.grow(1, [1], [0], join)
        return own.regroup(7, 1, 60.0, join)

    with _crew(2, admit_s=1.0, **CUT) as crew:
        crew.cut(0, 1)
        crew.memberships[1].restrict((1,))  # all that is left; the lowest rank is joining
        crew.train(1, grow_or_regroup)
        crew.wait([1])
        assert crew.results == {1: 7}
        assert crew.memberships[1].view.members == (1,)
