"""Check the arguments of `plan.predict`."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.algorithm.graph import Topology

LONGEST = 10_000  # longest period, in steps: `cost.step_ms` simulates at least two whole periods


def comparison(
    nodes: object,
    H: int | Iterable[int],  # noqa: N803 (the paper's name)
    topology: str | Topology | Iterable[str | Topology],
) -> tuple[int, list[int], list[Topology]]:
    """Validate and return the number of ranks, the periods and the graphs to compare.

    Args:
      nodes: number of ranks, >= 2.
      H: one or more periods, each from 2 to `LONGEST` steps.
      topology: one or more topologies, each a name or a `Topology` for `nodes` ranks.

    Raises:
      ValueError: an argument is out of range or empty, two graphs have the same name, or a graph
        has no edges.
      TypeError: a topology is neither a name nor a `Topology`.
    """
    n = _validate.whole(nodes, 2)
    if n is None:
        raise ValueError(
            f"nodes must be a whole number, at least 2; received {nodes!r}. One worker exchanges "
            "nothing."
        )
    graphs = [_graph(each, n) for each in _list("topology", topology)]
    name, times = collections.Counter(graph.name for graph in graphs).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"topology contains {times} graphs named {name!r}, so several rows of the plan would "
            "have the same name. Give each graph once. To compare two graphs of your own that have "
            "the same name, make two plans."
        )
    return n, [_period(each) for each in _list("H", H)], graphs


def numbers(given: Mapping[str, object]) -> dict[str, float]:
    """Validate the times and the bandwidth, and return them as floats by name.

    Args:
      given: a dict from the name of an argument of `plan.predict` to its value. It must contain
        `mbit`, `straggler_ms` and `compute_ms`.

    Raises:
      ValueError: a number is negative or not finite, `mbit` is 0, or `straggler_ms` is positive
        while `compute_ms` is 0.
    """
    found = {name: _number(name, value) for name, value in given.items()}
    if not found["mbit"]:
        raise ValueError("mbit, the bandwidth of a link in Mbit/s, must be above 0, received 0.")
    if found["straggler_ms"] and not found["compute_ms"]:
        raise ValueError(
            f"straggler_ms={found['straggler_ms']:g} needs compute_ms > 0: it is the standard "
            "deviation of the computation."
        )
    return found


def _number(name: str, value: object) -> float:
    number = _validate.number(value)
    if number is None or number < 0:
        raise ValueError(f"{name} must be a finite number, at least 0; received {value!r}.")
    return number


def _period(value: object) -> int:
    period = _validate.whole(value, 2, LONGEST)
    if period is None:
        raise ValueError(
            f"H must be a whole number, at least 2 and at most {LONGEST}; received {value!r}. H=1 "
            "is Parallel SGD and None is Gossip SGD; every plan contains both."
        )
    return period


def _graph(topology: str | Topology, n: int) -> Topology:
    graph = topology_lib.resolve(topology, n)
    if all(each.is_empty for each in graph.cycle):
        raise ValueError(
            f"In the topology {graph.name!r} nobody gossips: that is Local SGD, which every plan "
            "contains. Give another topology, for example one_peer_exponential."
        )
    return graph


def _list(name: str, values: Any) -> list[Any]:
    is_many = isinstance(values, Iterable) and not isinstance(values, str)
    found = list(values) if is_many else [values]
    if not found:
        raise ValueError(f"{name} must contain at least one value to compare, received none.")
    return found
