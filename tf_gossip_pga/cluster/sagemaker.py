"""Find this process's place in SageMaker's variables: a JSON list of hosts, and its own host."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tf_gossip_pga.cluster import ports
from tf_gossip_pga.cluster.place import Place, seen, unknown
from tf_gossip_pga.cluster.tf_config import is_address

_HOSTS = "SM_HOSTS"
_CURRENT = "SM_CURRENT_HOST"


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place on SageMaker, which starts one process per host.

    Return None if SageMaker has not started this process, or uses only one host.

    Raises:
      ValueError: the current host is not in the list of hosts.
    """
    hosts = _listed(environment.get(_HOSTS, ""))
    if len(hosts) < 2:
        return None
    current = environment.get(_CURRENT, "")
    port = ports.first(environment, "SageMaker")  # same ports for all jobs: each host runs one
    addresses = tuple(f"{host}:{port}" for host in hosts)
    if hosts.count(current) != 1 or not all(map(is_address, addresses)):
        raise unknown(
            seen(environment, (_HOSTS, _CURRENT)),
            f"{_CURRENT} must be one of the host names in {_HOSTS}",
        )
    return Place(hosts.index(current), len(hosts), "SageMaker's SM_HOSTS", addresses)


def _listed(text: str) -> list[str]:
    """Return the hosts in a JSON list, or an empty list if the text is not a JSON list."""
    try:
        hosts = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [str(host) for host in hosts] if isinstance(hosts, list) else []
