"""Define `View`, which workers agree on, and `Standing`, which they exchange to do so."""

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
        """Return the other members."""
        return [member for member in self.members if member != rank]


@dataclasses.dataclass(frozen=True)
class Standing:
    """A worker's answer to workers that are forming a view.

    Attributes:
      view: number of the last view whose exchanges it has begun.
      view_members: members of that view, or None if unknown.
      wants: number of the view that it wants or is in.
      completed: number of exchanges that it has completed in this `fit`.
      members: members of the wanted view, or None until it has decided on them or adopted them.
      is_member: whether it has made itself a member of the wanted view.
      most_completed: the most exchanges that any member of the wanted view had completed. 0 until
        it has begun that view.
      fit: how many times it has called `fit`.
      in_fit: whether it is still inside the last of these calls.
      finished: number of the last `fit` in which it has finished training.
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
