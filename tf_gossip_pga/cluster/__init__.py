"""Find this process's place among the workers: rank, size, addresses, devices, and share of data.

Contents:

- `cluster`: `Cluster`, the result of `pga.initialize`.
- `detect`: find the place that the environment variables describe, and refuse a process that would
  train alone by mistake.
- `place`: `Place`, the result of `detect`, which may not have addresses yet.
- `tf_config`: convert `TF_CONFIG` to a `Cluster` and back.
- `cluster_file`: read and write a file with the addresses of all workers.
- `keras_job`, `slurm`, `node_list`, `sagemaker`, `kubernetes`, `open_mpi`, `torchrun`: read the
  variables of other starters.
- `ports`: choose ports where the starter reports only hosts.
- `sharding`: select the part of a dataset that one worker reads.
- `devices`: choose the devices of one worker. It is the only module here that always loads
  TensorFlow when it is imported.
"""
