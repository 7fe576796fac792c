"""Start workers on other hosts over ssh.

On its host, each worker is started by an agent (module `agent`), which also stops the worker if the
launcher or the connection is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
from collections.abc import Sequence

from tf_gossip_pga.cluster import ports
from tf_gossip_pga.launch import environment, ssh
from tf_gossip_pga.launch import hosts as hosts_lib
from tf_gossip_pga.launch.environment import Shared
from tf_gossip_pga.launch.hosts import Host
from tf_gossip_pga.launch.workers import Team, Worker

_AGENT = "tf_gossip_pga.launch.agent"
_ANSWER_S = 1.0  # deadline for a worker to answer whether it waits for others to start

# Exit codes of an agent whose worker was ended by a signal.
_OF_SIGNALS = {128 + each for each in signal.valid_signals()}


@dataclasses.dataclass(frozen=True)
class Request:
    """Describe the worker that an agent starts on its host.

    Attributes:
      command: program and arguments.
      variables: the environment variables from `environment.of_worker`.
      task: number of the worker on its host, counted from 0.
      workers: number of workers on this host.
      gpus_per_worker: number of GPUs for each worker, if this host has GPUs.
      share_gpus: whether several workers may use one GPU.
    """

    command: list[str]
    variables: dict[str, str]
    task: int
    workers: int
    gpus_per_worker: int
    share_gpus: bool


class RemoteWorker(Worker):
    """A worker on another host, and the local process of ssh that connects to the worker's agent.

    Args:
      host: the host.
      rank: the worker's rank.
      request: describes the worker to the agent.
    """

    def __init__(self, host: Host, rank: int, request: Request):
        self._host = host
        input_end, self._input = os.pipe()
        command = ssh.command(host.name, _AGENT, os.environ)
        try:
            super().__init__(command, rank, os.environ, terminal=False, stdin=input_end)
        finally:
            os.close(input_end)
        self._send(json.dumps(dataclasses.asdict(request)))

    @property
    def returncode(self) -> int | None:
        """The worker's exit code, as for a local worker, or 255 if ssh itself has failed."""
        code = super().returncode
        return 128 - code if code in _OF_SIGNALS else code

    @property
    def ending(self) -> str:
        """How the worker ended, or that ssh has failed, in words."""
        if self.returncode != ssh.FAILED:
            return super().ending
        return (
            f"a failure of ssh to {self._host.name}, exit code {ssh.FAILED} (check that "
            f"`ssh -o BatchMode=yes {self._host.name} true` works)"
        )

    def signal(self, number: int) -> None:
        """Let the agent send a signal to the worker and its children."""
        self._send(signal.Signals(number).name)

    def close(self) -> None:
        """Close the connection and the output of a worker that has been stopped."""
        os.close(self._input)  # at the end of its input, an agent that still runs ends its worker
        self.process.kill()
        self.process.wait()
        super().close()

    def _send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # ssh has ended
            os.write(self._input, f"{line}\n".encode())


def team(
    command: Sequence[str],
    hosts: Sequence[Host],
    shared: Shared,
    gpus_per_worker: int,
    share_gpus: bool,
) -> Team:
    """Return the team of workers on other hosts.

    Args:
      command: program and arguments.
      hosts: the hosts. Each gets as many consecutive ranks as it has slots.
      shared: the settings that all workers share.
      gpus_per_worker: number of GPUs for each worker, on hosts with GPUs.
      share_gpus: whether several workers may use one GPU.

    Raises:
      ValueError: this machine has no ssh, `TF_GOSSIP_PGA_PORT` does not hold a port, or there are
        too few ports.
    """
    if shutil.which("ssh") is None:
        raise ValueError(
            "There is no ssh in PATH. Install the OpenSSH client (package openssh-client or "
            "openssh-clients), or start the workers on this machine with --workers=N."
        )
    places = [(host, task) for host in hosts for task in range(host.slots)]
    variables, most = {**os.environ, **shared.chosen}, max(host.slots for host in hosts)
    first = ports.first(variables, secrets.token_hex(16), most)
    addresses = [f"{host.address}:{ports.of_task(first, task)}" for host, task in places]

    def start(rank: int, joins: bool) -> Worker:
        host, task = places[rank]
        variables = environment.of_worker(addresses, rank, shared, joins=joins)
        gpus = (gpus_per_worker, share_gpus)
        return RemoteWorker(host, rank, Request(list(command), variables, task, host.slots, *gpus))

    notice = f"Starting workers over ssh: {hosts_lib.listed(hosts)}."
    return Team(addresses, start, _ANSWER_S, notice)
