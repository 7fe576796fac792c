"""Read and write `TF_CONFIG`: rank, size and addresses of the workers.

`TF_CONFIG` is TensorFlow's convention, a JSON text in the environment of each process::

    {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tf_gossip_pga.cluster.cluster import Cluster

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)

# Host name, IPv4 address, or IPv6 address in brackets; no scheme, no leading zero in the port.
_ADDRESS = re.compile(r"(\[[^\s\[\]/]+\]|[^\s\[\]/:]+):(?P<port>[1-9][0-9]{0,4})")

# Environment variable; "1" lets this worker join a running job.
JOIN = "TF_GOSSIP_PGA_JOIN"

# Environment variables: the secret that a job's workers share, or the name of a file with it.
SECRET = "TF_GOSSIP_PGA_SECRET"
SECRET_FILE = "TF_GOSSIP_PGA_SECRET_FILE"


def from_tf_config(text: str | None) -> Cluster:
    """Return this process's place in the cluster according to `TF_CONFIG`.

    Tasks of type `worker` and `chief` train. If there is a chief, it is rank 0, before the workers.
    `master` is an older name of the chief.

    Args:
      text: the content of `TF_CONFIG`; None or blank means a single worker.

    Returns:
      A `Cluster` whose `strategy` is None; `initialize` sets it.

    Raises:
      ValueError: this package cannot run the cluster exactly as written. The message quotes the
        text received and shows an example.

    Example:
      >>> from_tf_config('{"cluster": {"worker": ["a:1", "b:1"]},'
      ...                ' "task": {"type": "worker", "index": 1}}').rank
      1
    """
    if text is None or not text.strip():
        return Cluster()
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, or too many digits or levels
        raise _error(f"is not JSON ({error})", text) from None
    cluster = _field(config, "cluster", dict, text)
    task = _field(config, "task", dict, text)
    addresses = _addresses(cluster, text)
    return Cluster(_rank(task, cluster, text), len(addresses), addresses)


def to_tf_config(addresses: Iterable[str], rank: int) -> str:
    """Return the `TF_CONFIG` of a worker.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
      rank: rank of the worker that gets this `TF_CONFIG`.
    """
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    )


def _rank(task: dict, cluster: dict, text: str) -> int:
    kind = _field(task, "type", str, text, of="task")
    index = _index(task, text)
    if kind == "evaluator" and kind not in cluster:  # of Kubeflow's TFJob
        raise _error(
            "names the task type 'evaluator', which does not train. Remove the evaluator from this "
            "job, and pass validation_data to fit. Or let it read checkpoints as a separate job, "
            "without TF_CONFIG",
            text,
        )
    if kind not in cluster:
        raise _error(
            f'names the task type {kind!r}, but its "cluster" has {_listed(cluster)}', text
        )
    if not 0 <= index < len(cluster[kind]):
        raise _error(
            f"has the task index {index}, but {kind!r} has {len(cluster[kind])} addresses, "
            f"so the index must be from 0 to {len(cluster[kind]) - 1}",
            text,
        )
    return index + (1 if kind == "worker" and {"chief", "master"} & set(cluster) else 0)


def _index(task: dict, text: str) -> int:
    """Return the index of a task, which some platforms write as a string."""
    index = task.get("index")
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    return _field(task, "index", int, text, of="task")


def _addresses(cluster: dict, text: str) -> tuple[str, ...]:
    """Return all addresses in rank order: the chief's, then the workers'."""
    _check_roles(cluster, text)
    chiefs = cluster.get("chief", []) + cluster.get("master", [])
    if len(chiefs) > 1:
        raise _error(f"has {len(chiefs)} chiefs; there can be only one", text)
    addresses = [*chiefs, *cluster.get("worker", [])]
    try:
        check_addresses(addresses)
    except ValueError as error:
        raise _error(str(error), text) from None
    return tuple(addresses)


def _check_roles(cluster: dict, text: str) -> None:
    unknown = sorted(set(cluster) - {"chief", "master", "worker"})
    if unknown:
        raise _error(
            f'has the role {unknown[0]!r}. Accepted are "worker" and "chief", because every '
            "process of a gossip cluster trains. Run parameter servers (ps) and evaluators as "
            "separate jobs",
            text,
        )
    if not cluster:
        raise _error('has an empty "cluster"', text)
    for role, hosts in cluster.items():
        if not isinstance(hosts, list) or not hosts:
            raise _error(f'needs a list of "host:port" for {role!r}, received {hosts!r}', text)


def check_addresses(addresses: Sequence[object]) -> None:
    """Raise `ValueError` if an address is not a text of the form `"host:port"`, or occurs twice.

    The message lacks a subject, e.g. `"has the address 'a:1' twice"`. The caller puts the name of
    the list of addresses before it.
    """
    for address in addresses:
        if not is_address(address):
            raise ValueError(f'has the address {address!r}, which is not "host:port"')
    for address in addresses:
        if addresses.count(address) > 1:
            raise ValueError(f"has the address {address!r} twice")


def is_address(address: object) -> bool:
    """Return whether `address` is a text of the form `"host:port"`."""
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    return match is not None and int(match["port"]) < 65536


def _field(parent: object, name: str, kind: type, text: str, of: str | None = None) -> Any:
    """Return a field of a JSON object, which must be of the given type."""
    where = f'"{of}"' if of else "TF_CONFIG"
    if not isinstance(parent, dict):
        raise _error(f"must be a JSON object, received {type(parent).__name__}", text)
    if name not in parent:
        raise _error(f'has no "{name}"' + (f" in {where}" if of else ""), text)
    value = parent[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _error(f'needs "{name}" to be {_KINDS[kind]}, received {value!r}', text)
    return value


_KINDS = {dict: "an object", str: "a string", int: "a whole number"}


def _listed(cluster: dict) -> str:
    return " and ".join(repr(role) for role in cluster)


def _error(problem: str, text: str) -> ValueError:
    shown = text if len(text) <= 500 else text[:500] + " …"
    return ValueError(
        f"TF_CONFIG {problem}.\n  received: {shown}\n  example: {_EXAMPLE}\n"
        "  Unset TF_CONFIG to train without a cluster."
    )
