"""Find this process's place among the workers: rank, size, addresses, devices, and share of data.

Contents:

- `cluster`: `Cluster`, the result of `pga.initialize`.
- `detect`: find the cluster that the environment describes, and prevent training alone by mistake.
- `tf_config`: convert `TF_CONFIG` to a `Cluster` and back.
- `sharding`: select the part of a dataset that one worker reads.
- `devices`: choose the devices of one worker. The only module here that imports TensorFlow at
  import time.
"""
