"""Find this process's place among the workers in the variables of `torchrun`.

The variables report no address but rank 0's. `coordination.rendezvous` later collects the others.

Other programs set the same variables: Kubeflow's PyTorchJob, and scripts that start PyTorch on
Slurm. In pods of Kubeflow Trainer, the variables that begin with `PET_` configure `torchrun`. If
each pod starts one process without `torchrun`, these variables suffice to find its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from tf_gossip_pga.cluster import ports
from tf_gossip_pga.cluster.place import Place, Rendezvous, number, seen, unknown, whole

_HOST = "MASTER_ADDR"
_PORT = "MASTER_PORT"
RUN = "TORCHELASTIC_RUN_ID"  # set by torchrun only
_RANK = "RANK"
SIZE = "WORLD_SIZE"
_LOCAL_RANK = "LOCAL_RANK"
_PET_RANK = "PET_NODE_RANK"
_PET_SIZE = "PET_NNODES"
_PET_HOST = "PET_MASTER_ADDR"
_PET_PORT = "PET_MASTER_PORT"


def find_within(environment: Mapping[str, str]) -> Place | None:
    """Return what `find` returns if `torchrun` itself has started this process, else None."""
    return find(environment) if RUN in environment else None


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place according to `RANK` and `WORLD_SIZE`.

    Return None if they are not both set, or there is only one process.

    Raises:
      ValueError: the variables do not report rank 0's host, or contradict each other.
    """
    size = number(environment.get(SIZE))
    if size < 2 or _RANK not in environment:
        return None
    try:
        rank = whole(environment, _RANK, size)
        # Without LOCAL_RANK there is one process per host, as in PyTorchJob.
        local_rank = whole(environment, _LOCAL_RANK, size) if _LOCAL_RANK in environment else 0
        job, hosts = rank_0(environment)
    except ValueError as error:
        raise unknown(
            seen(environment, (SIZE, _RANK, _LOCAL_RANK, _HOST, _PORT)),
            error,
            f"Set {_RANK}, {SIZE}, {_HOST} and {_PORT} as torchrun does, and {_LOCAL_RANK} if "
            "there are several processes on one host.",
        ) from None
    first = ports.first(environment, job)
    at = Rendezvous(job, hosts, first, ports.of_task(first, local_rank))
    return Place(rank, size, "torchrun's variables RANK and WORLD_SIZE", rendezvous=at)


def rank_0(environment: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the job's id, and rank 0's host in a tuple.

    Raises:
      ValueError: `MASTER_ADDR` or `MASTER_PORT` is missing or invalid.
    """
    run = environment.get(RUN, "")
    return _rank_0(environment, _HOST, _PORT, run)


def find_pet(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place according to the `PET_` variables, or None if it is alone.

    Raises:
      ValueError: the variables do not report rank 0's host or the number of pods.
    """
    least, _, most = environment.get(_PET_SIZE, "").partition(":")
    size = max(number(least), number(most))
    if size < 2 or _PET_RANK not in environment:
        return None
    try:
        if most and number(least) != size:
            raise ValueError(f"{_PET_SIZE} is a range, so the number of processes is not fixed")
        rank = whole(environment, _PET_RANK, size)
        job, hosts = _rank_0(environment, _PET_HOST, _PET_PORT)
    except ValueError as error:
        raise unknown(
            seen(environment, (_PET_SIZE, _PET_RANK, _PET_HOST, _PET_PORT)),
            error,
            f"Set {_PET_SIZE} to the number of pods, {_PET_RANK} to this pod's number, counted "
            f"from 0, {_PET_HOST} to the host of pod 0, and {_PET_PORT} to a port, the same in all "
            "pods.",
        ) from None
    first = ports.first(environment, job)
    return Place(
        rank, size, "torchrun's PET variables", rendezvous=Rendezvous(job, hosts, first, first)
    )


def _rank_0(
    variables: Mapping[str, str], host_name: str, port_name: str, run: str = ""
) -> tuple[str, tuple[str, ...]]:
    host = variables.get(host_name, "").strip()
    if not host:
        raise ValueError(f"{host_name} is not set")
    port = whole(variables, port_name, 65536)
    return f"{host}:{port} {run}".strip(), (host.strip("[]"),)
