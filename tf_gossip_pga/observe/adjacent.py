"""Stand next to a `GossipPGA` in the callbacks of a `fit`, and listen to what it records."""

from __future__ import annotations

import keras

from tf_gossip_pga.training import driver
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.recorder import Span


class Adjacent(keras.callbacks.Callback):
    """A callback that observes the `GossipPGA` before it in the callbacks of the same `fit`."""

    def __init__(self):
        """Store that no `fit` has begun."""
        super().__init__()
        self._gossip: GossipPGA | None = None  # of the current fit

    def on_train_begin(self, logs=None):
        """Find the `GossipPGA` of the `fit` that has just begun.

        Raises:
          ValueError: no `GossipPGA` comes before this callback.
        """
        self._stop_listening()  # of a fit that an exception interrupted
        gossip = driver.of(self.model)
        if not isinstance(gossip, GossipPGA) or not gossip.in_fit:
            name = type(self).__name__
            raise ValueError(
                f"{name} must come after a GossipPGA in the callbacks of the same fit: "
                f"callbacks=[pga.GossipPGA(…), pga.{name}(…)]."
            )
        self._gossip = gossip

    @property
    def _driver(self) -> GossipPGA:
        if self._gossip is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} works only inside fit, and fit has not begun. Pass it to model.fit."
            )
        return self._gossip

    def _listen(self):
        """Let the `GossipPGA` pass spans to `_hear` from now on."""
        listeners = self._driver.run.recorder.listeners
        if self._hear not in listeners:
            listeners.append(self._hear)

    def _stop_listening(self):
        if self._gossip is not None and self._hear in self._gossip.run.recorder.listeners:
            self._gossip.run.recorder.listeners.remove(self._hear)

    def _hear(self, span: Span):
        """Receive a span. Subclasses that listen override this method."""
