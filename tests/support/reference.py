"""Provide an independent oracle: the same training in NumPy float64, all ranks in one process.

The model is Dense(HIDDEN, tanh) -> Dense(OUTPUTS) with the mean squared error. The optimizer is SGD
with momentum as Keras defines it: v <- momentum * v - rate * g, w <- w + v. The oracle shares no
code with the product; the mixing matrices are an argument.
"""

import numpy as np

INPUTS, HIDDEN, OUTPUTS = 4, 5, 2
_SHAPES = ((INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, OUTPUTS), (OUTPUTS,))
PARAMETERS = sum(int(np.prod(shape)) for shape in _SHAPES)


def initial_weights(seed: int = 0) -> np.ndarray:
    """Return initial weights, `[PARAMETERS]` float64 with values that float32 can hold."""
    random = np.random.default_rng(seed)
    return random.normal(scale=0.5, size=PARAMETERS).astype(np.float32).astype(np.float64)


def batches(rank: int, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a rank's data: `[steps, batch, INPUTS]` and `[steps, batch, OUTPUTS]` float32."""
    random = np.random.default_rng(100 + rank)
    x = random.normal(size=(steps, batch, INPUTS)).astype(np.float32)
    y = np.sin(x[..., :OUTPUTS] * (1 + rank)).astype(np.float32)
    return x, y


def unflatten(weights: np.ndarray) -> list[np.ndarray]:
    """Split flat weights `[PARAMETERS]` into the model's kernel, bias, kernel and bias."""
    ends = np.cumsum([int(np.prod(shape)) for shape in _SHAPES])
    parts = np.split(weights, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, _SHAPES, strict=True)]


def gradient(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the gradient `[PARAMETERS]` of the mean over batch and outputs of (prediction - y)^2.

    Args:
      weights: `[PARAMETERS]`.
      x: `[batch, INPUTS]`.
      y: `[batch, OUTPUTS]`.
    """
    kernel1, bias1, kernel2, bias2 = unflatten(weights)
    x, y = x.astype(np.float64), y.astype(np.float64)
    hidden = np.tanh(x @ kernel1 + bias1)
    error = 2 * (hidden @ kernel2 + bias2 - y) / y.size
    back = (error @ kernel2.T) * (1 - hidden**2)
    parts = (x.T @ back, back.sum(0), hidden.T @ error, error.sum(0))
    return np.concatenate([part.ravel() for part in parts])


class Outer:
    """The outer optimizer of the oracle, as DiLoCo and PyTorch define SGD.

    The gradient is g = x_prev - m, the momentum buffer b <- momentum * b + g, and the step is
    x <- x_prev - rate * b, or with Nesterov's momentum x_prev - rate * (g + momentum * b).
    """

    def __init__(self, rate: float, momentum: float, nesterov: bool, period: int):
        """Take a step after every `period` steps."""
        self.period = period
        self._rate, self._momentum, self._nesterov = rate, momentum, nesterov
        self._buffer: np.ndarray | float = 0.0

    def step(self, before: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Return the new weights, from those after the last outer step and the mean over ranks."""
        gradient = before - mean
        self._buffer = self._momentum * self._buffer + gradient
        direction = gradient + self._momentum * self._buffer if self._nesterov else self._buffer
        return before - self._rate * direction


def train(
    weights,
    data,
    matrix_of_step,
    rate: float,
    momentum: float,
    ends=lambda step: step,
    outer: Outer | None = None,
) -> np.ndarray:
    """Train all ranks: adapt, then combine; or combine while adapting, as with overlap.

        x_k <- W_k (x_{k-1} + v)                if the exchange of step k ends with step k
        x_e <- x_{e-1} + v + (W_k - 1) x_k      if it ends with a later step e

    Args:
      weights: `[PARAMETERS]`, the initial weights of all ranks.
      data: for each rank `(x [steps, batch, INPUTS], y [steps, batch, OUTPUTS])`.
      matrix_of_step: function from step k, counted from 1, to W_k `[ranks, ranks]`; a global
        average is 11'/n.
      rate: learning rate.
      momentum: momentum of SGD.
      ends: function from step k to the step with which its exchange ends, or None if there is no
        exchange. Default: the same step.
      outer: the outer optimizer; its steps must be global averages. Default: none.

    Returns:
      `[steps, ranks, PARAMETERS]`: the weights after each step.
    """
    ranks, steps = len(data), len(data[0][0])
    anchor = weights
    weights = np.tile(weights, (ranks, 1))
    velocity = np.zeros_like(weights)
    history = []
    changes = {}  # by the step with which they are added
    for step in range(1, steps + 1):
        for rank, (x, y) in enumerate(data):
            slope = gradient(weights[rank], x[step - 1], y[step - 1])
            velocity[rank] = momentum * velocity[rank] - rate * slope
        weights = weights + velocity + changes.pop(step, 0)
        mixed = matrix_of_step(step) @ weights
        if ends(step) == step:
            weights = mixed
        else:
            changes[ends(step)] = mixed - weights
        if outer and step % outer.period == 0:
            anchor = outer.step(anchor, weights[0])
            weights = np.tile(anchor, (ranks, 1))
        history.append(weights)
    return np.array(history)


def matrix_of_step(topology, H, gossip_every=1):  # noqa: N803
    """Return the function from step k to its matrix: on every H-th step the global average.

    On the other steps it is the next round of the topology in every `gossip_every`-th step, else
    the identity.

    Source: Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021,
    Algorithm 1.
    """
    everybody = np.full((topology.size, topology.size), 1 / topology.size)

    def matrix(step: int) -> np.ndarray:
        if H is not None and step % H == 0:
            return everybody
        if step % gossip_every:
            return np.eye(topology.size)
        return topology.weights(step // gossip_every - 1)

    return matrix
