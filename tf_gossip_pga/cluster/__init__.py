"""Find this process's place among the workers: rank, size, addresses, devices, and share of data.

Contents:

- `cluster`: `Cluster`, the result of `pga.initialize`.
- `detect`: find the cluster that the environment variables describe, and refuse a process that
  would train alone by mistake.
- `tf_config`: convert `TF_CONFIG` to a `Cluster` and back.
- `sharding`: select the part of a dataset that one worker reads.
- `devices`: choose the devices of one worker. It is the only module here that always loads
  TensorFlow when it is imported.
"""
