"""What workers agree on, a `View`, and what each tells the others on the way, its `Standing`."""

from __future__ import annotations

import dataclasses

from tf_gossip_pga.coordination.messages import Rank


@dataclasses.dataclass(frozen=True)
class View:
    """A numbered list of members.

    View 0 is all workers. Each later view has the surviving workers of an earlier one, or these and
    joining workers.

    Attributes:
      number: counted from 0.
      members: their ranks, in order.
    """

    number: int
    members: tuple[int, ...]

    def others(self, rank: int) -> list[int]:
        """Return the other members."""
        return [member for member in self.members if member != rank]


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a worker answers to those that form a view.

    Attributes:
      view: number of the last view whose exchanges it has begun.
      view_members: the members of that view; None where it is not known.
      wants: number of the view that it wants, or is in.
      completed: exchanges it has completed in this `fit`.
      members: those of the wanted view, as soon as it has decided on them or adopted them.
      is_member: whether it has made itself one of them.
      most_completed: once it has begun the wanted view, the most exchanges any member had
        completed.
      fit: how many times it has called `fit`.
      in_fit: whether it is still inside the last of these.
      finished: the number of the last `fit` that it has trained to the end.
      silent: each rank that it has yet to reach since it wants the view, and for how many seconds
        that rank has shown no sign of life meanwhile.
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
