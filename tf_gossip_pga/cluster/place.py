"""Describe one process's place among the workers, as the environment variables report it.

A *starter* is a program that starts workers, such as `srun` or `mpirun`. For each starter, a
detector (see `detect`) reads the variables that the starter sets. The functions here read single
variables for all detectors, and build the error for variables from which no place can be derived.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tf_gossip_pga.cluster.tf_config import to_tf_config

# Environment variable: "none" makes this process a single worker; other values are the path of a
# file with the cluster's addresses (see `cluster_file`).
CLUSTER = "TF_GOSSIP_PGA_CLUSTER"

_SHOWN = 100  # characters shown of a variable's value


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """Where the workers of a job exchange their addresses if only rank 0's host is known.

    Attributes:
      job: text that identifies the job, so that workers of two jobs do not mix.
      hosts: names of rank 0's host, in the order to try.
      port: port of rank 0, on which it listens for the others' calls.
      own_port: port of this process, on which TensorFlow's server will listen.
    """

    job: str
    hosts: tuple[str, ...]
    port: int
    own_port: int


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place among the workers.

    Attributes:
      rank: this worker's number, 0 … size-1.
      size: number of workers.
      found_by: what reported the place, in words for messages. Empty if nothing did, so that this
        process is a single worker.
      addresses: `"host:port"` of every worker in rank order. Empty if they are not known.
      rendezvous: where to learn the addresses. None if they are known, or for a single worker.
      job: text that identifies the job, so that workers of two jobs do not mix. Empty if the
        variables identify no job.
    """

    rank: int = 0
    size: int = 1
    found_by: str = ""
    addresses: tuple[str, ...] = ()
    rendezvous: Rendezvous | None = None
    job: str = ""


def number(text: str | None, default: int = 0) -> int:
    """Return the number in a variable's value, or `default` if the value is unset or no number."""
    is_number = text and len(text) < 11 and text.isascii() and text.isdecimal()
    return int(text) if text and is_number else default


def whole(variables: Mapping[str, str], name: str, limit: int) -> int:
    """Return the number that a variable holds, which must be from 0 to `limit - 1`.

    Raises:
      ValueError: the variable is not set, or holds something else.
    """
    text = variables.get(name)
    found = number(text, default=-1)
    if not 0 <= found < limit:
        received = "but it is not set" if text is None else f"received {text[:_SHOWN]!r}"
        raise ValueError(f"{name} must be a number from 0 to {limit - 1}, {received}")
    return found


def seen(variables: Mapping[str, str], names: Iterable[str]) -> str:
    """Return those of the named variables that are set, for messages: `"RANK=1, SIZE=2"`."""
    return ", ".join(f"{name}={variables[name][:_SHOWN]}" for name in names if name in variables)


def unknown(found: str, problem: object, remedy: str = "") -> ValueError:
    """Return the error for a process that is one of several but cannot know its cluster.

    Args:
      found: what shows that the process is one of several, e.g. `"RANK=1, SIZE=2"`.
      problem: what is wrong or missing, as a clause.
      remedy: what to do, as a sentence. In addition, the error always suggests to set `TF_CONFIG`.
    """
    return ValueError(
        f"This process is one of several ({found}), but the addresses of the others cannot be "
        f"found: {problem}. {remedy and remedy + ' '}Setting TF_CONFIG for each process always "
        "works:\n"
        f"    TF_CONFIG='{to_tf_config(['HOST0:2222', 'HOST1:2222'], 0)}'\n"
        "List the addresses of all processes in it, and give each process a different index. On "
        "one machine, `python -m tf_gossip_pga.launch` can start the workers instead. To train "
        f"each process alone on purpose, set {CLUSTER}=none."
    )
