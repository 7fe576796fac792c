"""The control plane: who is alive, who is late, who is a member. No TensorFlow.

timing: every deadline and interval.
running_call: whether a function still runs, and which exception has left it.
status: what a worker tells others of itself, and why it may not answer.
roster, roll_call_sockets, roll_call: all meet before TensorFlow starts, or say who is missing.
addresses, greetings, server, channel: questions and answers between workers, over TCP.
messages: the types of the fields of messages, and their checks.
secret: what a job's workers share, and how they prove it.
departures: what workers tell of an exception that has left `fit`, or ended them.
diagnosis: whom an exchange waits for, and the sentence about it.
watchdog: looks after the exchange under way, reports it, aborts it.
reports: when a wait is worth a line, ranks by name.

view: `View`, a numbered list of members; `Standing`, what a worker says while one is formed.
contacts: when workers have spoken, and what a dead one may have done since.
decide: what a worker does with the others' answers. Pure.
protocol: the agreement on a new view, as generators that yield effects (see docs/protocol.md).
membership: the protocol over the real channel and clock.
sequence: a worker's place in the sequence of exchanges of one `fit`.
joining: how a restarted worker and the surviving workers find each other.
admission: what joining workers and members tell each other before a view grows.

To add a way to lose a worker:
  1. A worker that can raise inside `fit` needs nothing: `status` sees that it has left `fit`, and
     everything below follows.
  2. Otherwise let it say so: a field of `Whereabouts` (status), which `diagnosis` blames at once,
     and a field of `Standing` (view), with which `decide` counts it for nobody and
     `protocol._is_lost` abandons a view. The worker itself must end: in `exchange.elastic`, where
     an exchange of its own has failed.
  3. Name it in docs/protocol.md, and let the simulation have such a fault.
"""
