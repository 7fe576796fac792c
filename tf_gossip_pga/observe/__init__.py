"""Callbacks that show what the ranks spend their time on.

`timeline` records some steps of all ranks for a trace viewer, and `tensorboard` writes curves. Both
stand next to a `GossipPGA` in the callbacks of a `fit`. `waits` and `trace` are pure functions.
"""
