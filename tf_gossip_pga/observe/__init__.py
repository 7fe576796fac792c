"""Callbacks that show what the ranks spend their time on.

`timeline` records some steps of all ranks for a trace viewer, `tensorboard` writes curves, and
`report` writes a page. They stand next to a `GossipPGA` in the callbacks of a `fit`. `waits`,
`trace`, and everything from which a page is made (`record`, `words`, `figures`, `svg`, `page`,
`rendering`) are pure.
"""
