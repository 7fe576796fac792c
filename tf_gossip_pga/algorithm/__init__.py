"""Define who averages with whom, and when. Pure: no TensorFlow, no rank of its own, no clock.

Contents:
  graph: `Topology`, a cycle of mixing matrices, and `Round`, one of them.
  rounds: the building blocks of rounds: circulant graphs, Metropolis-Hastings weights.
  topology: the named topologies, and those built from a matrix or a networkx graph.
  schedule: the period H of global averages, fixed or adaptive.
"""
