"""The Keras integration: the `GossipPGA` callback and its components.

Modules. Those whose state lives longest come first:

- `callback`: `GossipPGA`, with its documentation, arguments, and Keras hooks.
- `settings`: the validated arguments of `GossipPGA`, which never change.
- `run_state`: state that outlives a `fit`: step, period, totals, averager.
- `fit`, `group_fit`: one `fit` call, for a single worker and for one of several workers.
- `phase`: states and transitions of a `fit`, of the vote to stop early, and of this rank's replica.
- `start`: how all ranks agree on what to train at the start of a `fit`, and get equal models.
- `group`: exchanges with the other ranks: sync points, averages, reconciliation after a loss.
- `sync_point`: the reports that ranks exchange at a sync point.
- `ending`: what the ranks do together when an epoch or training ends: they stop together, and make
  their models equal.
- `pace`: the times that an automatic period follows.
- `period_loss`: the training loss that controls an adaptive period.

Helpers:

- `preflight`: checks each rank by itself, and compares all ranks, before the first step.
- `variables`: finds a model's variables and optimizers, and decides how each is exchanged.
- `adapted`: describes layers that have an `adapt` method or a lookup table, so that ranks can
  compare them.
- `piggyback`: numbers that ranks exchange along with a global average.
- `driver`: knows which `GossipPGA` drives a model.
- `symptoms`: warns if all ranks take identical steps, or if parameters are not finite.
- `callback_list`: finds the callbacks of a `fit` other than `GossipPGA`, and calls methods after
  the hooks of all callbacks.
- `callback_facts`: compares the callbacks other than `GossipPGA` across ranks.
- `preemption`: handles SIGTERM during `fit`.
"""
