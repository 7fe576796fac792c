"""Find the cluster that this process belongs to.

`srun`, `mpirun` and the like start several processes, each of which would train alone without a
`TF_CONFIG`. Their variables are therefore looked at, if only to refuse that.

To add a starter (Slurm, Kubernetes, …): write a function of the environment that returns a
`Cluster`, or None where the starter has left no trace, and list it in `STARTERS`. Nothing else
reads the starter's variables, except that `train.py` and the benchmarks start workers of their own
where `TF_CONFIG` is unset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.tf_config import from_tf_config, to_tf_config


def tf_config(environment: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that `TF_CONFIG` describes, or None where it is unset or blank."""
    text = environment.get("TF_CONFIG", "")
    return from_tf_config(text) if text.strip() else None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _most(text: str) -> int:
    """Return the largest number of a range, as in "1:4"."""
    return max(map(_number, text.split(":")))


def _length(text: str) -> int:
    """Return the length of a JSON list."""
    try:
        hosts = json.loads(text)
    except (ValueError, RecursionError):
        return 0
    return len(hosts) if isinstance(hosts, list) else 0


# The variable that, set to "none", makes this process a single worker.
CLUSTER = "TF_GOSSIP_PGA_CLUSTER"

# Where starters say how many processes they have started, and how to read it.
TASKS: dict[str, Callable[[str], int]] = {
    "SLURM_STEP_NUM_TASKS": _number,  # srun
    "OMPI_COMM_WORLD_SIZE": _number,  # mpirun of Open MPI
    "PMI_SIZE": _number,  # mpiexec of MPICH and Intel MPI
    "WORLD_SIZE": _number,  # torchrun, Kubeflow
    "PET_NNODES": _most,  # torchrun, Kubeflow
    "KERAS_DISTRIBUTION_NUM_PROCESSES": _number,
    "SM_HOSTS": _length,  # SageMaker
}

# Asked in this order; the first that has left a trace counts.
STARTERS = (tf_config,)


def find(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return this process's place; a single worker where no starter has left a trace.

    With `TF_GOSSIP_PGA_CLUSTER=none` it is a single worker whatever starters have left.

    Args:
      environment: the variables to look at; default: those of this process.

    Raises:
      ValueError: what a starter has left cannot be used; the message quotes it. Also if there is
        no `TF_CONFIG`, but variables say that this process is one of several.

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
            f"{CLUSTER} can only be none, for one worker whatever started it; received {chosen!r}."
        )
    for starter in STARTERS:
        if (cluster := starter(environment)) is not None:
            return cluster
    _check_alone(environment)
    return Cluster()


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` where a starter's variables say that this is one process of several."""
    seen = [
        f"{name}={environment[name]}"
        for name, tasks in TASKS.items()
        if tasks(environment.get(name, "")) > 1
    ]
    if seen:
        raise ValueError(
            f"This process is one of several ({', '.join(seen)}), but has no TF_CONFIG with the "
            "addresses of all of them: each would train alone. Give each process its TF_CONFIG:\n"
            f"    TF_CONFIG='{to_tf_config(['HOST0:2222', 'HOST1:2222'], 0)}'\n"
            "with the same addresses and an index of its own, or let `python -m "
            "tf_gossip_pga.launch` start the workers of one machine. "
            f"If they are to train apart, set {CLUSTER}=none."
        )
