"""Provide the network and the data of the oracle, for simulations."""

import keras
import numpy as np

from tests.support import reference
from tf_gossip_pga import simulate

STEPS, BATCH, RATE = 12, 4, 0.1


def oracles_data(n):
    """Return the inputs and targets of n nodes, each `[n, STEPS * BATCH, …]`."""
    each = [reference.batches(rank, STEPS, BATCH) for rank in range(n)]
    return tuple(
        np.stack([part.reshape(STEPS * BATCH, -1) for part in p]) for p in zip(*each, strict=True)
    )


def steps_of(problem, **arguments):
    """Simulate on the samples in their order; return all nodes after each step, `[STEPS, n, d]`."""
    simulation = simulate.Simulation(
        problem, step_size=RATE, batch_size=BATCH, shuffle=False, **arguments
    )
    found = []
    for step in range(1, STEPS + 1):
        simulation.advance(1)
        assert simulation.step == step
        found.append(simulation.x[0].numpy())
    return np.array(found)


def keras_network():
    """Return the oracle's network as a Keras model, with its weights."""
    model = keras.Sequential(
        [
            keras.Input((reference.INPUTS,)),
            keras.layers.Dense(reference.HIDDEN, activation="tanh"),
            keras.layers.Dense(reference.OUTPUTS),
        ]
    )
    model.set_weights(reference.unflatten(reference.initial_weights()))
    return model
