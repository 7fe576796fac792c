"""Track which workers are alive, late, and members: the control plane, without TensorFlow.

For all exchanges:

- `timing`: every deadline and interval.
- `running_call`: whether a function still runs, and which exception left it.
- `status`: what a worker reports about itself, and why it may not answer.
- `roster`, `roll_call_sockets`, `roll_call`: connect all workers before TensorFlow starts, or
  report who is missing.
- `addresses`, `greetings`, `server`, `channel`: requests and answers between workers, over TCP.
- `messages`: the types of the fields of messages, and their checks.
- `secret`: what a job's workers share, and how they prove it.
- `departures`: report an exception that left `fit` or ended a worker.
- `diagnosis`: find which ranks an exchange waits for, and describe them in a sentence.
- `watchdog`: watch the exchange in progress, report it, and abort it.
- `reports`: decide when a wait is worth a line of output, and name ranks in it.

For membership:

- `view`: `View`, a numbered list of members; `Standing`, what a worker reports while a view is
  formed.
- `contacts`: when workers have communicated, and what a dead worker may have done since.
- `decide`: what a worker does with the others' answers. Pure functions.
- `protocol`: the agreement on a new view, as generators that yield effects (see docs/protocol.md).
- `membership`: run the protocol over the real channel and clock.
- `sequence`: a worker's place in the sequence of exchanges of one `fit`.
- `joining`: how a restarted worker and the surviving workers find each other.
- `admission`: what joining workers and members exchange before a view grows.

To add a way to lose a worker:

1. If the worker can raise an exception inside `fit`, add nothing: `status` detects that the worker
   has left `fit`, and the rest follows.
2. Otherwise let the worker report it in a field of `Whereabouts` (status), which `diagnosis` blames
   at once. Add a field of `Standing` (view) as well, with which `decide` counts the worker on no
   side and `protocol._is_lost` abandons a view. The worker itself must end: in `exchange.elastic`,
   when one of its own exchanges fails.
3. Document it in docs/protocol.md, and add this fault to the simulation.
"""
