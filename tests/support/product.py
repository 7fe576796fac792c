"""The insides of the package that tests use, in one place."""


def active():
    """Return the exchanges of this process with its cluster."""
    from tf_gossip_pga.exchange import collectives

    return collectives.active()


def free_addresses(count: int):
    """Return a context with so many addresses of this machine that nobody listens on."""
    from tf_gossip_pga import launch

    return launch._free_addresses(count)


def tf_config(addresses, rank: int) -> str:
    """Return the `TF_CONFIG` of one worker."""
    from tf_gossip_pga.cluster import tf_config as cluster_lib

    return cluster_lib.to_tf_config(addresses, rank)
