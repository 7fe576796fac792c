"""Make the topologies that tests use."""

import numpy as np

from tf_gossip_pga.algorithm import topology as topology_lib


def _own_matrix(n: int) -> topology_lib.Topology:
    """Return a directed, uneven topology: rank i weights itself 0.5, i+1 by 0.3 and i+2 by 0.2."""
    identity = np.eye(n)
    shift = np.roll(identity, 1, axis=1)
    return topology_lib.from_matrix(0.5 * identity + 0.3 * shift + 0.2 * shift @ shift)


def topology_of(name: str, n: int) -> topology_lib.Topology:
    """Return a topology by name; `"from_matrix"` names a directed, uneven one."""
    return _own_matrix(n) if name == "from_matrix" else topology_lib.BY_NAME[name](n)
