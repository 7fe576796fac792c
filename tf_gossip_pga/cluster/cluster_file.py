"""Read and write a file with the addresses of a cluster's workers.

`pga.Checkpoint` writes such a file into its directory. When a lost worker is started again to join
the running job, the variables of its new process may not describe the job: a worker that is started
alone in a new Slurm step, for example, is task 0 of 1 in that step. Such a worker finds its place
in this file. The file is JSON::

    {"addresses": ["host0:2222", "host1:2222"]}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping

from tf_gossip_pga.cluster.place import CLUSTER, Place, whole
from tf_gossip_pga.cluster.tf_config import check_addresses

# Environment variable: the rank of this process in the cluster that the file describes.
RANK = "TF_GOSSIP_PGA_RANK"

NAME = "cluster.json"  # name of the file in the directory of a `pga.Checkpoint`


def text_of(addresses: Iterable[str]) -> str:
    """Return the text of a file with these addresses.

    Args:
      addresses: `"host:port"` of all workers, in rank order.
    """
    return json.dumps({"addresses": list(addresses)}, indent=1) + "\n"


def find(environment: Mapping[str, str]) -> Place:
    """Return the place of this process in the cluster that a file describes.

    Args:
      environment: the environment variables. `TF_GOSSIP_PGA_CLUSTER` is the path of the file, and
        `TF_GOSSIP_PGA_RANK` the rank of this process.

    Raises:
      ValueError: the file cannot be read, or has no valid addresses; or `TF_GOSSIP_PGA_RANK` is
        unset, or is not a rank of the cluster.
    """
    path = environment[CLUSTER]
    try:
        addresses = _addresses(pathlib.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f'{CLUSTER} must be unset, or "none" to train as a single worker, or the path of a '
            f"file with the addresses of all workers, such as the {NAME} that pga.Checkpoint "
            f"writes into its directory. Received {path!r}: {problem}."
        ) from None
    try:
        rank = whole(environment, RANK, len(addresses))
    except ValueError as error:
        raise ValueError(
            f"{CLUSTER}={path} lists {len(addresses)} workers. {error}. Set {RANK} to the rank of "
            "this worker."
        ) from None
    return Place(rank, len(addresses), f"the file {path}", addresses)


def _addresses(content: bytes) -> tuple[str, ...]:
    """Return the addresses in a file's content.

    Raises:
      ValueError: the addresses are missing or not valid.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from None
    addresses = found.get("addresses") if isinstance(found, dict) else None
    if not isinstance(addresses, list) or not addresses:
        raise ValueError('it must have the form {"addresses": ["host0:2222", "host1:2222"]}')
    try:
        check_addresses(addresses)
    except ValueError as error:
        raise ValueError(f"it {error}") from None
    return tuple(addresses)
