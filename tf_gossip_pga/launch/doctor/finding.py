"""Describe something that was found about hosts, and the command that mends it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable

from tf_gossip_pga.launch.doctor.measurements import Host


@dataclasses.dataclass(frozen=True)
class Finding:
    """Describe one thing that was found about hosts.

    Attributes:
      kind: one word by which programs tell findings apart: `"host"`, `"machine"`, `"name"`,
        `"port"`, `"link"`, `"rate"`, `"version"`, `"clock"`, `"folder"` or `"gpus"`.
      hosts: the hosts concerned. If a connection is wrong, first the hosts that connect, and last
        the host to which they connect.
      seen: what was seen, as a sentence.
      remedy: the command that mends it, or what to do. One or more lines.
      stops_training: whether a job on these hosts cannot start or continue because of it. False:
        it is only worth knowing.
    """

    kind: str
    hosts: list[str]
    seen: str
    remedy: str
    stops_training: bool = True


def command_on(host: Host, command: str) -> str:
    """Return a command as one types it on the doctor's machine to run it on a host.

    Args:
      host: the host.
      command: a command for a shell.
    """
    if host.prefix.startswith("ssh "):
        return f"{host.prefix} {shlex.quote(command)}"  # ssh passes it to a shell there
    return f"{host.prefix} {command}".strip()


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence.

    Example:
      >>> listed(["a", "b", "c"])
      'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
