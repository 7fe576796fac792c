"""Build the collective ops among a view's members, in an order that cannot deadlock.

A directed edge of the topology is a broadcast in a group of two (`tf.raw_ops.CollectiveBcastSendV2`
and `CollectiveBcastRecvV2`). In the group of all members, `CollectiveReduceV2` computes the global
average and `CollectiveGatherV2` gathers values.

- **Order.** All ranks issue messages in the same order: by chunk and, within a chunk, by the
  topology's edge colors (groups of edges that have no rank in common). At most
  `Transport.messages_in_flight` messages are in flight, because each message waits for the one
  issued that many positions earlier. The first unfinished message in this order waits for no other
  unfinished message, so it can always finish, and no deadlock is possible. This holds even with a
  single message in flight, as in NCCL, which has one stream per device.
- **Global averages** call the op directly, although `MultiWorkerMirroredStrategy` could issue the
  same op. The reasons: the strategy cannot be used in another strategy's scope, chooses a new
  instance key for each call, and is bound to the cluster with which it started.
- **Pairs.** A round whose edges form disjoint pairs can be exchanged by one all-reduce per pair,
  which uses both directions of a link at the same time.
- **Deadlines.** With `timeout_seconds`, each collective starts two threads. They sleep for the
  whole timeout even if the collective finishes immediately, and within minutes of training they
  exhaust the process's threads. The ops therefore get no timeout. The watchdog aborts them instead.
- **Keys.** TensorFlow identifies a group by its group key, and a message in the group by its
  instance key. A group key is bound to its members for the lifetime of the process. Our group keys
  are derived from the members and the view's number, and are far higher than the keys that
  `tf.distribute` strategies count up from 1. An instance key is bound to a shape and a source, and
  may be reused after its exchange. TensorFlow stores every key, and queries the group's leader over
  the network for each new key, so reusing keys saves memory and time. Over NCCL, TensorFlow also
  creates a communicator for each group key. To need few communicators, the two ranks of a pair use
  one group in both directions and, if there are no other members, the group of all members.
- **Devices.** Only the first device of each worker exchanges. The devices of one worker train
  together without collectives, because the cluster's leader would put the devices of all workers
  into one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import tensorflow as tf

from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange import message_plan
from tf_gossip_pga.exchange.transport import RING, Transport

# Far above the group keys that `tf.distribute` strategies count up from 1. Each view has one key
# for all members, one for gathers among all members, and one per pair of members.
_FIRST_GROUP_KEY = 1 << 20

# Gathers use one instance key per message length, a power of two. All other keys are higher.
_FIRST_INSTANCE_KEY = 1 << 20
FIRST_FREE_KEY = _FIRST_INSTANCE_KEY + 32

# Instance keys of a gossip per chunk: one per direction, and one for the all-reduce of a pair.
KEYS_PER_CHUNK = 3

# The dtypes that broadcast kernels support. Other dtypes are bitcast to a supported dtype of the
# same width. For one-byte dtypes, four numbers are bitcast to one int32.
_BCAST_TYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_SAME_WIDTH = {2: tf.float16, 4: tf.int32, 8: tf.int64}

# An edge coloring: groups of (sender, receiver) edges that have no rank in common.
Colors = Sequence[Sequence[tuple[int, int]]]

# The result of `GroupOps.exchange` for each chunk: this rank's message, the received tensors by
# sender, and the send ops.
Exchanged = tuple[tf.Tensor, dict[int, tf.Tensor], list[tf.Tensor]]


class GroupOps:
    """The collective ops among the members of a view. Immutable.

    Args:
      view: the members and the number of the view.
      rank: this worker's rank.
      world_size: number of workers at the start, including lost ones.
      transport: the transport of exchanges.

    Attributes:
      size: number of members.
      place: this rank's index among the members, 0 … size-1. Topologies number the members by this
        index.
      transport: the transport of exchanges.
    """

    def __init__(self, view: View, rank: int, world_size: int, transport: Transport):
        """Derive the group key, and create the tokens by which TensorFlow orders ops."""
        self.size = len(view.members)
        self.place = view.members.index(rank)
        self.transport = transport
        self._world_size = world_size
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
        """Send every chunk along this rank's outgoing edges, and receive along its incoming edges.

        Args:
          chunks: 1-D tensors, or other inputs that `encode` accepts.
          colors: the edge coloring of one round (`Topology.colors`).
          first_key: the first of `KEYS_PER_CHUNK * len(chunks)` reserved instance keys.
          encode: function that returns the message for a chunk: a 1-D tensor with a static shape
            that is the same on all ranks. It runs shortly before the message is sent. Encoding all
            chunks at once would delay sending, and would hold all messages in memory. Default: the
            chunk itself.

        Returns:
          For each chunk, `(message, received, sent)`: this rank's message, the received tensors as
          `{sender: tensor}`, and the send ops. The caller must make its result depend on the send
          ops. TensorFlow would otherwise prune them, because their outputs are not used, and the
          receiver would wait forever.
        """
        own_edges = [edge for color in colors for edge in color if self.place in edge]
        limit = self.transport.messages_in_flight
        exchanged: list[Exchanged] = []
        issued: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            received, sent = {}, []
            with tf.control_dependencies(_turn(issued, 2 * limit)):
                message = encode(chunk)
            for sender, receiver in own_edges:
                group = self._group_of_pair(sender, receiver)
                key = first_key + KEYS_PER_CHUNK * index + (sender > receiver)
                with tf.control_dependencies(_turn(issued, limit)):
                    issued.append(self._bcast(message, sender, 2, group, key))
                if receiver == self.place:
                    received[sender] = issued[-1]
                else:
                    sent.append(issued[-1])
            exchanged.append((message, received, sent))
        return exchanged

    def broadcast(self, chunks: list, first_key: int, source: int = 0) -> list:
        """Broadcast one member's chunks, and return them on every member.

        Args:
          chunks: 1-D tensors, of the same shapes on all members.
          first_key: the first of `len(chunks)` reserved instance keys. A key is bound to its
            source.
          source: index of the sending member among the members. Default 0.
        """
        received: list[tf.Tensor] = []
        for index, chunk in enumerate(chunks):
            with tf.control_dependencies(_turn(received, self.transport.messages_in_flight)):
                received.append(
                    self._bcast(chunk, source, self.size, self._group_key, first_key + index)
                )
        return received

    def mean(self, chunks: list, first_key: int) -> list:
        """Return the mean of each chunk over all members.

        All ranks get the same bits. Over gRPC, this is because each piece is summed once around the
        ring and then copied. Over NCCL, `tests/integration/test_gpu.py` checks that they do.

        Args:
          chunks: 1-D tensors, of the same shapes on all members.
          first_key: the first of `len(chunks)` reserved instance keys, other than `broadcast`'s.
        """
        layout = [(chunk.shape[0], chunk.dtype) for chunk in chunks]
        means = []
        for index, group in enumerate(message_plan.groups_of_mean(layout, self.transport)):
            packed = tf.concat([chunks[each] for each in group], 0)
            mean = self._reduce(packed, self.size, self._group_key, first_key + index, index)
            means += tf.split(mean, [layout[each][0] for each in group])
        return means

    def mean_of_pair(self, chunks: list, partner: int, first_key: int) -> list:
        """Return the mean of each chunk over this rank and a partner, by one all-reduce per chunk.

        Args:
          chunks: 1-D tensors, of the same shapes on both ranks.
          partner: the other rank's index among the members. That rank must call this too.
          first_key: as for `exchange`.
        """
        group = self._group_of_pair(self.place, partner)
        return [
            self._reduce(chunk, 2, group, first_key + KEYS_PER_CHUNK * index + 2, index)
            for index, chunk in enumerate(chunks)
        ]

    def _group_of_pair(self, a: int, b: int) -> int:
        """Return the key of the group of two members, given by their indices."""
        if self.size == 2:
            return self._group_key
        return self._group_key + 2 + min(a, b) * self._world_size + max(a, b)

    def _reduce(self, message, group_size: int, group_key: int, instance_key: int, index: int):
        """Return the mean of a message over a group. `index` counts the messages of an exchange."""
        # gRPC also sums bfloat16 and small integers; NCCL does not.
        is_summed = not self.transport.is_nccl or message.dtype in _BCAST_TYPES
        numbers = message if is_summed else tf.cast(message, tf.float32)
        with tf.device(self.transport.device):
            mean = tf.raw_ops.CollectiveReduceV2(
                input=numbers,
                group_size=group_size,
                group_key=group_key,
                instance_key=instance_key,
                # TensorFlow runs ops that share a token one at a time.
                ordering_token=[self._tokens[index % len(self._tokens)].handle],
                merge_op="Add",
                final_op="Div",
                communication_hint=self.transport.hint,
            )
        return tf.cast(mean, message.dtype)

    def gather(self, values: tf.Tensor) -> tf.Tensor:
        """Return the values of all members, `[size * n]` int32.

        The members' parts are ordered by TensorFlow's device names.

        Args:
          values: this member's values, `[n]` int32, where n is a power of two and the same on all
            members.
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
        """Return the sender's chunk on each member of a group, `[n]` of the chunk's dtype."""
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
            "communication_hint": self.transport.hint,
        }
        with tf.device(self.transport.device):
            if sender == self.place:
                message = tf.raw_ops.CollectiveBcastSendV2(
                    input=tf.bitcast(chunk, kind), **arguments
                )
            else:
                message = tf.raw_ops.CollectiveBcastRecvV2(shape=chunk.shape, T=kind, **arguments)
            return tf.bitcast(message, chunk.dtype)


class LoneOps:
    """The ops of a view with a single member. They do not exchange anything.

    Attributes:
      size: always 1.
      place: always 0.
      transport: the transport that is assumed for the sizes of messages: gRPC.
    """

    size = 1
    place = 0
    transport = RING

    def exchange(
        self, chunks: Sequence, colors: Colors, first_key: int, encode: Callable = lambda x: x
    ) -> list[Exchanged]:
        """Return the encoded chunks without sending or receiving anything."""
        return [(encode(chunk), {}, []) for chunk in chunks]

    def broadcast(self, chunks: list, first_key: int, source: int = 0) -> list:
        """Return the chunks."""
        return chunks

    def mean(self, chunks: list, first_key: int) -> list:
        """Return the chunks."""
        return chunks

    def mean_of_pair(self, chunks: list, partner: int, first_key: int) -> list:
        """Return the chunks."""
        return chunks

    def gather(self, values: tf.Tensor) -> tf.Tensor:
        """Return the values."""
        return values


Ops = GroupOps | LoneOps


def for_view(view: View, rank: int, world_size: int, transport: Transport) -> Ops:
    """Return the ops among a view's members. For the arguments, see `GroupOps`."""
    if len(view.members) == 1:
        return LoneOps()
    return GroupOps(view, rank, world_size, transport)


def _turn(issued: list, limit: int) -> list:
    """Return what the next message must wait for, so that at most `limit` are in flight."""
    return [issued[-limit]] if len(issued) >= limit else []
