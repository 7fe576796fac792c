"""Build the collective ops of one view's members, in an order that cannot deadlock.

A broadcast in a group of two (`tf.raw_ops.CollectiveBcastSendV2` and `CollectiveBcastRecvV2`) is a
directed edge of the topology. In the group of all members, `CollectiveReduceV2` computes the global
average and `CollectiveGatherV2` gathers values.

- **Order.** All ranks issue messages in one order: by chunk and, within a chunk, by the topology's
  edge colors. At most `messages_in_flight` messages are in flight; each waits for the one issued
  `messages_in_flight` places earlier. The first unfinished message in this order waits for no
  other, so a message can always finish and no deadlock is possible. This holds even with one
  message in flight, which is how NCCL's single stream per device behaves.
- **Deadlines.** The ops' own `timeout_seconds` starts two threads for each collective. They sleep
  for the whole timeout even if the collective finishes at once, and exhaust the process within
  minutes of training. The ops therefore get no timeout; the watchdog aborts them.
- **Keys.** A group key is bound to its members for the life of the process. Ours are derived from
  the members and the view's number, far above the keys that strategies count up from 1. An instance
  key is bound to a shape and a source, and may be reused after its exchange. TensorFlow stores
  every key and asks the group's leader over the network about each new one, so reusing keys saves
  memory and time.
- **Devices.** Only the first device of each worker exchanges. The devices of one worker train
  together without a collective, because the cluster's leader would put the devices of all workers
  into one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import tensorflow as tf

from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange.runtime import Transport

# Far above the group keys that strategies count up from 1. Each view has one key for all members,
# one for gathers among all members, and one for each edge.
_FIRST_GROUP_KEY = 1 << 20

# Gathers have an instance key for each power of two. All other keys are higher.
_FIRST_INSTANCE_KEY = 1 << 20
FIRST_FREE_KEY = _FIRST_INSTANCE_KEY + 32

# The dtypes that broadcast kernels support. Other dtypes are bitcast to a supported dtype of the
# same width; four numbers of one byte are bitcast to one int32.
_BCAST_TYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_SAME_WIDTH = {2: tf.float16, 4: tf.int32, 8: tf.int64}

# An edge coloring: groups of (sender, receiver) edges without a common rank.
Colors = Sequence[Sequence[tuple[int, int]]]

# The result of `GroupOps.exchange` for each chunk: the own message, the received tensors by sender,
# and the send ops.
Exchanged = tuple[tf.Tensor, dict[int, tf.Tensor], list[tf.Tensor]]


class GroupOps:
    """The collective ops among the members of one view. Immutable.

    Args:
      view: the members and the number of the view.
      rank: this worker's rank.
      world_size: number of workers at the start, lost ones included.
      transport: the transport of exchanges.

    Attributes:
      size: number of members.
      place: this rank's index among the members, 0 … size-1: its node in topologies.
    """

    def __init__(self, view: View, rank: int, world_size: int, transport: Transport):
        """Derive the group key, and create the ordering tokens on their devices."""
        self.size = len(view.members)
        self.place = view.members.index(rank)
        self._world_size = world_size
        self._transport = transport
        # Every member must compute the same keys.
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
          chunks: 1-D tensors, or other inputs that `encode` accepts.
          colors: the edge coloring of one round (`Topology.colors`).
          first_key: the first of `len(chunks)` reserved instance keys.
          encode: function that returns the message for a chunk: a 1-D tensor with a static shape,
            the same on all ranks. It runs shortly before the message's turn. Encoding all chunks at
            once would keep the processor from sending, and hold all messages in memory. Default:
            the chunk itself.

        Returns:
          For each chunk `(message, received, sent)`: this rank's message, the received tensors as
          `{sender: tensor}`, and the send ops. The caller must make its result depend on the send
          ops. Their outputs are not used, so TensorFlow would otherwise prune them, and the
          receiver would wait forever.
        """
        own_edges = [edge for color in colors for edge in color if self.place in edge]
        limit = self._transport.messages_in_flight
        exchanged: list[Exchanged] = []
        issued: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            received, sent = {}, []
            with tf.control_dependencies(_turn(issued, 2 * limit)):
                message = encode(chunk)
            for sender, receiver in own_edges:
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
          chunks: 1-D tensors, of the same shapes on all members.
          first_key: the first of `len(chunks)` reserved instance keys. A key is bound to its
            source.
          source: place of the member that sends. Default 0.
        """
        received: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            with tf.control_dependencies(_turn(received, self._transport.messages_in_flight)):
                received.append(
                    self._bcast(chunk, source, self.size, self._group_key, first_key + index)
                )
        return received

    def mean(self, chunks: list, first_key: int) -> list:
        """Return the mean of every chunk over all members, by one ring all-reduce for each chunk.

        All ranks get the same bits: each piece is summed once around the ring, and then copied.

        Args:
          chunks: 1-D tensors, of the same shapes on all members.
          first_key: the first of `len(chunks)` reserved instance keys, not those of `broadcast`.
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
                        # TensorFlow runs ops with the same token one after the other.
                        ordering_token=[self._tokens[index % len(self._tokens)].handle],
                        merge_op="Add",
                        final_op="Div",
                        communication_hint=self._transport.hint,
                    )
                )
        return means

    def gather(self, values: tf.Tensor) -> tf.Tensor:
        """Return the values of all members, `[size * n]` int32.

        The members' parts are in the order of TensorFlow's device names.

        Args:
          values: this member's values, `[n]` int32; n is a power of two, the same on all members.
        """
        with tf.device("/device:CPU:0"):  # the caller reads the result in Python
            return tf.raw_ops.CollectiveGatherV2(
                input=values,
                group_size=self.size,
                group_key=self._group_key + 1,
                instance_key=_FIRST_INSTANCE_KEY + cast(int, values.shape[0]).bit_length(),
                ordering_token=[self._gather_token.handle],
                communication_hint="ring",
            )

    def _bcast(self, chunk, sender: int, group_size: int, group_key: int, instance_key: int):
        """Return the sender's chunk on every member of a group, `[n]` of the chunk's dtype."""
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
    """The ops of a view with a single member; they exchange nothing.

    Attributes:
      size: always 1.
      place: always 0.
    """

    size = 1
    place = 0

    def exchange(
        self, chunks: Sequence, colors: Colors, first_key: int, encode: Callable = lambda x: x
    ) -> list[Exchanged]:
        """Return the encoded chunks; send and receive nothing."""
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
    """Return the ops of a view's members; for the arguments see `GroupOps`."""
    if len(view.members) == 1:
        return LoneOps()
    return GroupOps(view, rank, world_size, transport)


def _turn(issued: list, limit: int) -> list:
    """Return the dependencies of the next message, so that at most `limit` are in flight."""
    return [issued[-limit]] if len(issued) >= limit else []
