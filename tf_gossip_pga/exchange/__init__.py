"""The data plane: exchange tensors and values between workers through TensorFlow's CollectiveOps.

From the bottom up:
  runtime: TensorFlow's server and its private API; which transport and device exchange.
  failures: which of TensorFlow's errors mean that another worker or the network failed.
  group_ops: the collective ops of one view's members, in an order that cannot deadlock.
  gather: JSON values from all members.
  session: the exchanges of a single worker, and of a cluster with fixed members, under deadlines.
  elastic: a session whose members change; it owns the sequence of exchanges.
  guard: another process, which speaks while TensorFlow's start lets no Python run.
  startup, process: connect this process with its cluster: `initialize`, `active`.

  buckets: variables as flat chunks of one dtype.
  wire: how gossips encode chunks.
  mixing: the graph of a gossip.
  health: what a rank knows of its own parameters: finite or not, a fingerprint.
  traced: functions that TensorFlow traces once.
  averager: gossip, global average, broadcast and state transfer of one model's variables.
"""
