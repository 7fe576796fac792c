"""Define who averages with whom, and when, as pure functions of NumPy and Python values.

No module of this package imports TensorFlow, looks up this process's rank, or reads a clock.

Contents:

- `graph`: `Topology`, a cycle of mixing matrices, and `Round`, one of these matrices.
- `rounds`: functions that build the `Round` of an empty, a circulant or an undirected graph.
- `exact`: topologies that average exactly within one cycle: hypercube and Base-(k+1) graphs.
- `topology`: the named topologies, and topologies from a matrix or a networkx graph.
- `schedule`: the period H, in steps, from one global average to the next, fixed or adaptive.
"""
