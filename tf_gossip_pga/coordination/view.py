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
      in_fit: whether it still trains.
      has_finished: whether it has trained to the end.
      silent: the ranks that gave it no answer when it last asked.
    """

    view: int = 0
    view_members: tuple[Rank, ...] | None = None
    wants: int = 0
    completed: int = 0
    members: tuple[Rank, ...] | None = None
    is_member: bool = False
    most_completed: int = 0
    in_fit: bool = True
    has_finished: bool = False
    silent: tuple[Rank, ...] = ()
