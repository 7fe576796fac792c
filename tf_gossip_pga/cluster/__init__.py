"""Find this process's place among the workers: rank, size, addresses, devices, and share of data.

Contents:

- `cluster`: `Cluster`, the result of `pga.initialize`.
- `detect`: find the place that the environment variables describe, and refuse a process that would
  train alone by mistake.
- `place`: `Place`, the result of `detect.find`. Its addresses may not be known yet.
- `tf_config`: convert `TF_CONFIG` to a `Cluster` and back.
- `cluster_file`: read and write a file with the addresses of all workers.
- `keras_job`, `slurm`, `sagemaker`, `kubernetes`, `open_mpi`, `torchrun`: each reads the variables
  of one *starter*, a program that starts the workers.
- `node_list`: expand Slurm's compressed lists of nodes.
- `ports`: choose ports where the starter reports only hosts.
- `sharding`: select the part of a dataset that one worker reads.
- `devices`: choose the devices of one worker.
- `gpus`: name the GPU from which one worker exchanges.
- `machine`: identify the machine that this process runs on.

Of these modules, only `devices` and `gpus` load TensorFlow when they are imported.
"""
