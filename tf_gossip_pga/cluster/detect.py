"""Find the cluster that this process belongs to.

`srun`, `mpirun` and other starters launch several processes. Without `TF_CONFIG`, each process
would train alone. So far, this module reads the starters' own environment variables only to detect
such a process and to refuse it.

To add a starter (Slurm, Kubernetes, …), write a function that takes the environment and returns a
`Cluster`, or None if the starter has set no variables. Then add the function to `STARTERS`. No
other module of the package reads the starters' variables. However, `train.py` and the benchmarks
start local workers whenever `TF_CONFIG` is unset, so they must be changed as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.tf_config import from_tf_config, to_tf_config


def tf_config(environment: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that `TF_CONFIG` describes, or None if it is unset or blank."""
    text = environment.get("TF_CONFIG", "")
    return from_tf_config(text) if text.strip() else None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _most(text: str) -> int:
    """Return the largest number of a range such as "1:4"."""
    return max(map(_number, text.split(":")))


def _length(text: str) -> int:
    """Return the length of a JSON list, or 0 if the text is not one."""
    try:
        hosts = json.loads(text)
    except (ValueError, RecursionError):
        return 0
    return len(hosts) if isinstance(hosts, list) else 0


# Environment variable; "none" makes this process a single worker.
CLUSTER = "TF_GOSSIP_PGA_CLUSTER"

# Variables in which starters report the number of processes, and how to parse each.
TASKS: dict[str, Callable[[str], int]] = {
    "SLURM_STEP_NUM_TASKS": _number,  # srun
    "OMPI_COMM_WORLD_SIZE": _number,  # mpirun of Open MPI
    "PMI_SIZE": _number,  # mpiexec of MPICH and Intel MPI
    "WORLD_SIZE": _number,  # torchrun, Kubeflow
    "PET_NNODES": _most,  # torchrun, Kubeflow
    "KERAS_DISTRIBUTION_NUM_PROCESSES": _number,
    "SM_HOSTS": _length,  # SageMaker
}

# In order of precedence: the first that returns a cluster wins.
STARTERS = (tf_config,)


def find(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return this process's place among the workers that the environment describes.

    If the environment describes no workers, or contains `TF_GOSSIP_PGA_CLUSTER=none`, this process
    is a single worker.

    Args:
      environment: the environment variables to read. Default: those of this process.

    Returns:
      A `Cluster` whose `strategy` is None; `initialize` sets it.

    Raises:
      ValueError: a variable cannot be used (the message quotes it), or `TF_CONFIG` is not set but
        other variables show that this process is one of several.

    Example:
      >>> find({}).size
      1
    """
    environment = os.environ if environment is None else environment
    chosen = environment.get(CLUSTER, "")
    if chosen == "none":
        return Cluster()
    if chosen:
        raise ValueError(
            f'{CLUSTER} must be unset, or "none" to train as a single worker, received {chosen!r}.'
        )
    for starter in STARTERS:
        if (cluster := starter(environment)) is not None:
            return cluster
    _check_alone(environment)
    return Cluster()


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if a starter's variables show that this process is one of several."""
    seen = [
        f"{name}={environment[name]}"
        for name, tasks in TASKS.items()
        if tasks(environment.get(name, "")) > 1
    ]
    if seen:
        raise ValueError(
            f"This process is one of several ({', '.join(seen)}), but TF_CONFIG is not set, so "
            "each process would train alone. Set TF_CONFIG for each process:\n"
            f"    TF_CONFIG='{to_tf_config(['HOST0:2222', 'HOST1:2222'], 0)}'\n"
            "with the addresses of all processes, and a different index in each. On one machine, "
            "`python -m tf_gossip_pga.launch` can start the workers instead. To train each process "
            f"alone on purpose, set {CLUSTER}=none."
        )
