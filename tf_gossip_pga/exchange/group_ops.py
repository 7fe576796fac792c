"""Build the collective ops of one view's members, in an order that cannot deadlock.

In a group of two, `tf.raw_ops.CollectiveBcastSendV2` and `CollectiveBcastRecvV2` are a directed
edge. In the group of all members `CollectiveReduceV2` is the global average and
`CollectiveGatherV2` gathers values.

- **Order.** A rank issues its messages chunk by chunk and, within a chunk, by the topology's edge
  colors: one order for all ranks. At most `messages_in_flight` are under way; each waits for the
  one that many places before it. The least unfinished message in that order has nobody left to
  wait for, so some message can always finish. There is no deadlock, even with one in flight, which
  is what NCCL's single stream per device amounts to.
- **Deadlines are ours.** The ops' own `timeout_seconds` starts two threads for each collective,
  which sleep for the whole timeout even when it is over at once: some minutes of training exhaust
  the process. The ops get no timeout; the watchdog aborts them.
- **Keys.** A group key is bound for life to its members. Ours are derived from the members and the
  view's number, and lie far above those that strategies count up from 1. An instance key is bound
  for life to a shape and a source, and may be used again once its exchange is over. TensorFlow
  keeps a record of every key it has seen and asks the group's leader over the network about a new
  one, so reusing keys is both smaller and faster.
- **One device of each worker exchanges**, the first. Several devices of one worker train together
  without any collective: the cluster's leader would take those of all workers for one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import tensorflow as tf

from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange.runtime import Transport

# Far above the group keys that strategies count up from 1. Each view has a key of all members, one
# of all members for gathers, and one of each edge.
_FIRST_GROUP_KEY = 1 << 20

# Instance keys of gathers, one for each power of two; every other key comes after them.
_FIRST_INSTANCE_KEY = 1 << 20
FIRST_FREE_KEY = _FIRST_INSTANCE_KEY + 32

# Broadcast kernels know these types; other dtypes are bitcast to one of the same width, those of
# one byte, of which there is none, by fours.
_BCAST_TYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_SAME_WIDTH = {2: tf.float16, 4: tf.int32, 8: tf.int64}

# An edge coloring: groups of (sender, receiver) edges without a common rank.
Colors = Sequence[Sequence[tuple[int, int]]]

# What `GroupOps.exchange` returns for each chunk: the message sent, what was received from whom,
# and the send ops.
Exchanged = tuple[tf.Tensor, dict[int, tf.Tensor], list[tf.Tensor]]


class GroupOps:
    """The collective ops among the members of one view. Immutable.

    Args:
      view: the members and the number of the view.
      rank: this worker's rank.
      world_size: the number of workers at the start, lost ones included.
      transport: how exchanges travel.

    Attributes:
      size: the number of members.
      place: this rank's index among the members, 0 … size-1: its node in topologies.
    """

    def __init__(self, view: View, rank: int, world_size: int, transport: Transport):
        self.size = len(view.members)
        self.place = view.members.index(rank)
        self._world_size = world_size
        self._transport = transport
        # The same keys for the same group, on whichever member they are computed.
        self._group_key = _FIRST_GROUP_KEY + (2 + world_size**2) * view.number
        with tf.device("/device:CPU:0"):
            self._gather_token = tf.Variable(tf.constant(0.0))
        with tf.device(transport.device):
            self._tokens = [
                tf.Variable(tf.constant(0.0)) for _ in range(transport.messages_in_flight)
            ]

    def exchange(
        self,
        chunks: Sequence,
        colors: Colors,
        first_key: int,
        encode: Callable = lambda chunk: chunk,
    ) -> list[Exchanged]:
        """Send every chunk along this node's outgoing edges, and receive along incoming ones.

        Args:
          chunks: list of 1-D tensors, or of whatever `encode` takes.
          colors: the edge coloring of one round (`Topology.colors`).
          first_key: the first of `len(chunks)` reserved instance keys.
          encode: makes the message of a chunk, a 1-D tensor with a static shape that is the same on
            all ranks. It runs shortly before the message's turn: encoding all chunks at once would
            keep the processor from sending, and hold all messages in memory.

        Returns:
          For each chunk `(message, received, sent)`: what this rank sends, a dict
          `{sender: tensor}`, and the send ops. Whatever uses the result must depend on the send
          ops: nobody uses their outputs, so TensorFlow would prune them and the receiver would
          wait forever.
        """
        mine = [edge for color in colors for edge in color if self.place in edge]
        limit = self._transport.messages_in_flight
        exchanged: list[Exchanged] = []
        issued: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            received, sent = {}, []
            with tf.control_dependencies(_turn(issued, 2 * limit)):
                message = encode(chunk)
            for sender, receiver in mine:
                key = self._group_key + 2 + sender * self._world_size + receiver
                with tf.control_dependencies(_turn(issued, limit)):
                    issued.append(self._bcast(message, sender, 2, key, first_key + index))
                if receiver == self.place:
                    received[sender] = issued[-1]
                else:
                    sent.append(issued[-1])
            exchanged.append((message, received, sent))
        return exchanged

    def broadcast(self, chunks: list, first_key: int, source: int = 0) -> list:
        """Return one member's chunks on every member.

        Args:
          chunks: list of 1-D tensors, of the same shapes on all members.
          first_key: the first of `len(chunks)` reserved instance keys; a key is bound to its
            source.
          source: the place of the member whose chunks are sent.
        """
        received: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            with tf.control_dependencies(_turn(received, self._transport.messages_in_flight)):
                received.append(
                    self._bcast(chunk, source, self.size, self._group_key, first_key + index)
                )
        return received

    def mean(self, chunks: list, first_key: int) -> list:
        """Return the mean over members of every chunk, each by a ring all-reduce of its own.

        All ranks get the same bits: each piece is summed on its way round the ring, then copied.
        Arguments as in `broadcast`, but with other keys.
        """
        means = []
        for index, chunk in enumerate(chunks):
            with tf.device(self._transport.device):
                means.append(
                    tf.raw_ops.CollectiveReduceV2(
                        input=chunk,
                        group_size=self.size,
                        group_key=self._group_key,
                        instance_key=first_key + index,
                        # TensorFlow runs those with the same token one after the other.
                        ordering_token=[self._tokens[index % len(self._tokens)].handle],
                        merge_op="Add",
                        final_op="Div",
                        communication_hint=self._transport.hint,
                    )
                )
        return means

    def gather(self, values: tf.Tensor) -> tf.Tensor:
        """Return `values`, `[n]` int32 with n a power of two, of all members: `[size * n]`.

        The rows come in the order of TensorFlow's device names.
        """
        with tf.device("/device:CPU:0"):  # where the numbers are wanted
            return tf.raw_ops.CollectiveGatherV2(
                input=values,
                group_size=self.size,
                group_key=self._group_key + 1,
                instance_key=_FIRST_INSTANCE_KEY + cast(int, values.shape[0]).bit_length(),
                ordering_token=[self._gather_token.handle],
                communication_hint="ring",
            )

    def _bcast(self, chunk, sender: int, group_size: int, group_key: int, instance_key: int):
        """Return the sender's chunk on every member of a group."""
        if chunk.dtype.size == 1:
            length = chunk.shape[0]
            fours = tf.reshape(tf.concat([chunk, tf.zeros([-length % 4], chunk.dtype)], 0), [-1, 4])
            words = tf.bitcast(fours, tf.int32)
            words = self._bcast(words, sender, group_size, group_key, instance_key)
            return tf.reshape(tf.bitcast(words, chunk.dtype), [-1])[:length]
        kind = chunk.dtype if chunk.dtype in _BCAST_TYPES else _SAME_WIDTH[chunk.dtype.size]
        arguments = {
            "group_size": group_size,
            "group_key": group_key,
            "instance_key": instance_key,
            "communication_hint": self._transport.hint,
        }
        with tf.device(self._transport.device):
            if sender == self.place:
                message = tf.raw_ops.CollectiveBcastSendV2(
                    input=tf.bitcast(chunk, kind), **arguments
                )
            else:
                message = tf.raw_ops.CollectiveBcastRecvV2(shape=chunk.shape, T=kind, **arguments)
            return tf.bitcast(message, chunk.dtype)


class LoneOps:
    """The same for a single member, which exchanges with nobody.

    Attributes:
      size: 1.
      place: 0.
    """

    size = 1
    place = 0

    def exchange(
        self, chunks: Sequence, colors: Colors, first_key: int, encode: Callable = lambda x: x
    ) -> list[Exchanged]:
        """Return the encoded chunks; nothing is sent or received."""
        return [(encode(chunk), {}, []) for chunk in chunks]

    def broadcast(self, chunks: list, first_key: int, source: int = 0) -> list:
        """Return the chunks."""
        return chunks

    def mean(self, chunks: list, first_key: int) -> list:
        """Return the chunks."""
        return chunks

    def gather(self, values: tf.Tensor) -> tf.Tensor:
        """Return the values."""
        return values


Ops = GroupOps | LoneOps


def for_view(view: View, rank: int, world_size: int, transport: Transport) -> Ops:
    """Return the ops among the members of a view; arguments as of `GroupOps`."""
    if len(view.members) == 1:
        return LoneOps()
    return GroupOps(view, rank, world_size, transport)


def _turn(issued: list, limit: int) -> list:
    """Return what the next message waits for, so that at most `limit` are under way."""
    return [issued[-limit]] if len(issued) >= limit else []
