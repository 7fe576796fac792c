"""Define who averages with whom, and when, as pure functions of NumPy and Python values.

No module of this package imports TensorFlow, looks up this process's rank, or reads a clock.

Contents:

- `graph`: `Topology`, a cycle of mixing matrices, and `Round`, one of these matrices.
- `rounds`: functions that build the `Round` of an empty, a circulant or an undirected graph.
- `exact`: topologies that average exactly within one cycle: hypercube and Base-(k+1) graphs.
- `topology`: the named topologies, and topologies from a matrix or a networkx graph.
- `schedule`: after which steps ranks gossip or average globally, with a fixed or adaptive period H.
- `outer`: the outer optimizer, which takes a step at each global average.
- `auto`: a schedule that follows measured times and the consensus distance.
"""
