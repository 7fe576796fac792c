"""Find this process's place among the workers: rank, size, addresses, devices, share of the data.

Contents:
  cluster: `Cluster`, what `pga.initialize` returns.
  detect: find the cluster that a starter has described to this process.
  tf_config: `TF_CONFIG` -> `Cluster`, and back.
  sharding: the part of a dataset that one worker reads.
  devices: the devices of one worker. The only module here that imports TensorFlow at its top.
"""
