"""WHAT is minimised in a simulation: a loss, and the data that each node has of its own.

    problem = problems.logistic(nodes=20, heterogeneity=1)

A problem is one function of one node, `loss(x, *batch)`, in TensorFlow operations; the simulation
makes it a function of all nodes at once. `from_keras` makes one of a Keras model. With f_i the mean
loss over node i's own data, the nodes together minimise f(x) = 1/n sum_i f_i(x).

Three are ready: `logistic`, `quadratic` and `digits`. `heterogeneity` says how much their nodes'
data differ, from 0, all drawn alike (iid), to 1 (non-iid).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.tools import memory


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss, each node's data, and where all nodes begin.

    Attributes:
      loss: `(x [d], *batch) -> scalar`, the mean over a batch of one node, where `batch` has an
        array `[batch, …]` for each one in `data`. Differentiable TensorFlow operations that
        `tf.vectorized_map` can vectorise.
      data: arrays `[nodes, samples, …]`; node i draws its batches from `[i]` of each.
      initial: `[d]`, float32 or float64, the type in which all is computed.
      minimum: f*, the least value of f, or a bound below it where that is not known: curves are
        of f(x) - minimum. Default 0.

    Raises:
      ValueError: the arrays' shapes do not fit, or `initial` is not a vector of floats.

    Example: the mean of all nodes' numbers, as the minimum of a parabola.

        >>> numbers = np.arange(8, dtype=np.float32).reshape(4, 2)  # of 4 nodes, 2 each
        >>> problem = Problem(lambda x, b: tf.reduce_mean((x[0] - b) ** 2), (numbers,), np.zeros(1))
        >>> problem.nodes, problem.samples, problem.dimension
        (4, 2, 1)
    """

    loss: Callable
    data: tuple[np.ndarray, ...]
    initial: np.ndarray
    minimum: float = 0.0

    def __post_init__(self):
        initial = np.asarray(self.initial)
        if initial.ndim != 1 or not initial.size or initial.dtype not in (np.float32, np.float64):
            raise ValueError(
                "initial must be a vector [d] of float32 or float64, received shape "
                f"{initial.shape} of {initial.dtype}."
            )
        shapes = [np.shape(array) for array in self.data]
        if not shapes or any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(
                "data must be arrays [nodes, samples, …] that agree in the first two sizes, "
                f"received shapes {shapes}."
            )
        if 0 in shapes[0][:2]:
            raise ValueError(f"data must have nodes and samples, received shapes {shapes}.")

    @property
    def nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.data[0])

    @property
    def samples(self) -> int:
        """Number of samples that each node has."""
        return len(self.data[0][0])

    @property
    def dimension(self) -> int:
        """Number of parameters, d."""
        return len(self.initial)


def logistic(
    nodes: int, heterogeneity: float = 0.0, samples: int = 8000, dimension: int = 10, seed: int = 0
) -> Problem:
    """Logistic regression, f_i(x) = mean_m ln(1 + exp(-y_im h_im' x)), started at 0.

    h ~ N(0, 10 I); y = 1 with probability 1 / (1 + exp(-h' x_i*)), and -1 otherwise; x_i* has norm
    one. The minimum is found by Newton's method in float64.

    Source: the experiment of Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging",
    ICML 2021, reconstructed without its text at hand.

    Args:
      nodes: how many, >= 1.
      heterogeneity: 0: one x* for all; 1: each node's x_i* is drawn for itself; between: the
        direction of (1 - heterogeneity) x* + heterogeneity x_i*. Default 0.
      samples: of each node, >= 1. Default 8000.
      dimension: d >= 1. Default 10.
      seed: of the data, >= 0. Default 0.

    Raises:
      ValueError: an argument is out of its range.
      MemoryError: the data would not fit into this machine's memory; said before they are drawn.
    """
    nodes, samples, dimension = _sizes(nodes, samples, dimension)
    memory.check(40 * nodes * samples * dimension, f"logistic regression of {nodes} nodes")
    random = np.random.default_rng(whole(seed, "seed", 0))
    own = _own_optima(random, nodes, dimension, heterogeneity)
    features = math.sqrt(10) * random.standard_normal((nodes, samples, dimension), np.float32)
    certainty = 1 / (1 + np.exp(-np.einsum("nmd,nd->nm", features, own)))
    labels = np.where(random.random((nodes, samples)) < certainty, 1, -1).astype(np.float32)
    features *= labels[..., np.newaxis]  # h and y occur as y h alone

    def loss(x, signed):
        return tf.reduce_mean(tf.math.softplus(-tf.linalg.matvec(signed, x)))

    minimum = _logistic_minimum(features.reshape(-1, dimension))
    return Problem(loss, (features,), np.zeros(dimension, np.float32), minimum)


def quadratic(
    nodes: int, heterogeneity: float = 0.0, samples: int = 100, dimension: int = 10, seed: int = 0
) -> Problem:
    """Least squares, f_i(x) = mean_m d/2 (a_im' x - b_im)^2, started at 0.

    a is uniform on the unit sphere and b = a' x_i* + noise of standard deviation 0.1, so that f is
    nearly |x - x*|^2 / 2. Arguments and errors are those of `logistic`; the minimum is exact.
    """
    nodes, samples, dimension = _sizes(nodes, samples, dimension)
    memory.check(48 * nodes * samples * (dimension + 1), f"least squares of {nodes} nodes")
    random = np.random.default_rng(whole(seed, "seed", 0))
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
    """1797 handwritten digits, 8 x 8, dealt to the nodes, and a Keras model with 16 hidden units.

    The loss is the cross entropy. Its minimum is not known, and 0 stands for it. The images are
    inside scikit-learn; nothing is downloaded. Source: Alpaydin and Kaynak, "Optical Recognition of
    Handwritten Digits", UCI Machine Learning Repository, 1998.

    Args:
      nodes: from 1 to 1797; a remainder of images is left out.
      heterogeneity: the share of the images that is dealt in the order of their labels, so that
        with 1 a node sees one or two digits alone; the others are shuffled. Default 0.
      seed: of the order and of the initial weights, >= 0. Default 0.

    Raises:
      ValueError: an argument is out of its range.
      ModuleNotFoundError: scikit-learn is not installed.
    """
    (nodes,) = _sizes(nodes)
    share = _share(heterogeneity)
    seed = whole(seed, "seed", 0)
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits are inside scikit-learn, which is not installed: pip install scikit-learn."
        ) from error
    import keras

    images, labels = datasets.load_digits(return_X_y=True)
    if nodes > len(labels):
        raise ValueError(f"digits can be dealt to at most {len(labels)} nodes, received {nodes}.")
    order = np.random.default_rng(seed).permutation(len(labels))
    sorts = order[: round(share * len(order))]
    in_order = sorts[np.argsort(labels[sorts], kind="stable")]
    # Each node gets its part of both: neighbouring labels, and any.
    parts = zip(
        np.array_split(in_order, nodes),
        reversed(np.array_split(order[len(sorts) :], nodes)),
        strict=True,
    )
    mine = [np.concatenate(part) for part in parts]
    each = min(map(len, mine))
    chosen = np.stack([part[:each] for part in mine])
    initializer = keras.initializers.GlorotUniform(seed)
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


def from_keras(model, loss, x, y) -> Problem:
    """The problem of training a Keras model from the weights that it has now.

    The parameters are the trainable variables one after the other, flat; the loss is that of the
    outputs, and the model's own regularizers.

    Args:
      model: a built `keras.Model`, with one input and one output. It is not changed.
      loss: what `keras.losses.get` accepts, but for a sum over samples.
      x: inputs `[nodes, samples, …]`.
      y: targets `[nodes, samples, …]`.

    Raises:
      ValueError: the model is not built, or has variables that are not trained (those of
        BatchNorm, or a random generator's), which a simulation would not keep; or the loss is a
        sum.

    Example:

        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        problem = from_keras(model, entropy, images, labels)
    """
    import keras

    if not model.built or not model.trainable_variables:
        raise ValueError(
            "The model has no trainable variables: build it, and leave some trainable."
        )
    if model.non_trainable_variables:
        names = ", ".join(variable.path for variable in model.non_trainable_variables)
        raise ValueError(
            f"A simulation keeps trainable variables alone, and this model also has {names}. Leave "
            "BatchNorm, dropout and frozen layers out; GroupNormalization is an alternative."
        )
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    sizes = [math.prod(shape) for shape in shapes]
    criterion = keras.losses.get(loss)
    if getattr(criterion, "reduction", None) == "sum":
        raise ValueError(
            f"{criterion.name} has reduction='sum': its scale would depend on how many samples are "
            "looked at. Leave the default, the mean over samples."
        )

    def flat_loss(x, inputs, targets):
        parts = tf.split(x, sizes)
        variables = [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
        outputs, _, extra = model.stateless_call(
            variables, [], inputs, training=True, return_losses=True
        )
        return tf.add_n([tf.reduce_mean(criterion(targets, outputs)), *extra])

    initial = np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])
    return Problem(flat_loss, (np.asarray(x), np.asarray(y)), initial)


def whole(value, name: str, least: int = 1) -> int:
    """`value` as an integer >= `least`.

    Raises:
      ValueError: it is none.
    """
    number = _validate.whole(value, least)
    if number is None:
        raise ValueError(f"{name} must be a whole number >= {least}, received {value!r}.")
    return number


def _sizes(*values) -> tuple[int, ...]:
    names = ("nodes", "samples", "dimension")
    return tuple(whole(value, name) for value, name in zip(values, names, strict=False))


def _share(heterogeneity) -> float:
    share = _validate.number(heterogeneity)
    if share is None or not 0 <= share <= 1:
        raise ValueError(
            f"heterogeneity must be a number from 0 (iid) to 1, received {heterogeneity!r}."
        )
    return share


def _own_optima(random, nodes: int, dimension: int, heterogeneity) -> np.ndarray:
    """`[nodes, dimension]` float32 of norm one."""
    share = _share(heterogeneity)
    common = _unit(random.standard_normal((1, dimension)))
    own = _unit(random.standard_normal((nodes, dimension)))
    return _unit((1 - share) * common + share * own).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _logistic_minimum(signed: np.ndarray) -> float:
    """Of mean ln(1 + exp(-s' x)) over the rows s, in float64."""
    signed = signed.astype(np.float64)
    x = np.zeros(signed.shape[1])
    for _ in range(100):
        wrong = 1 / (1 + np.exp(np.minimum(signed @ x, 700)))  # beyond, exp overflows
        gradient = -wrong @ signed / len(signed)
        curvature = (signed * (wrong * (1 - wrong))[:, np.newaxis]).T @ signed / len(signed)
        move = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        if gradient @ move < 1e-24:  # twice what a step still gains
            break
        x -= move / max(1.0, 4 * np.linalg.norm(move))
    return float(np.mean(np.logaddexp(0, -(signed @ x))))
