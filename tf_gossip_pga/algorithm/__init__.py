"""Define who averages with whom, and when, as pure functions of NumPy and Python values.

Nothing here imports TensorFlow, looks up this process's rank, or reads a clock.

Contents:

- `graph`: `Topology`, a cycle of mixing matrices, and `Round`, one of these matrices.
- `rounds`: build single rounds: circulant graphs and Metropolis-Hastings weights.
- `topology`: the named topologies, and topologies from a matrix or a networkx graph.
- `schedule`: the period H of global averages, fixed or adaptive.
"""
