"""Find this process's place among the workers in the variables of Open MPI's `mpirun`.

The variables do not report the addresses of all workers, but at most rank 0's host.
`coordination.rendezvous` later collects the addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tf_gossip_pga.cluster import ports, torchrun
from tf_gossip_pga.cluster.place import Place, Rendezvous, number, seen, unknown, whole

_RANK = "OMPI_COMM_WORLD_RANK"
SIZE = "OMPI_COMM_WORLD_SIZE"
_LOCAL_RANK = "OMPI_COMM_WORLD_LOCAL_RANK"
_LOCAL_SIZE = "OMPI_COMM_WORLD_LOCAL_SIZE"

# Environment variable: the addresses of mpirun, e.g. "1450377216.0;tcp://10.0.0.1,192.168.1.1:53283".
_MPIRUN = "OMPI_MCA_orte_hnp_uri"
_HOSTS = re.compile(r"tcp6?://([^;\s]+):[0-9]+")

_NAMESPACE = "PMIX_NAMESPACE"  # identifies the job in Open MPI 5


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place among those of an `mpirun`, or None if it is not one of several.

    If `MASTER_ADDR` is set, it names rank 0's host. Otherwise, if all processes are on one host,
    this is rank 0's host. Otherwise, rank 0 is expected on the host on which `mpirun` itself runs.

    Raises:
      ValueError: the variables do not report rank 0's host, or contradict each other.
    """
    size = number(environment.get(SIZE))
    if size < 2:
        return None
    try:
        rank = whole(environment, _RANK, size)
        local_rank = whole(environment, _LOCAL_RANK, size)
        job, hosts = _rank_0(environment, size)
    except ValueError as error:
        raise unknown(
            seen(environment, (SIZE, _RANK, _LOCAL_RANK, _LOCAL_SIZE, _MPIRUN)),
            error,
            "Start the processes with Open MPI's mpirun on rank 0's host, or pass rank 0's host "
            "and any number with `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500`.",
        ) from None
    first = ports.first(environment, job)
    at = Rendezvous(job, hosts, first, ports.of_task(first, local_rank))
    return Place(rank, size, "Open MPI's variables", rendezvous=at)


def _rank_0(environment: Mapping[str, str], size: int) -> tuple[str, tuple[str, ...]]:
    """Return the job's id, and the names of rank 0's host."""
    mpirun = environment.get(_MPIRUN, "")
    if "MASTER_ADDR" in environment:
        return torchrun.rank_0(environment)
    if number(environment.get(_LOCAL_SIZE)) == size:
        job = mpirun or environment.get(_NAMESPACE, "")
        if not job:
            raise ValueError(f"neither {_MPIRUN} nor {_NAMESPACE} identifies the job")
        return job, ("localhost",)
    hosts = [host for match in _HOSTS.findall(mpirun) for host in match.split(",")]
    if not hosts:
        raise ValueError(f"{_MPIRUN} does not report rank 0's host")
    return mpirun, tuple(host.strip("[]") for host in hosts)
