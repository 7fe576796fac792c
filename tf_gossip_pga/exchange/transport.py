"""Choose how exchanges travel: over gRPC between CPUs, or over NCCL between GPUs.

All workers use the same transport. Over NCCL, each worker needs a GPU of its own. The workers
therefore report their GPUs to each other before TensorFlow starts, and each applies the same rule
to the same reports.

TensorFlow itself never selects NCCL for these collectives: their communication hint "auto" means
gRPC, even between GPUs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

# Environment variable with the default of `initialize`'s argument `communication`.
COMMUNICATION = "TF_GOSSIP_PGA_COMMUNICATION"

AUTO, NCCL_ONLY, RING_ONLY = CHOICES = ("auto", "nccl", "ring")

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Transport:
    """How exchanges are sent between workers.

    Attributes:
      hint: the `communication_hint` of collective ops.
      device: the device of this worker that exchanges.
      messages_in_flight: maximum number of collectives that a rank runs concurrently.
      message_bytes: maximum size of a message in bytes.
      packs_means: whether a global average packs all variables of a dtype into as few messages as
        `message_bytes` allows. Large variables are then packed too, and packing copies them.
      pairs: whether two ranks that send to each other in a round of disjoint pairs use one
        all-reduce instead of two broadcasts.
    """

    hint: str
    device: str
    messages_in_flight: int
    message_bytes: int
    packs_means: bool
    pairs: bool

    @property
    def is_nccl(self) -> bool:
        """Whether exchanges use NCCL."""
        return self.hint == NCCL_ONLY

    @property
    def name(self) -> str:
        """The transport in words, to follow "over"."""
        return "NCCL between GPUs" if self.is_nccl else "gRPC between CPUs"


# "ring" is TensorFlow's own implementation of collectives, over gRPC. Each message is one chunk.
# Smaller chunks would cost more round trips. With larger chunks, sending and mixing would overlap
# less. Four messages in flight are two chunks, because each chunk is both sent and received.
RING = Transport(
    "ring",
    "/device:CPU:0",
    messages_in_flight=4,
    message_bytes=4 * _MIB,
    packs_means=False,
    pairs=False,
)

# NCCL runs the collectives of a device one after another, on a single stream. Each collective costs
# a launch, so messages are as large as memory allows: mixing holds up to three copies of a message.
# A send followed by a receive uses one direction of the link at a time. The all-reduce of a pair
# uses both directions at once.
NCCL = Transport(
    "nccl",
    "/device:GPU:0",
    messages_in_flight=1,
    message_bytes=256 * _MIB,
    packs_means=True,
    pairs=True,
)

BY_HINT = {each.hint: each for each in (RING, NCCL)}


@dataclasses.dataclass(frozen=True)
class Offer:
    """The GPU from which one worker can exchange over NCCL, if it has one.

    Attributes:
      host: name of the worker's machine.
      gpu: name of the worker's GPU, unique on the machine, or an empty string without a usable GPU.
      machine: id of the worker's machine (see `coordination.roster.Report`), because two machines
        may both be called "localhost".
    """

    host: str
    gpu: str
    machine: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The transport of a job.

    Attributes:
      transport: the transport.
      reason: why NCCL is not used although there are GPUs, as a clause, or an empty string.
    """

    transport: Transport
    reason: str = ""


def requested(communication: str | None) -> str:
    """Return the requested transport: one of `CHOICES`.

    Args:
      communication: the argument of `initialize`. None: the value of the environment variable
        `TF_GOSSIP_PGA_COMMUNICATION`, or "auto".

    Raises:
      ValueError: the argument or the variable is not one of `CHOICES`.
    """
    source, value = "communication", communication
    if communication is None:
        source, value = COMMUNICATION, os.environ.get(COMMUNICATION, "").strip().lower() or AUTO
    if value not in CHOICES:
        raise ValueError(
            f"{source} must be one of {', '.join(map(repr, CHOICES))}; received {value!r}."
        )
    return value


def choose(communication: str, offers: Sequence[Offer]) -> Choice:
    """Return the transport of a job.

    Args:
      communication: one of `CHOICES`, the same on all ranks.
      offers: what each rank can exchange from, in rank order.

    Raises:
      ValueError: NCCL was requested, but cannot be used.
    """
    obstacle = _obstacle(offers)
    if communication == NCCL_ONLY and obstacle:
        raise ValueError(
            f"communication is 'nccl', but {obstacle}. Over NCCL, each worker needs a GPU of its "
            "own. Start one worker for each GPU, or do not request NCCL: then the workers exchange "
            "over gRPC between CPUs."
        )
    if communication == RING_ONLY or obstacle:
        has_gpus = communication == AUTO and any(offer.gpu for offer in offers)
        return Choice(RING, f"NCCL cannot be used, because {obstacle}" if has_gpus else "")
    return Choice(NCCL)


def of_members(hint: str, rank: int, communication: str, gpu: str) -> Transport:
    """Return the members' transport if a joining worker can use it, else raise.

    Args:
      hint: `Transport.hint` of the members.
      rank: rank of the joining worker.
      communication: the transport that the joining worker requests, one of `CHOICES`.
      gpu: name of the joining worker's GPU, or an empty string.

    Raises:
      ValueError: the joining worker requests another transport, or has no GPU for NCCL.
    """
    transport, problem = BY_HINT[hint], ""
    if communication not in (AUTO, hint):
        problem = f"this worker requests {communication!r}. Request {hint!r} or {AUTO!r}."
    elif transport.is_nccl and not gpu:
        problem = "this worker has no GPU that NCCL can use. Restart it with a GPU."
    if problem:
        raise ValueError(
            f"Rank {rank} cannot join: the other workers exchange over {transport.name}, but "
            f"{problem}"
        )
    return transport


def shares_gpu(rank: int, offers: Sequence[Offer]) -> bool:
    """Return whether another rank uses this rank's GPU."""
    own = offers[rank]
    return bool(own.gpu) and offers.count(own) > 1


def _obstacle(offers: Sequence[Offer]) -> str:
    """Return why NCCL cannot be used, as a clause, or an empty string."""
    without = [rank for rank, offer in enumerate(offers) if not offer.gpu]
    if without:
        return f"rank {without[0]} has no GPU that NCCL can use"
    for rank, offer in enumerate(offers):
        first = offers.index(offer)
        if first != rank:
            return f"rank {first} and rank {rank} share GPU {offer.gpu} of {offer.host}"
    return ""
