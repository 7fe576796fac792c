"""The topologies that tests go through."""

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib


def _own_matrix(n: int) -> topology_lib.Topology:
    """Directed and uneven: rank i keeps 0.5, hears 0.3 from i+1 and 0.2 from i+2."""
    identity = np.eye(n)
    shift = np.roll(identity, 1, axis=1)
    return topology_lib.from_matrix(0.5 * identity + 0.3 * shift + 0.2 * shift @ shift)


def topology_of(name: str, n: int) -> topology_lib.Topology:
    """Return a topology by its name, or a directed and uneven one as `"from_matrix"`."""
    return _own_matrix(n) if name == "from_matrix" else topology_lib.BY_NAME[name](n)
