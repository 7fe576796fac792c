"""The data plane: exchange tensors and values between workers through TensorFlow's CollectiveOps.

Modules, from the bottom up:

- `runtime`: TensorFlow's server and its private API; the choice of transport and device.
- `failures`: which of TensorFlow's errors mean that another worker or the network failed.
- `group_ops`: the collective ops of one view's members, in an order that cannot deadlock.
- `gather`: JSON values from all members.
- `session`: the exchanges of a single worker, and of a cluster with fixed members, with deadlines.
- `elastic`: a session whose members change. It owns the sequence of exchanges.
- `guard`: a second process that reports while TensorFlow's start blocks Python in this one.
- `startup`, `process`: connect this process to its cluster (`initialize`, `active`).
- `buckets`: variables as flat chunks of one dtype.
- `wire`: encodings of the chunks of a gossip.
- `mixing`: the graph of a gossip.
- `health`: checks of a rank's own parameters: finite or not, a fingerprint.
- `traced`: functions that TensorFlow traces once.
- `averager`: gossip, global average, broadcast and state transfer of one model's variables.
"""
