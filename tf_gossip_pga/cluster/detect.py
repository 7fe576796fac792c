"""Find the place of this process among the workers from its environment variables.

A *starter* is a program that starts the workers of a job, such as `srun` or `mpirun`. Each starter
has a detector: a function that takes the environment variables and returns a `Place`, or None if
the starter has not started this process as one of several. To add a starter, write such a function
and add it to `STARTERS`.

Detectors only read variables (and `/etc/hosts`), so `find` never waits for the network. Some
starters report only rank 0's host. In that case, `coordination.rendezvous` later collects the
addresses of all workers.

A user may set `TF_GOSSIP_PGA_CLUSTER` to the path of a file that describes the workers, or to
`none`. This variable takes precedence over all starters, because it was set on purpose.
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


# The detectors in order of precedence: the first that returns a place wins. `mpirun` and `torchrun`
# may run inside a step of Slurm, a Kubernetes Job or a SageMaker job, whose variables the workers
# inherit. The inherited variables describe the processes that run `mpirun` or `torchrun`, not the
# workers. The detectors of `mpirun` and `torchrun` therefore precede those of Slurm, SageMaker and
# Kubernetes.
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
    """Return the largest number in a text such as `"1:4"` or `"4"`."""
    return max(map(number, text.split(":")))


# Variables that show that this process is one of several, read if no detector has found the other
# processes. For each variable: a function that returns the number of processes that the variable's
# value shows, and a sentence for the error, which says what the user can do.
TASKS: dict[str, tuple[Callable[[str], int], str]] = {
    "PMI_SIZE": (number, "Start the processes with Open MPI's mpirun, srun or torchrun instead."),
    "WORLD_SIZE": (number, "Set RANK, MASTER_ADDR and MASTER_PORT too, as torchrun does."),
    "PET_NNODES": (_most, "Set PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT too."),
    "HOROVOD_SIZE": (number, "Start the processes with mpirun, srun or gossip-pga run instead."),
    "FLUX_JOB_SIZE": (number, "Start the processes with Open MPI's mpirun or torchrun instead."),
    "AWS_BATCH_JOB_NUM_NODES": (
        number,
        "As the index in TF_CONFIG, use the value of AWS_BATCH_JOB_NODE_INDEX.",
    ),
    kubernetes.WORKERS: (
        number,
        f"Start the script in an Indexed Job of Kubernetes, which sets {kubernetes.INDEX}.",
    ),
    # An index or a rank is set only if there are several processes, so read it as two, even if it
    # is 0.
    kubernetes.INDEX: (lambda text: 2 if text else 0, f"Set {kubernetes.WORKERS} too."),
    cluster_file.RANK: (lambda text: 2 if text else 0, f"Set {CLUSTER} too."),
}


def find(environment: Mapping[str, str] | None = None) -> Place:
    """Return this process's place among the workers that the environment describes.

    If the environment describes no workers, or contains `TF_GOSSIP_PGA_CLUSTER=none`, this process
    is a single worker. If this variable holds the path of a file instead, the file describes the
    workers.

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
    """Return the name of a variable by which `mpirun` or `torchrun` reports one process, or ""."""
    for marker, name in ((open_mpi.SIZE, open_mpi.SIZE), (torchrun.RUN, torchrun.SIZE)):
        if marker in environment and number(environment.get(name)) == 1:
            return name
    return ""


def _check_inner(environment: Mapping[str, str], place: Place) -> None:
    """Raise `ValueError` if an inner `mpirun` or `torchrun` reports one process, unlike `place`."""
    if name := _inner_size(environment):
        raise unknown(
            f"found by {place.found_by}: {place.size} processes",
            f"{name}=1 says that this process is alone",
            "Start the script with one starter only, or let the inner starter start all processes.",
        )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if variables show that this process is one of several."""
    for name, (read, remedy) in TASKS.items():
        # The process of a pod is alone if `torchrun` or `mpirun` in the pod reports one process.
        is_alone = name == kubernetes.INDEX and (
            environment.get("PET_NNODES") == "1" or _inner_size(environment)
        )
        if name in environment and read(environment[name]) > 1 and not is_alone:
            raise unknown(f"{name}={environment[name]}", "too few variables are set", remedy)
