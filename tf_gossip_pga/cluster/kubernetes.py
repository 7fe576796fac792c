"""Derive the workers of a Kubernetes Indexed Job from the names of its pods.

The pods of an Indexed Job are named `NAME-0`, `NAME-1`, …. If the `subdomain` in the pod template
is the name of a headless Service, each pod can be reached at `NAME-INDEX.SUBDOMAIN`. Kubernetes
does not report the number of pods, so the user sets it in `TF_GOSSIP_PGA_WORKERS`.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
from collections.abc import Mapping

from tf_gossip_pga.cluster import ports
from tf_gossip_pga.cluster.place import Place, number, seen, unknown, whole

# Environment variables: the number of workers, which the user sets; the index of this pod, which
# Kubernetes sets.
WORKERS = "TF_GOSSIP_PGA_WORKERS"
INDEX = "JOB_COMPLETION_INDEX"

_FOUND_BY = "the index of a Kubernetes Job"

_HOSTS_FILE = pathlib.Path("/etc/hosts")


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this pod's place in its Indexed Job (see `place_of`), or None if it is not known.

    It is known only if `JOB_COMPLETION_INDEX` and `TF_GOSSIP_PGA_WORKERS` are both set. If only the
    index is set, module `torchrun` may still find the place in other variables.
    """
    if INDEX not in environment or WORKERS not in environment:
        return None
    return place_of(environment, _full_host_name())


def place_of(environment: Mapping[str, str], host_name: str) -> Place:
    """Return the place of the pod with this full host name.

    Args:
      environment: the environment variables, with `JOB_COMPLETION_INDEX` and
        `TF_GOSSIP_PGA_WORKERS`.
      host_name: `"NAME-INDEX.SUBDOMAIN"`, possibly followed by further domains.

    Raises:
      ValueError: the number of workers is not a number >= 1, the index is not below it, or
        `host_name` does not have the form above.
    """
    size = number(environment.get(WORKERS))
    if size == 1:
        return Place(found_by=_FOUND_BY)
    pod, _, domain = host_name.partition(".")
    try:
        if not size:
            raise ValueError(f"{WORKERS} must be a whole number >= 1")
        index = whole(environment, INDEX, size)
        if not pod.endswith(f"-{index}") or not domain:
            raise ValueError(
                f"the host name {host_name!r} does not have the form NAME-{index}.SUBDOMAIN"
            )
    except ValueError as error:
        raise unknown(
            seen(environment, (INDEX, WORKERS)),
            error,
            f"Set {WORKERS} to the number of completions of the Indexed Job, and in its pod "
            "template set `subdomain` to the name of a headless Service.",
        ) from None
    job = pod.removesuffix(f"-{index}")
    port = ports.first(environment, job)
    addresses = tuple(f"{job}-{each}.{domain}:{port}" for each in range(size))
    return Place(index, size, _FOUND_BY, addresses)


def _full_host_name() -> str:
    """Return this pod's host name with its domain, which Kubernetes writes to `/etc/hosts`.

    If the file does not list the host name, return it without a domain. `socket.getfqdn` is not
    used, because it might have to wait for a name server.
    """
    own = socket.gethostname()
    with contextlib.suppress(OSError, UnicodeError):
        for line in _HOSTS_FILE.read_text().splitlines():
            names = line.partition("#")[0].split()[1:]
            if own in names:
                return max(names, key=lambda name: (name.startswith(f"{own}."), name == own))
    return own
