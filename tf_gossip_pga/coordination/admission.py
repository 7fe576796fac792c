"""Bring joining workers and members together with announcements and invitations."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Mapping

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import messages
from tf_gossip_pga.coordination.channel import Channel
from tf_gossip_pga.coordination.joining import Invitation
from tf_gossip_pga.coordination.messages import Message, Port, Rank
from tf_gossip_pga.coordination.reports import Waiting
from tf_gossip_pga.coordination.status import Absence, Status
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost


@dataclasses.dataclass(frozen=True)
class _Announcement:
    """A joining worker's request to be admitted: its rank, and the port of its channel."""

    rank: Rank
    endpoint: Port


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A member's answer to an announcement.

    Attributes:
      endpoints: the endpoints of all members, by rank. With an invitation, also those of all
        joining workers.
      where: what the member that answers is doing (see `Whereabouts.where` in `status`).
      fits: how many times that member has called `fit`.
      invitation: the invitation, while the members wait for the worker that announces itself and
        the member that answers is the one that invites. Otherwise None.
    """

    endpoints: dict[Rank, Port]
    where: str
    fits: int
    invitation: Invitation | None = None


class Admission:
    """Exchange messages between joining workers and members before the members admit them.

    A joining worker announces itself to the members until they invite it. They invite and admit it
    at the beginning of an epoch. The invitation is part of the answer to an announcement. If an
    answer is lost, the answer to the next announcement contains the invitation again. Members and
    joining workers use different methods of this class.

    Args:
      cluster: this process's place among the workers.
      channel: sends requests to the other workers.
      status: this process's status, which answers to joining workers contain.
      timing: every deadline of the control plane.

    Attributes:
      invitation: the invitation that this joining worker has received, or None if there is none
        yet.
    """

    def __init__(self, cluster: Cluster, channel: Channel, status: Status, timing: Timing) -> None:
        self.invitation: Invitation | None = None
        self._cluster = cluster
        self._channel = channel
        self._status = status
        self._timing = timing
        # rank -> its endpoint, and when the announcement was received
        self._announced: dict[int, tuple[int, float]] = {}
        self._offered: Invitation | None = None  # while this member invites

    def listen(self) -> None:
        """Start accepting announcements from joining workers. Members call this."""
        self._channel.handlers["join"] = self._take_announcement

    def announced(self) -> dict[str, int]:
        """Return the endpoints of lost workers that have announced themselves recently.

        Returns:
          Ports by rank. The ranks are decimal strings, so that the dict is JSON-serializable.
        """
        soonest = time.monotonic() - self._timing.announced_s
        return {
            str(rank): endpoint
            for rank, (endpoint, heard) in self._announced.items()
            if rank in self._cluster.lost and heard > soonest
        }

    @contextlib.contextmanager
    def inviting(
        self, invitation: Invitation, joining: Mapping[str, int], asks: bool
    ) -> Generator[None]:
        """Learn the endpoints of joining workers and, if `asks` is true, invite these workers.

        Inside this context, answers to their announcements contain the invitation. At its end, all
        announcements are forgotten: a worker that still wants to join announces itself again.

        Args:
          invitation: the invitation.
          joining: endpoints of the joining workers by rank, as returned by `announced`.
          asks: whether this member invites. Only one member does.

        Raises:
          OSError: this machine cannot resolve the host name of a joining worker.
        """
        try:
            self._learn({int(rank): endpoint for rank, endpoint in joining.items()})
            self._offered = invitation if asks else None
            yield
        finally:
            self._announced, self._offered = {}, None

    def await_invitation(self) -> Invitation:
        """Announce this joining worker to all members until they invite it.

        Returns:
          The invitation.

        Raises:
          WorkerLost: the members have ended, or are past their first `fit`, the only one that a
            worker can join.
        """
        waiting = Waiting(self._timing.join_report_s)
        while self.invitation is None:
            answers = self._channel.ask_all(
                "join", rank=self._cluster.rank, endpoint=self._channel.endpoint
            )
            if all(each is Absence.DEAD for each in answers.values()):
                raise WorkerLost(
                    f"Rank {self._cluster.rank} cannot join: all other workers have ended. Restart "
                    "the whole job."
                )
            parsed = {
                rank: messages.parse_answer(_Answer, each, self._cluster.size)
                for rank, each in answers.items()
            }
            answered = {rank: each for rank, each in parsed.items() if isinstance(each, _Answer)}
            if later := [rank for rank, each in answered.items() if each.fits > 1]:
                raise WorkerLost(
                    f"Rank {self._cluster.rank} cannot join: rank {later[0]} is already in a later "
                    "call of fit, and a worker can join only during the first. Let the other "
                    "workers finish without it, or restart the whole job."
                )
            for each in answered.values():  # the members may have admitted other workers meanwhile
                self._learn(each.endpoints)
            offers = [each.invitation for each in answered.values() if each.invitation]
            if offers:  # of a member that was stopped for a while, one may be out of date
                self.invitation = max(offers, key=lambda each: each.view_number)
                break
            if waited_s := waiting.due():
                busy = {rank: each.where for rank, each in answered.items() if each.where}
                where = f" Rank {min(busy)} is {busy[min(busy)]}." if busy else ""
                logger.info(
                    f"Rank {self._cluster.rank} has waited {waited_s:.0f} s for the other workers "
                    f"to begin an epoch, which is when they admit it.{where}"
                )
            time.sleep(self._timing.announce_every_s)
        self._channel.keep({*self.invitation.members, *self.invitation.joining})
        return self.invitation

    def accepted(self) -> Invitation:
        """Return the invitation that this joining worker has received.

        Raises:
          RuntimeError: no invitation has been received.
        """
        if self.invitation is None:
            raise RuntimeError("No invitation to join has been received.")
        return self.invitation

    def _learn(self, endpoints: Mapping[int, int]) -> None:
        for rank, endpoint in endpoints.items():
            self._channel.learn(rank, endpoint)

    def _take_announcement(self, request: Message) -> Message:
        """Record that a worker wants to join. Runs on the channel's thread."""
        message = messages.parse(_Announcement, request, self._cluster.size)
        heard = (message.endpoint, time.monotonic())
        self._announced = {**self._announced, message.rank: heard}
        own, offered = self._status.tell(), self._offered
        endpoints = self._channel.endpoints
        # Invite only the process that is being admitted, not a later one of the same rank.
        is_invited = (
            offered is not None
            and message.rank in offered.joining
            and message.endpoint == endpoints[message.rank]
        )
        answer = _Answer(endpoints, own.where, own.fits, offered if is_invited else None)
        return dataclasses.asdict(answer)
