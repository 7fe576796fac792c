"""Derive all addresses from the variables that Slurm sets for each task of a step (`srun`).

The number of tasks comes from the step's variables, not from the job's: in a batch script outside
`srun`, `SLURM_PROCID` and `SLURM_NTASKS` are set too, but there is only one process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tf_gossip_pga.cluster import node_list, ports
from tf_gossip_pga.cluster.place import Place, number, seen, unknown, whole

_SIZE = "SLURM_STEP_NUM_TASKS"
_RANK = "SLURM_PROCID"
_NODES = "SLURM_STEP_NODELIST"
_COUNTS = "SLURM_STEP_TASKS_PER_NODE"
_NODE = "SLURM_NODEID"
_LOCAL_RANK = "SLURM_LOCALID"
_DISTRIBUTION = "SLURM_DISTRIBUTION"
_NODE_NAME = "SLURMD_NODENAME"
_RESTARTS = "SLURM_RESTART_COUNT"
_PMI_SIZE = "PMI_SIZE"

_SEEN = (_SIZE, _RANK, _NODES, _COUNTS, _NODE, _LOCAL_RANK, _NODE_NAME, _DISTRIBUTION, _PMI_SIZE)

# A number of tasks, and how many consecutive nodes have it: "2(x3)".
_COUNT = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?")


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this task's place in its Slurm step, or None if it is not one of several tasks.

    Raises:
      ValueError: the variables are incomplete, or the tasks are not distributed by block
        (consecutive tasks on the same node), so that the other tasks' nodes cannot be derived.
    """
    size = number(environment.get(_SIZE))
    if size < 2:
        return None
    try:
        rank = whole(environment, _RANK, size)
        nodes = node_list.expanded(environment.get(_NODES, ""))
        counts = _counts(environment.get(_COUNTS, ""))
        _check(environment, size, rank, nodes, counts)
    except ValueError as error:
        raise unknown(
            seen(environment, _SEEN),
            error,
            "Start the script with `srun --distribution=block`, and leave Slurm's variables "
            "unchanged.",
        ) from None
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    # Two steps of a job may run at the same time, so each step needs other ports. The factor 41
    # keeps these ports apart from those of jobs with the next ids.
    first = ports.first(environment, number(job) + 41 * number(step), max(counts))
    addresses = tuple(
        f"{node}:{ports.of_task(first, task)}"
        for node, count in zip(nodes, counts, strict=True)
        for task in range(count)
    )
    # `run` tells two runs at the same addresses apart: other jobs may get the same ports, and a
    # requeued job may start while processes of its previous run are still alive.
    run = f"{job}.{step}, started {number(environment.get(_RESTARTS)) + 1} times"
    return Place(rank, size, "Slurm's step variables", addresses, job=run)


def _check(
    environment: Mapping[str, str], size: int, rank: int, nodes: list[str], counts: list[int]
) -> None:
    """Raise `ValueError` unless the variables agree on a distribution of the tasks by block."""
    if len(nodes) != len(counts):
        raise ValueError(f"{_NODES} has {len(nodes)} nodes, but {_COUNTS} has {len(counts)}")
    if sum(counts) != size:
        raise ValueError(f"{_COUNTS} has {sum(counts)} tasks in total, but {_SIZE} has {size}")
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"{_NODES} has a node twice, as in a step with several components")
    if _PMI_SIZE in environment and number(environment[_PMI_SIZE]) != size:  # mpirun of Intel MPI
        raise ValueError(
            f"{_PMI_SIZE} differs from {_SIZE}, so another program has started the processes"
        )
    # Check the name of the distribution first, so that all tasks fail, not only those whose place
    # differs from a distribution by block.
    distribution = environment.get(_DISTRIBUTION, "")
    if len(nodes) > 1 and max(counts) > 1 and distribution.startswith(("cyclic", "plane")):
        raise ValueError(f"tasks are distributed by {distribution}, not by block")
    node, local_rank = 0, rank
    while local_rank >= counts[node]:
        node, local_rank = node + 1, local_rank - counts[node]
    for name, derived in ((_NODE, node), (_LOCAL_RANK, local_rank)):
        if name in environment and whole(environment, name, size) != derived:
            raise ValueError(
                f"{name} would be {derived} if tasks were distributed by block, but it is "
                f"{environment[name]}"
            )
    if environment.get(_NODE_NAME, nodes[node]) != nodes[node]:
        raise ValueError(
            f"according to {_NODES}, this task would be on {nodes[node]}, but {_NODE_NAME} is "
            f"{environment[_NODE_NAME]}"
        )


def _counts(text: str) -> list[int]:
    """Return the number of tasks on each node: `[2, 2, 1]` for `"2(x2),1"`."""
    counts: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if not match:
            raise ValueError(f"{_COUNTS} must have the form 2(x2),1, received {text[:100]!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
