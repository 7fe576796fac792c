"""Make a small model with everything that a checkpoint keeps, for tests of checkpoints."""

import hashlib
import os
import signal

import numpy as np

STEPS, BATCH = 5, 4


def data(rank: int):
    random = np.random.default_rng(rank)
    x = random.normal(size=(STEPS * BATCH, 4)).astype(np.float32)
    return x, x.sum(1, keepdims=True) + rank


def a_model(rank: int, optimizer="adam"):
    """Return a model with state that differs between ranks: dropout, an integer, an optimizer."""
    import keras

    class Counting(keras.layers.Layer):
        """Count its calls."""

        def build(self, shape):
            self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")

        def call(self, x, training=False):
            if training:
                self.count.assign_add(1 + rank)
            return x

    keras.utils.set_random_seed(rank)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            Counting(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    momentum = keras.optimizers.SGD(0.01, momentum=0.9)
    if optimizer != "adam":
        scaled = optimizer == "scaled"
        optimizer = keras.optimizers.LossScaleOptimizer(momentum) if scaled else momentum
    model.compile(optimizer, "mse")
    return model


def a_gossip(H=4, outer=None, **arguments):  # noqa: N803
    import tf_gossip_pga as pga

    if H == "adaptive":
        # At step 12 the schedule remembers the loss of the first batch after a global average. The
        # checkpoint averages at step 10, so this is the batch after step 10, not after step 9.
        H = pga.AdaptivePeriod(initial=3, warmup_steps=12, maximum=8)  # noqa: N806
    # With the usual weights a gossip makes two ranks equal; with these it does not.
    uneven = pga.topology.from_matrix([[0.75, 0.25], [0.25, 0.75]])
    two = pga.initialize().size == 2
    outer = pga.Outer(*outer) if outer else None
    return pga.GossipPGA(H, uneven if two else "ring", outer_optimizer=outer, **arguments)


def digests(model) -> dict[str, str]:
    """Return a digest of each variable, so that a failing test shows which one differs."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{place} {v.path}": hashlib.sha256(v.value.numpy().tobytes()).hexdigest()[:16]
        for place, v in enumerate(variables)
    }


def digests_of_outer(gossip) -> list[str] | None:
    """Return a digest of each variable of the outer optimizer, or None if there is none."""
    outer = gossip.run.outer
    if outer is None:
        return None
    values = [variable.numpy().tobytes() for variable in outer.variables]
    return [hashlib.sha256(value).hexdigest()[:16] for value in values]


class LeftError(Exception):
    """Leave `fit` as a crash would."""


# ---- SIGTERM ------------------------------------------------------------------------------------


def terminate(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


def a_callback(**hooks):
    import keras

    return keras.callbacks.LambdaCallback(**hooks)
