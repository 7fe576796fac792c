"""Find the `GossipPGA` next to which a callback stands."""

from __future__ import annotations

import keras

from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.drivers import driver_of


def gossip_of(callback: keras.callbacks.Callback) -> GossipPGA:
    """Return the `GossipPGA` of the fit that has just begun. Call this in `on_train_begin`.

    Args:
      callback: a callback of the same fit.

    Raises:
      ValueError: no `GossipPGA` comes before the callback.
    """
    gossip = driver_of(callback.model)
    if not isinstance(gossip, GossipPGA) or not gossip.in_fit:
        name = type(callback).__name__
        raise ValueError(
            f"{name} must come after a GossipPGA in the callbacks of the same fit: "
            f"callbacks=[pga.GossipPGA(…), pga.{name}(…)]."
        )
    return gossip
