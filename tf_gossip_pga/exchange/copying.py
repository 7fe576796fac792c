"""Copy variables from one member of a view to the others."""

from __future__ import annotations

import tensorflow as tf

from tf_gossip_pga.exchange.buckets import Bucket
from tf_gossip_pga.exchange.group_ops import Ops
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.exchange.traced import Traced


def copying(
    ops: Ops, bucket: Bucket, first_key: int, source: int = 0, is_taken: bool = True
) -> Traced:
    """Return a function that copies a bucket from one member to the others.

    All members must call the function at the same point.

    Args:
      ops: the collective ops of the view.
      bucket: the variables to copy.
      first_key: the first of the instance keys that are reserved for this copy, one for each chunk.
      source: index of the sending member among the members. Default 0.
      is_taken: whether this member assigns the variables that it receives. Default True.
    """

    def copy():
        received = ops.broadcast(bucket.pack(), first_key, source)
        if is_taken:
            bucket.assign(received)
        with tf.control_dependencies(received):
            return tf.constant(0)

    return Traced(copy)


def copy(
    session: SoloSession, bucket: Bucket, source: int, is_taken: bool, doing: str, timeout_s: float
) -> int:
    """Copy a bucket from any member to the others, once. All members must call this.

    Args:
      session: runs the exchanges of this process.
      bucket: the variables to copy.
      source: index of the sending member among the members.
      is_taken: whether this member assigns the variables that it receives.
      doing: name of the exchange, for log and error messages.
      timeout_s: seconds to wait for the other members.

    Returns:
      The number of payload bytes that this rank has sent.
    """
    if not len(bucket):
        return 0
    # Reserve new keys, because the key of a broadcast is also bound to its source.
    key = session.reserve_keys(len(bucket), doing, timeout_s)
    with session.waiting(doing, timeout_s):
        copying(session.ops, bucket, key, source, is_taken)()
    return bucket.bytes if session.place == source else 0
