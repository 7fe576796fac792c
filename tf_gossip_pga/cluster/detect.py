"""Find the cluster that this process belongs to.

`TF_CONFIG` is the only starter understood so far. Another one is a function of the environment that
returns a `Cluster`, or None where its variables are absent; `find` asks each in turn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.cluster.tf_config import from_tf_config


def find(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return this process's place; a single worker where no starter has left a trace.

    Args:
      environment: the variables to look at; default: those of this process.

    Raises:
      ValueError: what the starter has left cannot be used; the message quotes it.

    Example:

        >>> find({}).size
        1
    """
    environment = os.environ if environment is None else environment
    return from_tf_config(environment.get("TF_CONFIG"))
