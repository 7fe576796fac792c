"""Choose the ports of workers whose starter reports hosts but no ports.

The workers on one host use consecutive pairs of ports: an even offset for TensorFlow's server, and
the next port for the control channel. The first pair is derived from the job's id, so that two jobs
on one host use different ports. All ports are above Linux's default ephemeral range, from which the
system takes ports for outgoing connections.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from tf_gossip_pga.cluster.place import number

# Environment variables: the first port of the workers on a host; the port of the control channel.
PORT = "TF_GOSSIP_PGA_PORT"
CHANNEL_PORT = "TF_GOSSIP_PGA_CHANNEL_PORT"

_FIRST, _END = 61440, 65536
_JOBS = 16  # workers on one host, at least, for which jobs with consecutive ids have separate ports
_TASKS = 256  # workers on one host, at least, whose ports stay below the end


def first(environment: Mapping[str, str], job: str | int, tasks: int = 1) -> int:
    """Return the port of the first worker on each host.

    Args:
      environment: the environment variables. `TF_GOSSIP_PGA_PORT` overrides the derived port.
      job: the job's id. With at most 16 workers on a host, 100 consecutive numbers get separate
        ports.
      tasks: the largest number of workers on one host, if all workers know it.

    Raises:
      ValueError: the variable does not hold a port.
    """
    if PORT in environment:
        return _port(PORT, environment[PORT])
    pairs = max(1, (_END - _FIRST) // 2 - max(tasks, _TASKS))
    index = job * max(tasks, _JOBS) if isinstance(job, int) else zlib.crc32(job.encode())
    return _FIRST + 2 * (index % pairs)


def of_task(first_port: int, task: int) -> int:
    """Return the port of a worker, which is number `task` on its host, counted from 0.

    Raises:
      ValueError: there are too few ports.
    """
    port = first_port + 2 * task
    if port + 1 >= _END:
        raise ValueError(
            f"{task + 1} workers on one host need {2 * task + 2} ports, but there are only "
            f"{_END - first_port} from {first_port}. Set {PORT} to a lower port."
        )
    return port


def channel(environment: Mapping[str, str]) -> int | None:
    """Return the port that `TF_GOSSIP_PGA_CHANNEL_PORT` sets for the control channel, or None.

    Raises:
      ValueError: the variable does not hold a port.
    """
    if CHANNEL_PORT not in environment:
        return None
    return _port(CHANNEL_PORT, environment[CHANNEL_PORT])


def _port(name: str, text: str) -> int:
    if not 0 < number(text) < _END:
        raise ValueError(f"{name} must be a port from 1 to {_END - 1}, received {text!r}.")
    return number(text)
