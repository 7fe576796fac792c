"""WHO is left: after a loss the survivors agree on one list of members, beside broken exchanges.

Workers form generations: generation 0 are all, and each later one those of the one before that are
left, or these and others that come back (`grow`). A rank whose exchange has failed wants the next
generation, and asks the others, through `channel`, until each of them

    wants it too            it has been told so, and its own exchange has been called off
    has gone                nobody listens any more on its ports, or it has left `fit`
    is silent for long      stopped, or cut off

Then the lowest of those who want it decides on them; the others take its list. Each makes itself a
member, and says so; when the deciding one has heard it from all, they begin. Whatever goes wrong on
the way makes all want the generation after that. So no exchange of a generation begins before every
member is in it: TensorFlow's group leader would forget who came too early. And no worker is a
member of two: where some reach others than the rest do, the list that all on it have taken counts.

Silent workers may live on the other side of a cut, where they decide the same about us. A side goes
on if it has more workers than are silent, or as many and the lowest rank. Those who have gone are
known to be gone and count for nobody: down to one worker may be left. So does one that answers and
does not come before the deadline. Where two of them cannot reach each other though the deciding one
reaches both, the higher rank of the two is left out.
"""

import dataclasses
import functools
import time

from tf_gossip_pga.coordination import channel as channel_lib
from tf_gossip_pga.coordination import watch
from tf_gossip_pga.errors import TrainingFinished, ViewAbandoned

# How long a worker may be silent before the others go on without it.
_SILENT_S = 15.0

_POLL_S = 0.1

# How often they try to agree.
_ATTEMPTS = 20

# How long they wait for one another before it is worth a word.
_SAY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a worker answers to those who ask for a new generation.

    Attributes:
      generation: the last one whose exchanges it has begun.
      wants: the one it wants, or is in.
      completed: exchanges completed in this `fit`.
      members: of the generation it wants, as soon as it has decided or been told.
      is_member: whether it has made itself one of them.
      in_fit: whether it still trains.
      has_finished: whether it has trained to the end.
      silent: the ranks that gave it no answer when it asked last.
    """

    generation: int = 0
    wants: int = 0
    completed: int = 0
    members: tuple[int, ...] | None = None
    is_member: bool = False
    in_fit: bool = True
    has_finished: bool = False
    silent: tuple[int, ...] = ()


class Membership:
    """One worker's view of who is left.

    Args:
      channel: what the others are asked through.
      status: of this worker, for whether it still trains.
      rank: this worker's.
      size: number of workers at first.
      call_off: called with a reason when another worker wants a new generation.

    Attributes:
      members: ranks of the present generation, in order.
      generation: its number.
      has_finished: whether this worker has trained to the end. The caller sets it.
    """

    def __init__(self, channel, status: channel_lib.Status, rank: int, size: int, call_off):
        self.members = tuple(range(size))
        self.generation = 0
        self.has_finished = False
        self._channel = channel
        self._status = status
        self._rank = rank
        self._call_off = call_off
        self._wanted = 0  # the latest generation that anybody wants
        self._standing = Standing()
        channel.handlers["regroup"] = self._answer

    def regroup(self, completed: int, least: int, timeout_s: float, join) -> int:
        """Forms the next generation with all that are left, and is one of them when it returns.

        Args:
          completed: exchanges this worker has completed.
          least: how many there must be.
          timeout_s: how long to wait for workers that live and do something else.
          join: called with the members and the number of the generation, makes this process one.

        Returns:
          The most exchanges that any of them has completed.

        Raises:
          TrainingFinished: there is nothing left to do together.
          WorkerLost: too few are left, or others have gone on without this one.
        """
        ends = time.monotonic() + timeout_s
        wants = max(self._wanted, self.generation + 1)
        for _ in range(_ATTEMPTS):
            try:
                stand = Standing(self.generation, wants, completed)
                # Those who have just come to want it, too, take a moment to say so.
                soonest = time.monotonic() + _SILENT_S
                return self._form(stand, least, max(ends, soonest), join)
            except ViewAbandoned:  # another was lost meanwhile
                wants = max(self._wanted, wants + 1)
        raise watch.WorkerLost(
            f"Rank {self._rank}: those that are left did not agree on who they are, in {_ATTEMPTS} "
            "attempts. Look at the network between them, and start the job again."
        )

    def grow(self, generation: int, veterans, guests, timeout_s: float, join):
        """Makes this worker one of a generation of `veterans` and `guests`; all of them call it.

        Args:
          generation: its number, one more than the veterans'.
          veterans: the present members, which have just completed the same exchange.
          guests: workers that come back.
          timeout_s: how long to wait for all of them.
          join: as in `regroup`.

        Raises:
          ViewAbandoned: another was lost meanwhile, or did not come; the veterans may regroup.
        """
        members = tuple(sorted({*veterans, *guests}))
        self.members, self.generation = tuple(veterans), generation - 1
        stand, ends = Standing(self.generation, generation), time.monotonic() + timeout_s
        others = [rank for rank in veterans if rank != self._rank]
        try:
            # While one is still inside of the exchange before, none may leave its cluster.
            all_want = functools.partial(_all_want, generation, others)
            self._until(stand, others, ends, all_want, guests)
            join(members, generation)
            stand = dataclasses.replace(stand, members=members, is_member=True)
            self._until_all_are_members(stand, ends, guests)
        except ViewAbandoned:
            self._wanted = max(self._wanted, generation + 1)
            raise
        self._begin(stand)

    def recheck(self):
        """Calls off what has begun if another worker wants a newer generation already."""
        if self._wanted > self.generation:
            self._call_off("another rank has lost a worker")

    def _form(self, stand: Standing, least: int, ends: float, join) -> int:
        self._wanted = max(self._wanted, stand.wants)
        members = self._agree(stand, least, ends)
        join(members, stand.wants)
        stand = dataclasses.replace(stand, members=members, is_member=True)
        told = self._until_all_are_members(stand, time.monotonic() + _SILENT_S)
        everyone = [stand, *told.values()]
        self._begin(stand)
        return max(each.completed for each in everyone)

    def _agree(self, stand: Standing, least: int, ends: float) -> tuple[int, ...]:
        """The members of the wanted generation, the same for all of them."""
        silent_since: dict[int, float] = {}
        torn_since: dict[tuple[int, int], float] = {}
        waiting = watch.Waiting(_SAY_S)
        while True:
            found = self._ask(stand)
            now = time.monotonic()
            willing, silent, undecided = {self._rank}, set(), set()
            for rank, each in found.items():
                if each is channel_lib.Absence.SILENT:
                    since = silent_since.setdefault(rank, now)
                    if rank in self.members:  # a guest that was not taken in counts for nobody
                        (silent if now > min(since + _SILENT_S, ends) else undecided).add(rank)
                    continue
                silent_since.pop(rank, None)
                if each is channel_lib.Absence.GONE or not each.in_fit:
                    if isinstance(each, Standing) and each.has_finished:
                        raise TrainingFinished
                elif each.wants == stand.wants:
                    willing.add(rank)
                elif now < ends and rank in self.members:
                    undecided.add(rank)
            torn = _torn(willing, {rank: found[rank] for rank in willing - {self._rank}})
            torn_since = {pair: torn_since.get(pair, now) for pair in torn}
            for (_, higher), since in torn_since.items():
                if now > min(since + _SILENT_S, ends):
                    willing.discard(higher)
                else:
                    undecided.add(higher)
            leader = min(willing)
            if leader != self._rank and found[leader].members is not None:
                return self._taken(found[leader].members, leader)
            if not undecided and leader == self._rank:
                self._check(willing, silent, least)
                members = tuple(sorted(willing))
                self._standing = dataclasses.replace(stand, members=members)
                return members
            if undecided and (waited_s := waiting.due()):
                watch.say(
                    f"Rank {self._rank} has waited {waited_s:.0f} s for {named(undecided)} to "
                    "go on without a lost worker."
                )
            time.sleep(_POLL_S)

    def _begin(self, stand: Standing):
        self.members, self.generation = stand.members, stand.wants
        self._wanted = max(self._wanted, stand.wants)
        self._standing = dataclasses.replace(stand, generation=stand.wants)

    def _until_all_are_members(self, stand: Standing, ends: float, guests=()):
        """Returns what the others stand at when all members have joined."""
        leader = min(stand.members)
        others = [rank for rank in stand.members if rank != self._rank]

        def have_joined(told: dict[int, Standing]) -> bool:
            joined = {r for r, each in told.items() if each.is_member and each.members == members}
            begun = leader in joined and told[leader].generation == stand.wants
            return begun or (leader == self._rank and len(joined) == len(others))

        members = stand.members
        return self._until(stand, others, ends, have_joined, guests)

    def _until(self, stand: Standing, others, ends: float, happened, guests=()):
        """Asks the others until `happened` of what they stand at, which is returned.

        Raises:
          ViewAbandoned: one of them has gone, or left `fit` (a guest may still come there), or it
            takes too long.
        """
        waiting = watch.Waiting(_SAY_S)
        while True:
            found = self._ask(stand, others, calls_off=not guests)
            told = {rank: each for rank, each in found.items() if isinstance(each, Standing)}
            left = any(not each.in_fit for rank, each in told.items() if rank not in guests)
            if channel_lib.Absence.GONE in found.values() or left or time.monotonic() > ends:
                raise ViewAbandoned
            if happened(told):
                return told
            if waited_s := waiting.due():
                late = {r for r in others if r not in told or told[r].wants != stand.wants}
                late = late or {r for r in others if not told[r].is_member} or set(others)
                watch.say(f"Rank {self._rank} has waited {waited_s:.0f} s for {named(late)}.")
            time.sleep(_POLL_S)

    def _ask(
        self, stand: Standing, ranks=None, calls_off: bool = True
    ) -> dict[int, "Standing | channel_lib.Absence"]:
        """What the others stand at; raises where they want a later generation.

        Unless it `calls_off`, they go on with what they do.
        """
        self._standing = dataclasses.replace(stand, silent=self._standing.silent)
        found = {
            rank: _parsed(answer)
            for rank, answer in self._channel.ask_all(
                "regroup", rank=self._rank, wants=stand.wants if calls_off else 0
            ).items()
            if ranks is None or rank in ranks
        }
        silent = (rank for rank, each in found.items() if each is channel_lib.Absence.SILENT)
        self._standing = dataclasses.replace(stand, silent=tuple(silent))
        for rank, each in found.items():
            if isinstance(each, Standing) and each.generation > self.generation:
                without_us = each.members is not None and self._rank not in each.members
                newest = stand.wants if stand.is_member else stand.wants - 1
                if without_us or each.generation > newest:
                    raise self._left_behind(rank)
        if self._wanted > stand.wants - (not calls_off):  # growing, nobody may want to regroup
            raise ViewAbandoned
        return found

    def _answer(self, request: dict) -> dict:
        """Tells another worker where this one stands. On the channel's thread."""
        rank, wants = int(request["rank"]), int(request["wants"])
        if wants > self._wanted and rank in self.members and not self.has_finished:
            self._wanted = wants
            self._call_off("another rank has lost a worker")
        stand = dataclasses.replace(
            self._standing,
            in_fit=self._status.tell().in_fit,
            has_finished=self.has_finished,
        )
        return dataclasses.asdict(stand)

    def _taken(self, members: tuple[int, ...], leader: int) -> tuple[int, ...]:
        if self._rank not in members:
            raise self._left_behind(leader)
        return members

    def _check(self, willing: set[int], silent: set[int], least: int):
        ahead = len(willing) - len(silent)
        if ahead < 0 or (ahead == 0 and min(silent) < min(willing)):
            raise watch.WorkerLost(
                f"Rank {self._rank}: {named(silent)} cannot be reached, and may be going on "
                f"without {named(willing)}: the side with more workers goes on, or of equal sides "
                "that with the lowest rank. This side ends."
            )
        if len(willing) < least:
            raise watch.WorkerLost(
                f"Rank {self._rank}: {len(willing)} of {len(self.members)} workers are left, fewer "
                f"than min_workers={least}. Start the job again."
            )

    def _left_behind(self, rank: int) -> watch.WorkerLost:
        return watch.WorkerLost(
            f"Rank {self._rank}: rank {rank} and others have gone on without it, since it did not "
            "answer for long. Start it again, to join them (initialize(join=True))."
        )


def _all_want(generation: int, ranks: list[int], told: dict[int, Standing]) -> bool:
    return all(rank in told and told[rank].wants >= generation for rank in ranks)


def _parsed(answer) -> "Standing | channel_lib.Absence":
    if isinstance(answer, channel_lib.Absence):
        return answer
    try:
        stand = Standing(**answer)
    except TypeError:
        return channel_lib.Absence.SILENT  # somebody else listens there now
    members = None if stand.members is None else tuple(stand.members)
    return dataclasses.replace(stand, members=members, silent=tuple(stand.silent))


def _torn(willing: set[int], told: dict[int, Standing]) -> set[tuple[int, int]]:
    """Pairs of those who are willing, the lower first, of whom one does not reach the other."""
    return {
        (min(rank, other), max(rank, other))
        for rank, stand in told.items()
        for other in stand.silent
        if other in willing
    }


def named(ranks) -> str:
    """`"rank 1 and rank 3"`."""
    return " and ".join(f"rank {rank}" for rank in sorted(ranks))
