"""WHERE this process stands: `TF_CONFIG` -> rank, size, addresses.

`TF_CONFIG` is TensorFlow's convention: a JSON text in the environment of each process.

    {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}

Importing this module imports no TensorFlow, so that a launcher can use it too.
"""

import dataclasses
import json
import re

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)

# A name, an IPv4 address, or an IPv6 address in brackets; no scheme, no leading zero.
_ADDRESS = re.compile(r"(\[[^\s\[\]/]+\]|[^\s\[\]/:]+):(?P<port>[1-9][0-9]{0,4})")

# The environment variable that, set to 1, makes a worker join a running job again.
JOIN = "TF_GOSSIP_PGA_JOIN"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One process's place among the workers.

    Attributes:
      rank: this worker's number, 0 … size-1.
      size: number of workers.
      addresses: `"host:port"` of every worker in rank order; empty for a single worker without a
        `TF_CONFIG`.
      strategy: the `tf.distribute.Strategy` to build and compile the model in. Where this worker
        has several devices it splits each batch over them; with one it is TensorFlow's default,
        and the scope changes nothing. `initialize` sets it; None in a `Cluster` made otherwise.
      lost: ranks that the others have gone on without (`GossipPGA(on_worker_lost="continue")`).
    """

    rank: int = 0
    size: int = 1
    addresses: tuple[str, ...] = ()
    strategy: object = dataclasses.field(default=None, compare=False, repr=False)
    lost: set[int] = dataclasses.field(default_factory=set, compare=False, repr=False)
    exchange_values: object = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that are left, in order: all but the lost ones."""
        return tuple(rank for rank in range(self.size) if rank not in self.lost)

    @property
    def is_chief(self) -> bool:
        """Whether this is the lowest rank left, which prints, saves and reports for all: rank 0."""
        return self.rank == self.members[0]

    def gather(self, value, timeout_s: float = 300.0) -> list:
        """Return what every member passed, in rank order; `value` is anything JSON can hold."""
        if self.exchange_values is None:
            return [value]
        return self.exchange_values(value, "cluster.gather", timeout_s)

    def barrier(self, timeout_s: float = 300.0) -> None:
        """Wait until every member has called this."""
        self.gather(None, timeout_s)

    def shard(self, dataset):
        """This worker's part of a `tf.data.Dataset`: the same number of elements on every rank.

        Of n workers that are left, the i-th gets element e if `e % n == i`; up to `n - 1` last
        elements are dropped to keep the parts equal. Call it before `shuffle` (or shuffle with the
        same seed on every rank) and before `batch`.

        Args:
          dataset: a `tf.data.Dataset` that yields the same elements in the same order on every
            rank. One of unknown length works too, but every rank then reads all of it.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          TypeError: not a `tf.data.Dataset`.
          ValueError: fewer elements than workers.

        Example:

            dataset = cluster.shard(dataset).shuffle(10_000).batch(32)
        """
        if not hasattr(dataset, "cardinality"):
            raise TypeError(
                "cluster.shard needs a tf.data.Dataset, received "
                f"{type(dataset).__name__}. Wrap arrays with "
                "tf.data.Dataset.from_tensor_slices((x, y))."
            )
        size, place = len(self.members), self.members.index(self.rank)
        if size == 1:
            return dataset
        elements = int(dataset.cardinality())
        if elements == -1:  # tf.data.INFINITE_CARDINALITY
            return dataset.shard(size, place)
        if elements == -2:  # tf.data.UNKNOWN_CARDINALITY: whole groups of `size`, one of each
            return dataset.enumerate().window(size, drop_remainder=True).flat_map(self._mine)
        if elements < size:
            raise ValueError(
                f"The dataset has {elements} elements, fewer than the {size} workers, so that "
                "some would have nothing to train on. Use fewer workers or shard before batching."
            )
        return dataset.take(elements // size * size).shard(size, place)

    def _mine(self, _, group):
        """Of a window of `size` elements (a dataset, or a nest of them), this rank's one."""
        import tensorflow as tf

        return tf.data.Dataset.zip(group).skip(self.members.index(self.rank)).take(1)


def from_tf_config(text: str | None) -> Cluster:
    """Reads a `TF_CONFIG`.

    The roles `worker` and `chief` train; a chief is rank 0, before the workers.

    Args:
      text: the content of `TF_CONFIG`; None or blank means a single worker.

    Raises:
      ValueError: anything this project cannot run exactly as written; the message quotes what was
        received and shows an example.

    Example:

        >>> from_tf_config('{"cluster": {"worker": ["a:1", "b:1"]},'
        ...                ' "task": {"type": "worker", "index": 1}}').rank
        1
    """
    if text is None or not text.strip():
        return Cluster()
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of too many digits
        raise _error(f"is not JSON ({error})", text) from None
    cluster = _field(config, "cluster", dict, text)
    task = _field(config, "task", dict, text)
    addresses = _addresses(cluster, text)
    kind = _field(task, "type", str, text, of="task")
    index = _field(task, "index", int, text, of="task")
    if kind not in cluster:
        raise _error(
            f'names the task type {kind!r}, but its "cluster" has {_listed(cluster)}', text
        )
    if not 0 <= index < len(cluster[kind]):
        raise _error(
            f"has the task index {index}, but {kind!r} has {len(cluster[kind])} addresses, "
            f"so the index must lie in 0 … {len(cluster[kind]) - 1}",
            text,
        )
    rank = index + (1 if kind == "worker" and "chief" in cluster else 0)
    return Cluster(rank, len(addresses), addresses)


def to_tf_config(addresses, rank: int) -> str:
    """The `TF_CONFIG` of worker `rank` among workers at `addresses`."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    )


def _addresses(cluster: dict, text: str) -> tuple[str, ...]:
    """All addresses in rank order: the chief, then the workers."""
    unknown = sorted(set(cluster) - {"chief", "worker"})
    if unknown:
        raise _error(
            f'has the role {unknown[0]!r}. Accepted are "worker" and "chief": every process of a '
            "gossip cluster trains. Run parameter servers (ps) and evaluators as jobs of their own",
            text,
        )
    if not cluster:
        raise _error('has an empty "cluster"', text)
    for role, hosts in cluster.items():
        if not isinstance(hosts, list) or not hosts:
            raise _error(f'needs a list of "host:port" for {role!r}, received {hosts!r}', text)
    if len(cluster.get("chief", [])) > 1:
        raise _error(f"has {len(cluster['chief'])} chiefs; there can be one", text)
    addresses = [*cluster.get("chief", []), *cluster.get("worker", [])]
    for address in addresses:
        if not _is_address(address):
            raise _error(f'has the address {address!r}, which is not "host:port"', text)
    for address in addresses:
        if addresses.count(address) > 1:
            raise _error(f"has the address {address!r} twice", text)
    return tuple(addresses)


def _is_address(address) -> bool:
    match = isinstance(address, str) and _ADDRESS.fullmatch(address)
    return bool(match) and int(match["port"]) < 65536


def _field(parent, name: str, kind: type, text: str, of: str | None = None):
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
        f"TF_CONFIG {problem}.\n  received: {shown}\n  an example: {_EXAMPLE}\n"
        "  Unset TF_CONFIG to train without a cluster."
    )
