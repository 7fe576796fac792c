"""Plan the messages of gossips and global averages: how many, how large, by which operation.

A plan depends only on the layout of the chunks, the transport, the encoding and the topology, so it
can be printed and tested on a machine where no exchange could run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.transport import Transport
from tf_gossip_pga.exchange.wire import Wire

# Length in elements and dtype of each chunk (`Bucket.layout`).
Layout = Sequence[tuple[int, tf.DType]]

SEND, RECEIVE, PAIR, ALL = "send", "receive", "all-reduce of a pair", "all-reduce"

# Dtypes whose gossips may use the all-reduce of a pair. Summing narrower dtypes would round twice.
_PAIRED = (tf.float32, tf.float64)


@dataclasses.dataclass(frozen=True)
class Message:
    """One operation of an exchange on one rank.

    Attributes:
      operation: `SEND`, `RECEIVE`, `PAIR` or `ALL`.
      peer: index of the other rank among the members, or None for an operation of all members.
      size: size of the message in bytes. An all-reduce of a pair moves this many bytes in each
        direction.
    """

    operation: str
    peer: int | None
    size: int


def of_gossip(
    layout: Layout, topology: Topology, round: int, place: int, transport: Transport, wire: Wire
) -> list[Message]:
    """Return one rank's messages of a gossip, in the order in which the rank issues them.

    Args:
      layout: the chunks of the parameters.
      topology: which ranks gossip with each other.
      round: the round of the topology.
      place: the rank's index among the members.
      transport: the transport of exchanges.
      wire: the encoding of messages.
    """
    paired = is_paired(layout, topology, round, transport, wire)
    edges = [edge for color in topology.colors(round) for edge in color if place in edge]
    messages: list[Message] = []
    for length, dtype in layout:
        size = wire.encoded_bytes(length, dtype.size)
        for sender, receiver in edges:
            peer = receiver if sender == place else sender
            if not paired:
                messages.append(Message(SEND if sender == place else RECEIVE, peer, size))
            elif sender == place:
                messages.append(Message(PAIR, peer, size))
    return messages


def of_mean(layout: Layout, transport: Transport) -> list[Message]:
    """Return the messages of a global average, the same on all ranks.

    Args:
      layout: the chunks of the parameters and statistics.
      transport: the transport of exchanges.
    """
    sizes = [length * dtype.size for length, dtype in layout]
    groups = groups_of_mean(layout, transport)
    return [Message(ALL, None, sum(sizes[each] for each in group)) for group in groups]


def bytes_sent(messages: Sequence[Message]) -> int:
    """Return the number of payload bytes that a rank sends in a gossip."""
    return sum(each.size for each in messages if each.operation != RECEIVE)


def described(messages: Sequence[Message]) -> str:
    """Return the messages in words, such as `"3 x send of 4.19 MB, 3 x receive of 4.19 MB"`."""
    kinds = collections.Counter((each.operation, _text_of_size(each.size)) for each in messages)
    return ", ".join(
        f"{count} x {operation} of {size}" for (operation, size), count in kinds.items()
    )


def _text_of_size(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 10_000 else f"{size} bytes"


def is_paired(
    layout: Layout, topology: Topology, round: int, transport: Transport, wire: Wire
) -> bool:
    """Return whether each rank exchanges a gossip by all-reduces with its partner in the round."""
    exact = not wire.lossy and all(dtype in _PAIRED for _, dtype in layout)
    return transport.pairs and exact and topology.is_matching(round)


def groups_of_mean(layout: Layout, transport: Transport) -> list[list[int]]:
    """Return one list for each message of a global average: the indices of the chunks in it."""
    groups: list[list[int]] = []
    size = 0
    for index, (length, dtype) in enumerate(layout):
        size += length * dtype.size
        is_same = bool(groups) and layout[groups[-1][-1]][1] == dtype
        if transport.packs_means and is_same and size <= transport.message_bytes:
            groups[-1].append(index)
        else:
            groups.append([index])
            size = length * dtype.size
    return groups
