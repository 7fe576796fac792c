"""Track which workers are members, alive, or late: the control plane, without TensorFlow.

Modules that every job uses:

- `timing`: every deadline and interval of the control plane.
- `running_call`: whether a function is still running, and which exception escaped it.
- `status`: what a worker reports about itself, and why it may not answer.
- `register`, `rendezvous`: collect the addresses of all workers if only rank 0's host is known.
- `roster`, `roll_call_sockets`, `roll_call`: connect all workers before TensorFlow starts, or
  report who is missing.
- `addresses`, `greetings`, `server`, `channel`: requests and answers between workers, over TCP.
- `messages`: declare and check the types of message fields.
- `secret`: the secret that a job's workers share, and how they prove that they know it.
- `departures`: report an exception that escaped `fit` or ended a worker.
- `diagnosis`: find which ranks an exchange waits for, and describe them in one line.
- `watchdog`: watch the exchange in progress. Report it if it takes long, and abort it if it takes
  too long or can no longer complete.
- `reports`: decide when to report a wait, and name ranks in the report.

Modules that decide on the members, after a loss or when a worker joins:

- `view`: `View`, a numbered list of members, and `Standing`, a worker's report while a view is
  formed.
- `contacts`: when workers last communicated, and what a dead worker may have done since then.
- `decide`: pure functions that decide from the others' answers what a worker that wants a new view
  does next.
- `protocol`: the steps of the agreement on a new view, without a clock or a network (see
  docs/protocol.md).
- `membership`: run the protocol over the real channel and clock.
- `sequence`: a worker's place in the sequence of exchanges of one `fit`.
- `joining`: how a restarted worker and the surviving workers find each other.
- `admission`: the messages between joining workers and members before the members admit them.

To support a new way of losing a worker:

1. If the worker can raise an exception inside `fit`, nothing needs to be added: `status` detects
   that the worker has left `fit`, and the other modules already handle a worker that has left.
2. Otherwise, let the worker report the failure in a field of `Whereabouts` (`status`), so that
   `diagnosis` blames the worker immediately. Also add a field to `Standing` (`view`), and read the
   new field of `Standing` in two places. `decide.decide` must count the worker on neither side of a
   partition. `protocol._is_lost` must return True for the worker, so that the others abandon a view
   that they are forming with the worker. When one of the worker's own exchanges fails,
   `exchange.elastic` must end the worker.
3. Document the failure in docs/protocol.md, and add it to the simulation
   (tests/support/protocol_simulation.py).
"""
