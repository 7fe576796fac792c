"""Simulate the membership protocol: the package's own generators, a virtual clock and network.

Each simulated worker runs a small model of what a worker does around the protocol. It trains in one
`fit` after another. In each `fit` it starts with the others, computes, and exchanges with all
members of the view or with a neighbor. It regroups if an exchange fails or is called off, skips
exchanges that others have completed, and admits joining workers. It also pings. All randomness
comes from the seed, so that a run can be repeated:

    python tests/protocol.py --first=17 --schedules=1

Invariants, checked during the run:

    (a) No two workers begin views with the same number and different members.
    (b) No exchange of all members takes place in a view after a view with a higher number has
        begun: at most one side of a partition continues.
    (c) An excluded worker ends with an error: every process that is alive at the end has either
        trained to the end or failed.
    (d) Every worker has ended a bounded time after the last fault.
    (e) All members of a view take part in the same exchange, and skip only exchanges that some
        worker has completed: the sequence has no gap.
    (f) If the only faults are crashes, every worker that has not crashed trains to the end, unless
        fewer than `min_workers` survive.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import heapq
import itertools
import random
from collections.abc import Callable, Generator, Iterable
from typing import Any

from tests.support.protocol_schedules import Fault, Schedule
from tf_gossip_pga.coordination import protocol as protocol_lib
from tf_gossip_pga.coordination.sequence import Sequence
from tf_gossip_pga.coordination.status import Absence
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.errors import ExchangeBroken, TrainingFinished, ViewAbandoned, WorkerLost

# Longer polls than in reality make fewer events; the order of the durations is the same.
TIMING = Timing(poll_s=2.0, ping_every_s=6.0, report_s=1e9, announce_every_s=2.0, announced_s=10.0)
EXCHANGE_TIMEOUT_S = 150.0
_REGROUP_S = 150.0
_EPOCH = 3  # number of exchanges after which members admit joining workers
_BOUND_S = 4000.0  # (d): at most 20 attempts, each with two waits for silent workers
_START, _RECONCILE = "start", "reconcile"  # exchanges outside of the sequence


class Violation(Exception):  # noqa: N818 (what the simulation is there to find)
    """Signal that an invariant does not hold.

    Args:
      invariant: letter of the invariant.
      text: what happened.

    Attributes:
      invariant: letter of the invariant.
    """

    def __init__(self, invariant: str, text: str):
        super().__init__(f"({invariant}) {text}")
        self.invariant = invariant


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """Request to take part in the next exchange of the view.

    Attributes:
      what: number of the exchange in the sequence, or `_START` or `_RECONCILE`.
      of_all: whether it needs all members; otherwise it needs only the next lower member.
    """

    what: int | str
    of_all: bool = True


@dataclasses.dataclass(frozen=True)
class _Tell:
    """Request to send a message outside of the protocol to some workers, and to await answers."""

    ranks: tuple[int, ...]
    handle: Callable[[Worker], dict]


@dataclasses.dataclass
class _Gathering:
    """Hold the state of an exchange in one view: which ranks have arrived, and with what."""

    of_all: bool
    arrived: dict[int, Worker] = dataclasses.field(default_factory=dict)
    brought: dict[int, Any] = dataclasses.field(default_factory=dict)
    began: set[int] = dataclasses.field(default_factory=set)  # ranks whose partners have arrived
    left: bool = False  # a member gave up before all members had arrived
    cut: bool = False  # two members could not reach each other when all had arrived


@dataclasses.dataclass
class _Question:
    """Hold the state of a request to several workers."""

    asker: Worker
    resume: Callable[[dict[int, dict | Absence]], None]
    expected: int
    answers: dict[int, dict | Absence]
    silent_at: float
    is_over: bool = False


class Worker:
    """Simulate one process.

    Args:
      world: the simulated machines and network.
      rank: its rank.
      joining: whether it was restarted to join a running job.

    Attributes:
      outcome: None while it runs; then `"finished"`, `"crashed"`, or why it failed.
    """

    def __init__(self, world: World, rank: int, joining: bool = False):
        self.world, self.rank = world, rank
        self.protocol = protocol_lib.Protocol(
            rank, world.schedule.size, TIMING, lambda: world.now, self.call_off
        )
        self.peers: dict[int, Worker] = {}
        self.alive, self.stopped, self.vanished = True, False, False
        self.fit = 1 if joining else 0
        self.in_fit = False
        self.serving = not joining  # whether TensorFlow listens on its main port
        self.outcome: str | None = None
        self.sequence = Sequence(TIMING.futile_regroups)
        self.begun = None if joining else 0  # number of the last view that it has begun
        self.called_off = False
        self.announced: dict[int, tuple[Worker, float]] = {}
        self.to_admit: tuple[int, tuple[int, ...]] | None = None
        self.offered: dict | None = None  # the invitation that it answers announcements with
        self.invitation: dict | None = None
        self.index = 0  # number of exchanges so far in this view
        self.gathering: _Gathering | None = None
        self.ticket = 0
        self.backlog: list[Callable[[], None]] = []
        self.busy_until = 0.0
        self.suspected_since: float | None = None
        self.program = self._joining() if joining else self._training()

    @property
    def completed(self) -> int:
        """Number of exchanges that this worker has completed or skipped."""
        return self.sequence.completed

    # ---- What it does ---------------------------------------------------------------------------

    def _training(self) -> Generator[Any, Any, None]:
        while self.fit < self.world.schedule.fits:
            yield protocol_lib.Pause(self.world.random.choice([0.0, 1.0, 10.0]))
            self.fit += 1
            self.in_fit = True
            self.sequence = Sequence(TIMING.futile_regroups)
            self.to_admit = None  # only the first fit can be joined
            self.protocol.contacts.patience_s = _REGROUP_S
            yield from self._fit(starts=True)

    def _fit(self, starts: bool) -> Generator[Any, Any, None]:
        try:
            if starts:
                yield from self._start()
            yield from self._steps()
        except TrainingFinished:
            if self.completed < self.world.schedule.exchanges - 1:
                raise Violation("e", f"rank {self.rank} finished too early") from None
        self.in_fit, self.protocol.finished = False, self.fit
        self.protocol.contacts.patience_s = TIMING.silent_s

    def _start(self) -> Generator[Any, Any, None]:
        while True:
            try:
                yield from self._exchange(_Exchange(_START))
                self.sequence.must_reconcile = False
                return
            except ExchangeBroken:
                yield from self._recover(())

    def _steps(self) -> Generator[Any, Any, None]:
        while self.completed < self.world.schedule.exchanges:
            yield protocol_lib.Pause(self.world.random.expovariate(1 / 4.0))
            try:
                if self.sequence.must_reconcile:
                    what = _START if self.sequence.is_at_start else _RECONCILE
                    yield from self._exchange(_Exchange(what))
                    self.sequence.must_reconcile = False
                yield from self._step()
            except ExchangeBroken:
                yield from self._recover(())

    def _exchange(self, exchange: _Exchange) -> Generator[Any, Any, Any]:
        if self.called_off:
            raise ExchangeBroken("the exchange", "called off")
        brought = yield exchange
        if exchange.of_all:
            self.protocol.contacts.record_exchange(self.world.now)
        return brought

    def _step(self) -> Generator[Any, Any, None]:
        number = self.completed + 1
        if self.sequence.skips_next:
            self.world.check_skipped(self, number)
            self.sequence.complete()
            return
        is_last = number == self.world.schedule.exchanges
        of_all = is_last or number % _EPOCH != _EPOCH - 1
        brought = yield from self._exchange(_Exchange(number, of_all))
        self.sequence.complete()
        self.world.run.add((self.fit, number))
        if not of_all:
            return
        joining = self._all_admit(brought)
        if number % _EPOCH == 0 and self.fit == 1:
            self.to_admit = (self.protocol.view.number, self._announced_to(brought))
        elif joining and not is_last:
            yield from self._admit(joining)

    def contribution(self) -> Any:
        """Return what this worker passes to the others in an exchange."""
        soon = self.world.now - TIMING.announced_s
        lost = set(range(self.world.schedule.size)) - set(self.protocol.view.members)
        waiting = {r for r, (_, heard) in self.announced.items() if heard > soon and r in lost}
        return (tuple(sorted(waiting)), self.to_admit)

    def _announced_to(self, brought: dict[int, Any]) -> tuple[int, ...]:
        return tuple(sorted({rank for waiting, _ in brought.values() for rank in waiting}))

    def _all_admit(self, brought: dict[int, Any]) -> tuple[int, ...]:
        """Return the workers that all members are ready to admit in this view."""
        wishes = {to_admit for _, to_admit in brought.values()}
        self.to_admit = None
        wish = wishes.pop()
        same = not wishes and wish is not None and wish[0] == self.protocol.view.number
        return wish[1] if same else ()

    def _admit(self, joining: tuple[int, ...]) -> Generator[Any, Any, None]:
        view = self.protocol.view
        for rank in joining:
            self.peers[rank] = self.world.newest[rank]
        if self.rank == view.members[0]:
            self.offered = {
                "number": view.number + 1,
                "completed": self.completed,
                "members": view.members,
                "joining": joining,
            }
        try:
            yield from self.protocol.grow(view.number + 1, view.members, joining)
        except ViewAbandoned:
            self.announced, self.offered = {}, None
            yield from self._recover(joining)
        else:
            self._start_view()

    def _recover(self, joining: tuple[int, ...]) -> Generator[Any, Any, None]:
        self.called_off = True
        before = {*self.protocol.view.members, *joining}
        most = yield from self.protocol.regroup(
            self.completed, self.world.schedule.min_workers, _REGROUP_S, self.fit
        )
        is_lost = bool(before - set(self.protocol.view.members))
        if is_lost:
            self.world.fits_of_losses.append(self.fit)
            self.world.completed_at_losses.append(most)
        if not self.sequence.regroup(most, is_lost):
            raise WorkerLost("the same exchange has failed too often")
        self._start_view()

    def _start_view(self):
        self.world.check_begun(self)
        view = self.protocol.view
        self.peers = {rank: peer for rank, peer in self.peers.items() if rank in view.members}
        self.announced, self.to_admit, self.offered = {}, None, None
        self.index = 0
        self.called_off = False
        self.protocol.recheck()

    def _joining(self) -> Generator[Any, Any, None]:
        self.protocol.view = View(0, (self.rank,))
        while not (chief := self.world.probing(self)):
            if not any(each.alive for each in self.world.newest.values() if each is not self):
                raise WorkerLost("no worker is training")
            yield protocol_lib.Pause(2.0)
        self.serving = True
        self.peers = {**chief.peers, chief.rank: chief}
        while self.invitation is None:
            answers = yield _Tell(tuple(self.peers), self._announce)
            if all(answer is Absence.DEAD for answer in answers.values()):
                raise WorkerLost("all others have ended")
            for answer in answers.values():
                if isinstance(answer, dict):
                    self.invitation = self.invitation or answer["invitation"]
            yield protocol_lib.Pause(TIMING.announce_every_s)
        invitation = self.invitation
        ranks = {*invitation["members"], *invitation["joining"]} - {self.rank}
        self.peers = {rank: self.world.newest[rank] for rank in ranks}
        yield protocol_lib.Pause(self.world.random.uniform(0.0, 60.0))
        self.in_fit = True
        try:
            yield from self.protocol.grow(
                invitation["number"], invitation["members"], invitation["joining"]
            )
            self._start_view()
            self.sequence = Sequence(TIMING.futile_regroups, invitation["completed"])
            yield from self._step()  # the state transfer
        except (ViewAbandoned, ExchangeBroken):
            raise WorkerLost("it was not admitted") from None
        self.protocol.contacts.patience_s = _REGROUP_S
        self.world.ping(self)
        yield from self._fit(starts=False)
        yield from self._training()

    def _announce(self, member: Worker) -> dict:
        if member.in_fit:
            member.announced[self.rank] = (self, self.world.now)
        self.peers.update({r: p for r, p in member.peers.items() if r != self.rank})
        return {"invitation": member.offered if member.peers.get(self.rank) is self else None}

    # ---- What others and the network do to it ---------------------------------------------------

    def call_off(self, reason: str):
        """Break the current exchange, and every later one in this view."""
        self.called_off = True
        self.world.break_exchange(self)

    def deliver(self, action: Callable[[], None]):
        """Run an action in this process, or once it is no longer stopped."""
        if self.stopped:
            self.backlog.append(action)
        elif self.alive:
            action()


class World:
    """Simulate the machines and the network between them.

    Args:
      schedule: the schedule of the run.
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.random = random.Random(schedule.seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._cuts: collections.Counter[tuple[int, int]] = collections.Counter()
        self._lossy = 0
        self.run: set[tuple[int, int]] = set()  # (fit, exchange) that some worker has completed
        self.fits_of_losses: list[int] = []  # the fit in which each survivor knew of each loss
        self.completed_at_losses: list[int] = []  # most exchanges any member had completed then
        self._gatherings: dict[Any, _Gathering] = {}
        self._views: dict[int, tuple[int, ...]] = {}  # number -> members of each view begun
        self._begun: dict[int, set[int]] = {}  # number -> ranks that have begun the view
        self.workers = [Worker(self, rank) for rank in range(schedule.size)]
        self.newest = dict(enumerate(self.workers))
        for worker in self.workers:
            worker.peers = {r: p for r, p in self.newest.items() if r != worker.rank}
            self._views[0] = worker.protocol.view.members
            self.after(0.0, functools.partial(self._resume, worker, worker.ticket, None))
            self.after(0.0, functools.partial(self.ping, worker))
        for fault in schedule.faults:
            self.after(fault.at, functools.partial(self._begin_fault, fault))

    def simulate(self):
        """Run until no events are left, or the bound of invariant (d) has passed.

        Raises:
          Violation: an invariant does not hold.
        """
        quiet = max([0.0, *(max(f.at, f.until or 0.0) for f in self.schedule.faults)])
        while self._queue:
            self.now, _, action = heapq.heappop(self._queue)
            if self.now > quiet + _BOUND_S:
                break
            action()
        self._check_outcomes()

    def _check_outcomes(self):
        crashes_only = all(fault.kind == "crash" for fault in self.schedule.faults)
        for worker in self.workers[: self.schedule.size]:
            ends_well = worker.outcome in ("finished", "crashed")
            if crashes_only and not ends_well and "min_workers" not in str(worker.outcome):
                raise Violation("f", f"rank {worker.rank} ends, with: {worker.outcome}")
        for worker in self.workers:
            waits = worker.protocol.view == View(0, (worker.rank,)) and worker.invitation is None
            if worker.alive and not worker.stopped and worker.outcome is None and not waits:
                raise Violation("d", f"rank {worker.rank} has not ended at {self.now:.0f} s")

    def after(self, seconds: float, action: Callable[[], None]):
        """Schedule an action.

        Args:
          seconds: virtual seconds from now.
          action: what to do then.
        """
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), action))

    # ---- Faults ---------------------------------------------------------------------------------

    def _begin_fault(self, fault: Fault):
        if fault.kind in ("crash", "vanish"):
            self._crash(self.newest[fault.ranks[0]], fault)
        elif fault.kind == "stop":
            worker = self.newest[fault.ranks[0]]
            worker.stopped = worker.alive
            if fault.until is not None:
                self.after(fault.until - self.now, functools.partial(self._wake, worker))
        elif fault.kind == "busy":
            worker = self.newest[fault.ranks[0]]
            worker.busy_until = fault.until or self.now
        elif fault.kind == "loss":
            self._lossy += 1
            self.after((fault.until or self.now) - self.now, self._end_loss)
        else:
            self._change_cut(fault, 1)
            if fault.until is not None:
                after = functools.partial(self._change_cut, fault, -1)
                self.after(fault.until - self.now, after)

    def _end_loss(self):
        self._lossy -= 1

    def _change_cut(self, fault: Fault, by: int):
        for one in fault.ranks:
            for other in fault.others:
                self._cuts[one, other] += by
                if fault.kind == "two_way":
                    self._cuts[other, one] += by

    def _crash(self, worker: Worker, fault: Fault):
        if not worker.alive:
            return
        self._end(worker)
        worker.outcome = "crashed"
        worker.vanished = fault.kind == "vanish"
        if fault.until is not None:
            restart = functools.partial(self._restart, worker.rank)
            self.after(fault.until - self.now, restart)

    def _restart(self, rank: int):
        worker = Worker(self, rank, joining=True)
        self.workers.append(worker)
        self.newest[rank] = worker
        self._resume(worker, worker.ticket, None)

    def _end(self, worker: Worker):
        """End a process; workers that exchange with it may notice immediately."""
        worker.alive = worker.in_fit = worker.serving = worker.stopped = False
        worker.backlog = []
        for other in self.workers:
            waits = other.gathering is not None and worker.rank in other.protocol.view.members
            if waits and self.reach(worker, other) and self.random.random() < 0.6:
                broken = functools.partial(self._break_if, other, other.ticket)
                self.after(self.random.uniform(0.0, 1.0), broken)

    def _wake(self, worker: Worker):
        worker.stopped = False
        backlog, worker.backlog = worker.backlog, []
        for action in backlog:
            worker.deliver(action)

    def reach(self, one: Worker, other: Worker) -> bool:
        """Return whether packets pass in both directions between two machines, as TCP requires."""
        ranks = (one.rank, other.rank)
        cut = self._cuts[ranks] or self._cuts[ranks[::-1]]
        return not cut and not one.vanished and not other.vanished

    def probing(self, worker: Worker) -> Worker | None:
        """Return the worker that probes a restarted worker: the lowest surviving rank."""
        for other in self.workers:
            members = other.protocol.view.members
            chief = other.in_fit and other.rank == members[0] and worker.rank not in members
            begun = other.protocol.view.number > 0
            if chief and begun and not other.stopped and self.reach(worker, other):
                return other
        return None

    # ---- Programs -------------------------------------------------------------------------------

    def _resume(self, worker: Worker, ticket: int, value: Any):
        """Resume a worker's program, unless it has already been resumed."""
        if worker.stopped:
            worker.backlog.append(functools.partial(self._resume, worker, ticket, value))
            return
        if not worker.alive or ticket != worker.ticket:
            return
        if self.now < worker.busy_until:  # it answers requests, but makes no progress
            again = functools.partial(self._resume, worker, ticket, value)
            self.after(worker.busy_until - self.now, again)
            return
        worker.ticket += 1
        worker.gathering = None
        try:
            if isinstance(value, ExchangeBroken):
                effect = worker.program.throw(value)
            else:
                effect = worker.program.send(value)
        except StopIteration:
            self._finish(worker)
        except WorkerLost as error:
            worker.in_fit, worker.outcome = False, str(error)
            self._end_soon(worker)
        else:
            self._perform(worker, effect)

    def _finish(self, worker: Worker):
        worker.outcome = "finished"
        self._end_soon(worker)

    def _end_soon(self, worker: Worker):
        end = functools.partial(self._end, worker)
        self.after(self.random.uniform(0.0, 10.0), end)

    def _perform(self, worker: Worker, effect: Any):
        match effect:
            case protocol_lib.Pause(seconds):
                self._continue(worker, seconds)
            case protocol_lib.Join():
                self._continue(worker, self.random.uniform(0.0, 1.0))
            case protocol_lib.Report():
                self._continue(worker, 0.0)
            case protocol_lib.Ask(wants):
                resume = functools.partial(self._resume, worker, worker.ticket)
                self._ask(worker, tuple(worker.peers), _standing(worker, wants), resume)
            case _Tell(ranks, handle):
                resume = functools.partial(self._resume, worker, worker.ticket)
                self._ask(worker, ranks, handle, resume)
            case _Exchange():
                self._arrive(worker, effect)

    def _continue(self, worker: Worker, seconds: float, value: Any = None):
        self.after(seconds, functools.partial(self._resume, worker, worker.ticket, value))

    # ---- Pings ----------------------------------------------------------------------------------

    def ping(self, worker: Worker):
        """Let a worker ping now and repeatedly, like the thread in a real worker."""
        if worker.stopped:
            worker.backlog.append(functools.partial(self.ping, worker))
            return
        if not worker.alive or worker.outcome is not None:
            return
        self.after(TIMING.ping_every_s, functools.partial(self.ping, worker))
        steps = worker.protocol.ping()
        effect = next(steps, None)
        if not isinstance(effect, protocol_lib.Ask):
            return
        asks = _standing(worker, effect.wants)
        ranks = tuple(worker.peers)
        if self._all_answer(worker):  # immediate answers save events and change nothing
            answers = {rank: asks(worker.peers[rank]) for rank in ranks}
            self._end_ping(worker, steps, answers)
        else:
            self._ask(worker, ranks, asks, functools.partial(self._end_ping, worker, steps))

    def _all_answer(self, worker: Worker) -> bool:
        peers = worker.peers.values()
        return not self._lossy and all(
            each.alive and not each.stopped and self.reach(worker, each) for each in peers
        )

    def _end_ping(self, worker: Worker, steps: protocol_lib.Steps[None], answers: dict):
        if worker.stopped:
            worker.backlog.append(functools.partial(self._end_ping, worker, steps, answers))
        elif worker.alive:
            with contextlib.suppress(StopIteration):
                steps.send(answers)

    # ---- Questions ------------------------------------------------------------------------------

    def _ask(
        self,
        asker: Worker,
        ranks: tuple[int, ...],
        handle: Callable[[Worker], dict],
        resume: Callable[[dict[int, dict | Absence]], None],
    ):
        if not ranks:
            self.after(0.0, functools.partial(resume, {}))
            return
        question = _Question(asker, resume, len(ranks), {}, self.now + TIMING.ask_s)
        for rank in ranks:
            target = asker.peers[rank]
            if self.reach(asker, target) and not self._is_lost():
                arrive = functools.partial(self._receive, question, target, handle)
                self.after(self._delay(), arrive)
        self.after(TIMING.ask_s, functools.partial(self._give_up, question, ranks))

    def _receive(self, question: _Question, target: Worker, handle: Callable[[Worker], dict]):
        if target.stopped:  # the request waits in the socket's buffer until the process continues
            again = functools.partial(self._receive, question, target, handle)
            target.backlog.append(again)
            return
        if not target.alive:
            successor = self.newest[target.rank]
            answer = Absence.SUSPECTED if successor.serving else Absence.DEAD
        else:
            answer = handle(target)
        if not self.reach(question.asker, target) or self._is_lost():
            return
        if self.now < question.silent_at and answer is not Absence.SUSPECTED:
            question.answers[target.rank] = answer
            if len(question.answers) == question.expected:
                question.is_over = True
                self.after(self._delay(), functools.partial(question.resume, question.answers))

    def _give_up(self, question: _Question, ranks: tuple[int, ...]):
        if not question.is_over:
            for rank in ranks:
                question.answers.setdefault(rank, Absence.SUSPECTED)
            question.resume(question.answers)

    def _delay(self) -> float:
        return 0.2 * self.random.random()

    def _is_lost(self) -> bool:
        return self._lossy > 0 and self.random.random() < 0.2

    # ---- Exchanges ------------------------------------------------------------------------------

    def _arrive(self, worker: Worker, exchange: _Exchange):
        view = worker.protocol.view
        key = (view, worker.index)
        gathering = self._gatherings.setdefault(key, _Gathering(exchange.of_all))
        worker.index += 1
        worker.gathering, worker.suspected_since = gathering, None
        gathering.arrived[worker.rank] = worker
        where = (worker.fit, exchange.what)
        gathering.brought[worker.rank] = (where, worker.contribution())
        self._gather(view, gathering)
        watch = functools.partial(self._watch, worker, worker.ticket, self.now)
        self.after(TIMING.patience_s, watch)

    def _gather(self, view: View, gathering: _Gathering):
        """Let the exchange begin on each rank whose partners have arrived."""
        if gathering.of_all:
            self._gather_all(view, gathering)
            return
        members = view.members
        for worker in gathering.arrived.values():
            neighbor = members[members.index(worker.rank) - 1]
            waits = worker.gathering is gathering and worker.rank not in gathering.began
            if waits and neighbor in gathering.arrived:
                gathering.began.add(worker.rank)
                self._check_same(view, gathering)
                complete = functools.partial(self._complete, worker, worker.ticket, gathering)
                self.after(self.random.uniform(0.05, 1.0), complete)

    def _gather_all(self, view: View, gathering: _Gathering):
        if len(gathering.arrived) < len(view.members) or gathering.left or gathering.began:
            return
        gathering.began = set(view.members)
        gathering.cut = not self._all_reach(gathering.arrived.values())
        self._check_same(view, gathering)
        newer = max(self._views)
        if newer > view.number:
            raise Violation("b", f"{view} continues after view {newer} has begun")
        for worker in gathering.arrived.values():
            complete = functools.partial(self._complete, worker, worker.ticket, gathering)
            self.after(self.random.uniform(0.05, 1.0), complete)

    def _check_same(self, view: View, gathering: _Gathering):
        places = {where for where, _ in gathering.brought.values()}
        if len(places) > 1:
            raise Violation("e", f"exchanges {sorted(map(str, places))} meet in {view}")

    def _complete(self, worker: Worker, ticket: int, gathering: _Gathering):
        """Complete an exchange on one worker, unless data from another worker is missing."""
        if worker.ticket != ticket or not worker.alive:
            return
        members = list(gathering.arrived.values())
        if not gathering.of_all:
            ranks = worker.protocol.view.members
            neighbor = gathering.arrived[ranks[ranks.index(worker.rank) - 1]]
            members = [worker, neighbor]
            gathering.cut = not self.reach(worker, neighbor)
        if gathering.cut:
            gathering.cut = not self._all_reach(members)
            missing = gathering.cut
        else:  # data of a member that is gone may have arrived already
            gone = [e for e in members if not e.alive or e.stopped or not self.reach(worker, e)]
            if any(not each.alive for each in gone) and self.random.random() < 0.5:
                return
            missing = bool(gone) and self.random.random() < 0.5
        if missing:  # it may still arrive
            self.after(5.0, functools.partial(self._complete, worker, ticket, gathering))
            return
        brought = {rank: what for rank, (_, what) in gathering.brought.items()}
        self._resume(worker, ticket, brought)

    def _all_reach(self, workers: Iterable[Worker]) -> bool:
        return all(self.reach(*pair) for pair in itertools.combinations(workers, 2))

    def break_exchange(self, worker: Worker):
        """Let the exchange that a worker waits for fail, if there is one."""
        if worker.gathering is not None:
            if not worker.gathering.began:
                worker.gathering.left = True
            self._continue(worker, 0.0, ExchangeBroken("the exchange", "broken"))

    def _break_if(self, worker: Worker, ticket: int):
        if worker.ticket == ticket:
            self.break_exchange(worker)

    def _watch(self, worker: Worker, ticket: int, since: float):
        """Check an exchange as the watchdog does, and schedule the next check."""
        if worker.ticket != ticket or not worker.alive:
            return
        never, silent = False, False
        for rank in worker.protocol.view.members:
            if rank == worker.rank or rank not in worker.peers:
                continue
            other = worker.peers[rank]
            reached = self.reach(worker, other)
            left = other.fit > worker.fit or (other.fit == worker.fit and not other.in_fit)
            never = never or (reached and not other.stopped and (left or not other.alive))
            silent = silent or not reached or other.stopped
        if not silent:
            worker.suspected_since = None
        elif worker.suspected_since is None:
            worker.suspected_since = self.now
        began = worker.suspected_since
        suspected = began is not None and self.now > began + TIMING.suspect_s
        if worker.stopped:
            pass
        elif never or suspected or self.now > since + EXCHANGE_TIMEOUT_S:
            self.break_exchange(worker)
            return
        self.after(15.0, functools.partial(self._watch, worker, ticket, since))

    # ---- Invariants -----------------------------------------------------------------------------

    def check_begun(self, worker: Worker):
        """Check invariants (a) and (c) for a view that a worker has just begun."""
        view = worker.protocol.view
        if worker.begun is not None:
            for number in range(worker.begun + 1, view.number):
                others = self._views.get(number, (worker.rank,))
                if worker.rank not in others and self._has_begun(number):
                    text = f"view {view.number} is begun by rank {worker.rank}, which is not in"
                    raise Violation("c", f"{text} view {number} = {others}")
        worker.begun = view.number
        self._begun.setdefault(view.number, set()).add(worker.rank)
        members = self._views.setdefault(view.number, view.members)
        if members != view.members:
            text = f"view {view.number} has members {members} and {view.members}"
            raise Violation("a", text)

    def _has_begun(self, number: int) -> bool:
        """Return whether all live members of a view have begun it.

        If only some have, because the leader was stopped before the others learned of the
        beginning, no exchange takes place in the view, and the others may continue without it.
        """
        live = {rank for rank in self._views[number] if self.newest[rank].alive}
        return live <= self._begun[number]

    def check_skipped(self, worker: Worker, number: int):
        """Check that some worker has completed an exchange that a worker skips."""
        if (worker.fit, number) not in self.run:
            raise Violation("e", f"rank {worker.rank} skips exchange {number}, which nobody ran")


def _standing(asker: Worker, wants: int) -> Callable[[Worker], dict]:
    """Return the request of a worker in the protocol: function from another worker to its answer.

    Args:
      asker: the worker that asks.
      wants: number of the view that it wants.
    """
    rank, fit = asker.rank, asker.fit
    return lambda target: dict(
        vars(target.protocol.answer(rank, wants, fit, target.fit, target.in_fit))
    )


def simulate(schedule: Schedule) -> Violation | None:
    """Simulate a schedule; return the violation, or None if all invariants hold.

    Args:
      schedule: the schedule.
    """
    try:
        World(schedule).simulate()
    except Violation as found:
        return found
    return None
