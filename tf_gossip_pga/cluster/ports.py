"""Choose the ports of workers whose starter reports hosts but no ports.

Each worker uses two consecutive ports, one for TensorFlow's server and the next for the control
channel. The next worker on the same host uses the next two ports. The ports of the first worker on
each host are derived from the job's id, so that two jobs on one host rarely use the same ports. All
derived ports are above Linux's default ephemeral range, from which the system takes ports for
outgoing connections.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from tf_gossip_pga.cluster.place import number

# Environment variables: the port of the first worker on each host; the port of the control channel.
PORT = "TF_GOSSIP_PGA_PORT"
CHANNEL_PORT = "TF_GOSSIP_PGA_CHANNEL_PORT"

FIRST, END = 61440, 65536  # derived ports are from FIRST to END - 1
# With up to this many workers on a host, jobs with consecutive numbers as ids have separate ports.
_JOBS = 16
# With up to this many workers on a host, the ports of all of them are below END.
_TASKS = 256


def first(environment: Mapping[str, str], job: str | int, tasks: int = 1) -> int:
    """Return the port of the first worker on each host.

    Args:
      environment: the environment variables. `TF_GOSSIP_PGA_PORT` overrides the derived port.
      job: the job's id. If ids are numbers and each host has at most 16 workers, 100 jobs with
        consecutive ids get separate ports.
      tasks: the largest number of workers on one host. The port depends on it, so pass it only if
        all workers know it. Default 1.

    Raises:
      ValueError: `TF_GOSSIP_PGA_PORT` does not hold a port.
    """
    if PORT in environment:
        return _port(PORT, environment[PORT])
    pairs = max(1, (END - FIRST) // 2 - max(tasks, _TASKS))
    index = job * max(tasks, _JOBS) if isinstance(job, int) else zlib.crc32(job.encode())
    return FIRST + 2 * (index % pairs)


def of_task(first_port: int, task: int) -> int:
    """Return the port of the worker that is number `task` on its host, counted from 0.

    Args:
      first_port: the port of the first worker on each host.
      task: the number of the worker on its host.

    Raises:
      ValueError: there are too few ports above `first_port`.
    """
    port = first_port + 2 * task
    if port + 1 >= END:
        raise ValueError(
            f"{task + 1} workers on one host need {2 * task + 2} ports, but there are only "
            f"{END - first_port} from {first_port}. Set {PORT} to a lower port."
        )
    return port


def channel(environment: Mapping[str, str]) -> int | None:
    """Return the port that `TF_GOSSIP_PGA_CHANNEL_PORT` sets for the control channel, or None.

    Raises:
      ValueError: `TF_GOSSIP_PGA_CHANNEL_PORT` does not hold a port.
    """
    if CHANNEL_PORT not in environment:
        return None
    return _port(CHANNEL_PORT, environment[CHANNEL_PORT])


def _port(name: str, text: str) -> int:
    if not 0 < number(text) < END:
        raise ValueError(f"{name} must be a port from 1 to {END - 1}, received {text!r}.")
    return number(text)
