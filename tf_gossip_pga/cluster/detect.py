"""Find the cluster that this process belongs to.

To add a starter (Slurm, Kubernetes, …): write a function of the environment that returns a
`Cluster`, or None where the starter has left no trace, and list it in `STARTERS`. Nothing else
reads the starter's variables, except that `train.py` and the benchmarks start workers of their own
where `TF_CONFIG` is unset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.tf_config import from_tf_config


def tf_config(environment: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that `TF_CONFIG` describes, or None where it is unset or blank."""
    text = environment.get("TF_CONFIG", "")
    return from_tf_config(text) if text.strip() else None


# Asked in this order; the first that has left a trace counts.
STARTERS = (tf_config,)


def find(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return this process's place; a single worker where no starter has left a trace.

    Args:
      environment: the variables to look at; default: those of this process.

    Raises:
      ValueError: what a starter has left cannot be used; the message quotes it.

    Example:

        >>> find({}).size
        1
    """
    environment = os.environ if environment is None else environment
    found = (starter(environment) for starter in STARTERS)
    return next((cluster for cluster in found if cluster is not None), Cluster())
