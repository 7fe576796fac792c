"""Build ready-made problems: `logistic`, `quadratic` and `digits`.

    problem = problems.logistic(nodes=20, heterogeneity=1)

`heterogeneity` controls how much the nodes' data differ, from 0 (iid: all nodes draw from one
distribution) to 1 (non-iid).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.simulate.problem import Problem, from_keras
from tf_gossip_pga.tools import memory


def logistic(
    nodes: int, heterogeneity: float = 0.0, samples: int = 8000, dimension: int = 10, seed: int = 0
) -> Problem:
    """Return a logistic regression problem whose initial parameters are 0.

        f_i(x) = mean_m ln(1 + exp(-y_im h_im' x))

    Sample m of node i has the features h_im and the label y_im. The features h are drawn from
    N(0, 10 I). The label y is 1 with probability 1 / (1 + exp(-h' x_i*)), and -1 otherwise. The
    vector x_i*, which defines the labels of node i, has norm one. The minimum is computed by
    Newton's method in float64.

    Source: the experiment of Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging",
    ICML 2021, reconstructed without access to the paper's text.

    Args:
      nodes: number of nodes, >= 1.
      heterogeneity: with 0, all nodes share one vector x*. With 1, each node has an independent
        vector of its own, o_i. In between, x_i* is (1 - heterogeneity) x* + heterogeneity o_i,
        divided by its norm. Default 0.
      samples: number of samples per node, >= 1. Default 8000.
      dimension: number of parameters d, >= 1. Default 10.
      seed: seed of the data, >= 0. Default 0.

    Returns:
      A `Problem` in float32.

    Raises:
      ValueError: an argument is out of range.
      MemoryError: the data would not fit into this machine's memory. Raised before generating the
        data.

    Example:
      >>> from tf_gossip_pga import simulate
      >>> problem = simulate.logistic(nodes=20, heterogeneity=1, samples=100)
      >>> problem.nodes, problem.samples, problem.dimension
      (20, 100, 10)
    """
    nodes, samples, dimension = _sizes(nodes, samples, dimension)
    memory.check(40 * nodes * samples * dimension, f"logistic regression of {nodes} nodes")
    random = np.random.default_rng(_validate.check_whole("seed", seed, 0))
    own = _own_optima(random, nodes, dimension, heterogeneity)
    features = math.sqrt(10) * random.standard_normal((nodes, samples, dimension), np.float32)
    certainty = 1 / (1 + np.exp(-np.einsum("nmd,nd->nm", features, own)))
    labels = np.where(random.random((nodes, samples)) < certainty, 1, -1).astype(np.float32)
    features *= labels[..., np.newaxis]  # h and y occur only as their product

    def loss(x, signed):
        return tf.reduce_mean(tf.math.softplus(-tf.linalg.matvec(signed, x)))

    minimum = _logistic_minimum(features.reshape(-1, dimension))
    return Problem(loss, (features,), np.zeros(dimension, np.float32), minimum)


def quadratic(
    nodes: int, heterogeneity: float = 0.0, samples: int = 100, dimension: int = 10, seed: int = 0
) -> Problem:
    """Return a least-squares problem whose initial parameters are 0.

        f_i(x) = mean_m d/2 (a_im' x - b_im)^2

    Sample m of node i consists of the vector a_im and the number b_im. The vectors a are uniform on
    the unit sphere, and b = a' x_i* + noise of standard deviation 0.1, where x_i* is drawn as in
    `logistic`. Therefore, f_i is nearly |x - x_i*|^2 / 2 plus a constant. The minimum of f, the
    mean of all f_i, is computed exactly, in float64.

    Args:
      nodes: number of nodes, >= 1.
      heterogeneity: as in `logistic`. Default 0.
      samples: number of samples per node, >= 1. Default 100.
      dimension: number of parameters d, >= 1. Default 10.
      seed: seed of the data, >= 0. Default 0.

    Returns:
      A `Problem` in float32.

    Raises:
      ValueError: an argument is out of range.
      MemoryError: the data would not fit into this machine's memory. Raised before generating the
        data.
    """
    nodes, samples, dimension = _sizes(nodes, samples, dimension)
    memory.check(48 * nodes * samples * (dimension + 1), f"least squares of {nodes} nodes")
    random = np.random.default_rng(_validate.check_whole("seed", seed, 0))
    own = _own_optima(random, nodes, dimension, heterogeneity)
    a = random.standard_normal((nodes, samples, dimension), np.float32)
    a *= math.sqrt(dimension) / np.linalg.norm(a, axis=-1, keepdims=True)
    noise = 0.1 * math.sqrt(dimension) * random.standard_normal((nodes, samples), np.float32)
    b = np.einsum("nmd,nd->nm", a, own) + noise

    def loss(x, a, b):
        return tf.reduce_mean((tf.linalg.matvec(a, x) - b) ** 2) / 2

    rows, values = a.reshape(-1, dimension).astype(np.float64), b.reshape(-1).astype(np.float64)
    best = np.linalg.lstsq(rows, values, rcond=None)[0]
    minimum = float(np.mean((rows @ best - values) ** 2) / 2)
    return Problem(loss, (a, b.astype(np.float32)), np.zeros(dimension, np.float32), minimum)


def digits(nodes: int, heterogeneity: float = 0.0, seed: int = 0) -> Problem:
    """Return the problem of classifying handwritten digits with a Keras model of 16 hidden units.

    The 1797 images of 8 x 8 pixels are divided among the nodes. The loss is the cross-entropy. Its
    minimum is unknown, so `minimum` is 0. The images come with scikit-learn, without a download.

    Source of the images: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998.

    Args:
      nodes: number of nodes, from 1 to 1797. All nodes get the same number of images. Leftover
        images are not used.
      heterogeneity: fraction of the images that are divided in label order. The others are
        shuffled. With 1, each node gets images of only a few digits; if there are many nodes, of
        only one or two. Default 0.
      seed: seed of the shuffling and of the initial weights, >= 0. Default 0.

    Returns:
      A `Problem` in float32.

    Raises:
      ValueError: an argument is out of range.
      ModuleNotFoundError: scikit-learn is not installed.
    """
    import keras

    nodes, share = _validate.check_whole("nodes", nodes, 1), _share(heterogeneity)
    seed = _validate.check_whole("seed", seed, 0)
    images, labels = _load_digits()
    if nodes > len(labels):
        raise ValueError(
            f"digits can be divided among at most {len(labels)} nodes, received {nodes}."
        )
    chosen = _deal(labels, nodes, share, seed)
    initializer: Any = keras.initializers.GlorotUniform(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16, "relu", kernel_initializer=initializer),
            keras.layers.Dense(10, kernel_initializer=initializer),
        ]
    )
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return from_keras(
        model, entropy, (images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int32)
    )


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn, which is not installed: pip install scikit-learn."
        ) from error
    return datasets.load_digits(return_X_y=True)  # type: ignore[return-value]


def _deal(labels: np.ndarray, nodes: int, share: float, seed: int) -> np.ndarray:
    """Return the indices of each node's images, `[nodes, images per node]`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    sorted_ones, shuffled = np.split(order, [round(share * len(order))])
    by_label = sorted_ones[np.argsort(labels[sorted_ones], kind="stable")]
    # Each node gets both kinds: images with adjacent labels, and shuffled images.
    parts = zip(
        np.array_split(by_label, nodes),
        reversed(np.array_split(shuffled, nodes)),
        strict=True,
    )
    dealt = [np.concatenate(part) for part in parts]
    each = min(map(len, dealt))
    return np.stack([part[:each] for part in dealt])


def _sizes(nodes: int, samples: int, dimension: int) -> tuple[int, int, int]:
    return (
        _validate.check_whole("nodes", nodes, 1),
        _validate.check_whole("samples", samples, 1),
        _validate.check_whole("dimension", dimension, 1),
    )


def _share(heterogeneity: object) -> float:
    share = _validate.number(heterogeneity)
    if share is None or not 0 <= share <= 1:
        raise ValueError(
            f"heterogeneity must be a number from 0 (iid) to 1, received {heterogeneity!r}."
        )
    return share


def _own_optima(
    random: np.random.Generator, nodes: int, dimension: int, heterogeneity: float
) -> np.ndarray:
    """Draw each node's x_i*, which defines its labels: `[nodes, dimension]` float32 of norm one."""
    share = _share(heterogeneity)
    common = _unit(random.standard_normal((1, dimension)))
    own = _unit(random.standard_normal((nodes, dimension)))
    return _unit((1 - share) * common + share * own).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _logistic_minimum(signed: np.ndarray) -> float:
    """Return the minimum over x of ln(1 + exp(-s' x)), averaged over the rows s of `signed`.

    Use Newton's method in float64.
    """
    signed = signed.astype(np.float64)
    x = np.zeros(signed.shape[1])
    for _ in range(100):
        wrong = 1 / (1 + np.exp(np.minimum(signed @ x, 700)))  # exp overflows above 709
        gradient = -wrong @ signed / len(signed)
        curvature = (signed * (wrong * (1 - wrong))[:, np.newaxis]).T @ signed / len(signed)
        move = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        if gradient @ move < 1e-24:  # about twice what another step would gain
            break
        x -= move / max(1.0, 4 * np.linalg.norm(move))
    return float(np.mean(np.logaddexp(0, -(signed @ x))))
