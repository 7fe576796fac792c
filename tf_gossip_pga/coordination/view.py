"""Define `View`, a numbered list of members, and `Standing`, by which workers agree on a view."""

from __future__ import annotations

import dataclasses

from tf_gossip_pga.coordination.messages import Rank


@dataclasses.dataclass(frozen=True)
class View:
    """A numbered list of members.

    View 0 contains all workers. Each later view contains the surviving workers of an earlier one,
    possibly with joining workers.

    Attributes:
      number: number of the view, from 0.
      members: the members' ranks, in increasing order.
    """

    number: int
    members: tuple[int, ...]

    def others(self, rank: int) -> list[int]:
        """Return all members except `rank`."""
        return [member for member in self.members if member != rank]


@dataclasses.dataclass(frozen=True)
class Standing:
    """A worker's description of itself for workers that are forming a view.

    Attributes:
      view: number of the last view that the worker has begun, that is, in which it may exchange.
      view_members: members of that view, or None if unknown.
      wants: number of the view that the worker wants. If it wants none, the view that it is in.
      completed: number of exchanges that the worker has completed in this `fit`.
      members: members of the wanted view, or None until the worker has decided on them as the
        leader, or has adopted the leader's list.
      is_member: whether the worker has made itself a member of the wanted view.
      most_completed: the most exchanges that any member of the wanted view had completed. 0 until
        the worker has begun that view.
      fit: how many times the worker has called `fit`.
      in_fit: whether the worker is still inside the last of these calls.
      finished: number of the last `fit` in which the worker has finished training.
      silent: each rank whose answer is missing, with the number of seconds without a sign of life
        from that rank.
    """

    view: int = 0
    view_members: tuple[Rank, ...] | None = None
    wants: int = 0
    completed: int = 0
    members: tuple[Rank, ...] | None = None
    is_member: bool = False
    most_completed: int = 0
    fit: int = 1
    in_fit: bool = True
    finished: int = 0
    silent: tuple[tuple[Rank, float], ...] = ()
