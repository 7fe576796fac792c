"""The Keras side: the `GossipPGA` callback and its parts.

Modules, by the lifetime of what they hold:

- `callback`: `GossipPGA`, with its documentation, arguments and Keras hooks.
- `settings`: the checked arguments, which never change.
- `run_state`: state that survives one `fit`: step, period, totals, averager.
- `fit`, `group_fit`: one `fit` of a single worker, and of a worker among others.
- `phase`: the states and transitions of a `fit`, of the stop vote and of the replica.
- `start`: the agreement of all ranks at the start of a `fit`, and their common initial state.
- `group`: the other ranks of a `fit`: sync points, averages, reconciliation after a loss.
- `sync_point`: the reports that ranks exchange at a point of training.
- `ending`: the steps after all callbacks of an epoch or a `fit`: the same stop, the same model.
- `period_loss`: the loss that an adaptive period follows.

Helpers:

- `preflight`: the checks of each rank, and the comparison of all ranks, before the first exchange.
- `variables`: the variables and optimizers of a model, and how each is exchanged.
- `adapted`: descriptions of adapted layers, for comparison.
- `piggyback`: the numbers that ranks exchange along with a global average.
- `symptoms`: warnings about identical steps and parameters that are not finite.
- `callback_list`: access to the other callbacks of a `fit`, and a call after all of them.
- `callback_facts`: the comparison of the other callbacks of all ranks.
- `preemption`: SIGTERM during `fit`.
"""
