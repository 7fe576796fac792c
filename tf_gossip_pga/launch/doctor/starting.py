"""Choose the hosts to examine, and the command that starts an examiner on each.

An examiner is a process that measures on its host for the doctor (see `examiner`).
"""

from __future__ import annotations

import dataclasses
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence

from tf_gossip_pga.cluster import node_list
from tf_gossip_pga.launch import ssh
from tf_gossip_pga.launch.hosts import Host

NODES = "SLURM_JOB_NODELIST"

_MODULE = "tf_gossip_pga.launch.doctor.examiner"

_SRUN = ("srun", "--overlap", "-N1", "-n1", "-w")


@dataclasses.dataclass(frozen=True)
class Target:
    """A host to examine.

    Attributes:
      name: the name under which the other hosts call it.
      slots: number of workers to run there.
      prefix: the words that run a command on this host if they precede it, e.g. `"ssh user@a"`.
      command: the command that starts an examiner on this host.
    """

    name: str
    slots: int
    prefix: str
    command: tuple[str, ...]


def targets(hosts: Sequence[Host] | None, environment: Mapping[str, str]) -> list[Target]:
    """Return the hosts to examine: those given, else the nodes of a Slurm job, else this machine.

    Args:
      hosts: the hosts that the user has listed, to reach over ssh, or None.
      environment: the environment variables.

    Raises:
      ValueError: Slurm's list of nodes (`SLURM_JOB_NODELIST`) has an unknown form.
    """
    if hosts is not None:
        return [_over_ssh(host, environment) for host in hosts]
    python = (sys.executable, "-m", _MODULE)
    if nodes := environment.get(NODES, ""):
        return [
            Target(node, 1, shlex.join((*_SRUN, node)), (*_SRUN, node, *python))
            for node in node_list.expanded(nodes)
        ]
    return [Target(socket.gethostname(), 1, "", python)]


def _over_ssh(host: Host, environment: Mapping[str, str]) -> Target:
    command = ssh.command(host.name, _MODULE, environment)
    return Target(host.name.rpartition("@")[2], host.slots, f"ssh {host.name}", tuple(command))
