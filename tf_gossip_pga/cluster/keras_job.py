"""Find this process's place among the workers in Keras' own environment variables.

For rank 0 of two processes: `KERAS_DISTRIBUTION_JOB_ADDRESSES="host0:2222,host1:2222"`,
`KERAS_DISTRIBUTION_NUM_PROCESSES=2` and `KERAS_DISTRIBUTION_PROCESS_ID=0`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tf_gossip_pga.cluster.place import Place, number, seen, unknown, whole
from tf_gossip_pga.cluster.tf_config import check_addresses

_ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
_SIZE = "KERAS_DISTRIBUTION_NUM_PROCESSES"
_RANK = "KERAS_DISTRIBUTION_PROCESS_ID"


def find(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place according to Keras' variables, or None if it is the only one.

    Raises:
      ValueError: the variables are incomplete, or contradict each other.
    """
    addresses = tuple(
        address.strip() for address in environment.get(_ADDRESSES, "").split(",") if address.strip()
    )
    size = number(environment.get(_SIZE)) or len(addresses)
    if size < 2:
        return None
    try:
        _check(addresses, size)
        rank = whole(environment, _RANK, size)
    except ValueError as error:
        raise unknown(
            seen(environment, (_ADDRESSES, _SIZE, _RANK)),
            error,
            f'Set {_ADDRESSES} to the addresses of all processes, such as "host0:2222,host1:2222", '
            f"{_SIZE} to the number of processes, and {_RANK} to the index of each, from 0.",
        ) from None
    return Place(rank, size, "Keras' KERAS_DISTRIBUTION variables", addresses)


def _check(addresses: tuple[str, ...], size: int) -> None:
    if len(addresses) != size:
        raise ValueError(f"{_ADDRESSES} has {len(addresses)} addresses for {size} processes")
    try:
        check_addresses(addresses)
    except ValueError as error:
        raise ValueError(f"{_ADDRESSES} {error}") from None
