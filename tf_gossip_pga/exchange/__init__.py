"""The data plane: exchange tensors and values between workers with TensorFlow's CollectiveOps.

Modules, from the bottom up:

- `runtime`: starts TensorFlow's server, and calls TensorFlow's private API.
- `transport`: chooses whether exchanges travel over gRPC or NCCL, and from which device.
- `failures`: decides which TensorFlow errors mean that another worker or the network failed.
- `group_ops`: the collective ops among the members of a view, in an order that cannot deadlock.
- `gather`: gathers JSON values from all members.
- `session`: exchanges with deadlines, for a single worker and for a cluster with fixed members.
- `elastic`: a session whose members can change. It counts the exchanges of a `fit`, so that the
  workers agree after a loss on which exchanges are completed.
- `guard`: a second process that watches a starting worker. While TensorFlow's startup blocks all
  Python threads of the worker, the guard reports a long wait, and kills the worker at the deadline
  or if it receives SIGTERM.
- `startup`, `process`: connect the process to its cluster (`initialize`, `active`).
- `buckets`: packs variables into flat chunks of one dtype.
- `wire`: encodings for the chunks of a gossip.
- `message_plan`: the number and sizes of the messages of gossips and global averages.
- `mixing`: builds the TensorFlow graph of a gossip.
- `health`: checks whether a rank's own parameters are finite, and fingerprints them.
- `traced`: functions that TensorFlow traces only once.
- `copying`: copies variables from one member to the others.
- `outer_state`: the state of an outer optimizer.
- `averager`: gossips, global averages, broadcasts, and state transfers of one model's variables.
"""
