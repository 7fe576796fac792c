"""Find the place of this process among the workers from its environment variables.

Each *starter*, such as `srun` or `mpirun`, has a detector: a function that takes the environment
and returns a `Place`, or None if the starter has not started this process as one of several. To add
a starter, write such a function and add it to `STARTERS`.

Detectors only read variables (and `/etc/hosts`), so `find` never waits. Some starters report only
rank 0's host. `coordination.rendezvous` then finds the addresses. `TF_GOSSIP_PGA_CLUSTER` takes
precedence over all starters, because the user has set it on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from tf_gossip_pga.cluster import (
    cluster_file,
    keras_job,
    kubernetes,
    open_mpi,
    sagemaker,
    slurm,
    torchrun,
)
from tf_gossip_pga.cluster.place import CLUSTER, Place, number, unknown
from tf_gossip_pga.cluster.tf_config import from_tf_config


def tf_config(environment: Mapping[str, str]) -> Place | None:
    """Return the place that `TF_CONFIG` describes, or None if it is unset or blank."""
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        return None
    cluster = from_tf_config(text)
    return Place(cluster.rank, cluster.size, "TF_CONFIG", cluster.addresses)


# In order of precedence: the first that returns a place wins. `mpirun` and `torchrun` may run
# inside a step of Slurm, a Kubernetes Job or a SageMaker job, whose variables their processes
# inherit. These variables then describe the processes that run `mpirun` or `torchrun`.
STARTERS: tuple[Callable[[Mapping[str, str]], Place | None], ...] = (
    tf_config,
    keras_job.find,
    open_mpi.find,
    torchrun.find_within,
    slurm.find,
    sagemaker.find,
    kubernetes.find,
    torchrun.find,
    torchrun.find_pet,
)


def _most(text: str) -> int:
    """Return the largest number of a range such as "1:4"."""
    return max(map(number, text.split(":")))


# Variables that show that this process is one of several, how to read each, and what to do if no
# detector has found the others.
TASKS: dict[str, tuple[Callable[[str], int], str]] = {
    "PMI_SIZE": (number, "Start the processes with Open MPI's mpirun, srun or torchrun instead."),
    "WORLD_SIZE": (number, "Set RANK, MASTER_ADDR and MASTER_PORT too, as torchrun does."),
    "PET_NNODES": (_most, "Set PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT too."),
    "HOROVOD_SIZE": (number, "Start the processes with mpirun, srun or gossip-pga run instead."),
    "FLUX_JOB_SIZE": (number, "Start the processes with Open MPI's mpirun or torchrun instead."),
    "AWS_BATCH_JOB_NUM_NODES": (number, "Use AWS_BATCH_JOB_NODE_INDEX as the index."),
    kubernetes.WORKERS: (number, f"It needs {kubernetes.INDEX}, which an Indexed Job sets."),
    # Each process may be one of several even if its index or rank is 0.
    kubernetes.INDEX: (lambda text: 2 if text else 0, f"Set {kubernetes.WORKERS} too."),
    cluster_file.RANK: (lambda text: 2 if text else 0, f"Set {CLUSTER} too."),
}


def find(environment: Mapping[str, str] | None = None) -> Place:
    """Return this process's place among the workers that the environment describes.

    If the environment describes no workers, or contains `TF_GOSSIP_PGA_CLUSTER=none`, this process
    is a single worker. With the path of a file in this variable, the file describes the workers.

    Args:
      environment: the environment variables to read. Default: those of this process.

    Raises:
      ValueError: a variable cannot be used (the message quotes it), or variables show that this
        process is one of several but do not describe the others.

    Example:
      >>> find({}).size
      1
    """
    environment = os.environ if environment is None else environment
    chosen = environment.get(CLUSTER, "")
    if chosen:
        return Place() if chosen == "none" else cluster_file.find(environment)
    for starter in STARTERS:
        if (place := starter(environment)) is not None:
            if starter in (slurm.find, sagemaker.find, kubernetes.find) and place.size > 1:
                _check_inner(environment, place)
            return place
    _check_alone(environment)
    return Place()


def _inner_size(environment: Mapping[str, str]) -> str:
    """Return the variable by which `mpirun` or `torchrun` reports a single process, or ""."""
    for marker, name in ((open_mpi.SIZE, open_mpi.SIZE), (torchrun.RUN, torchrun.SIZE)):
        if marker in environment and number(environment.get(name)) == 1:
            return name
    return ""


def _check_inner(environment: Mapping[str, str], place: Place) -> None:
    """Raise `ValueError` if a starter inside the place's starter reports a single process."""
    if name := _inner_size(environment):
        raise unknown(
            f"found by {place.found_by}: {place.size} processes",
            f"{name}=1 says that this process is alone",
            "Start the script with one starter only, or tell the inner starter of all processes.",
        )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if variables show that this process is one of several."""
    for name, (read, remedy) in TASKS.items():
        # A pod of a job whose own starter reports one process is alone.
        is_alone = name == kubernetes.INDEX and (
            environment.get("PET_NNODES") == "1" or _inner_size(environment)
        )
        if name in environment and read(environment[name]) > 1 and not is_alone:
            raise unknown(f"{name}={environment[name]}", "too few variables are set", remedy)
