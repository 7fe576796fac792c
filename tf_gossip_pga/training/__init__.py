"""The Keras side: the `GossipPGA` callback and its parts, by how long they live.

callback: `GossipPGA`: documentation, arguments, Keras' hooks.
settings: its arguments, checked. They never change.
run_state: what survives one `fit`: step, period, totals, averager.
fit, group_fit: one `fit` of a single worker, and of a worker among others.
phase: where a fit is, the stop vote, the replica; their states and transitions.
start: what the ranks of one fit agree on, and the state that they begin with.
group: the other ranks of one fit: sync points, averages, reconciliation after a loss.
sync_point: what ranks tell one another at a point of training.
ending: what follows all callbacks of an epoch and of a fit: the same stop, the same model.
period_loss: the loss that an adaptive period follows.

preflight: what each rank checks, and what must be equal on all, before the first exchange.
variables: the variables and optimizers of a model, and what becomes of each.
adapted: what layers have adapted to, for comparison.
piggyback: the numbers that ranks tell one another along with a global average.
symptoms: what ranks notice of their parameters: identical steps, numbers that are not finite.
callback_list: how the other callbacks of a fit are reached, and followed.
callback_facts: what their callbacks must have in common on all ranks.
preemption: SIGTERM while `fit` runs.
"""
