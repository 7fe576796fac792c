"""Exchange values between all workers: `allreduce`, `allgather`, `broadcast`.

Values travel as JSON in pieces, through the exchange of `cluster.gather`. This is made for metrics
and settings, not for parameters: every worker receives the values of all workers. It works only
eagerly, not in a `tf.function`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_gossip_pga.horovod import processes, values

# Characters of one message. Messages are padded to a power of two; this one fits into 2**20 bytes.
_PIECE = 1_000_000
_TIMEOUT_S = 300.0  # as in `cluster.gather`


class ReduceOp(enum.Enum):
    """How `allreduce` combines the values of all workers."""

    AVERAGE = "Average"
    SUM = "Sum"
    MIN = "Min"
    MAX = "Max"


Average, Sum, Min, Max = ReduceOp.AVERAGE, ReduceOp.SUM, ReduceOp.MIN, ReduceOp.MAX


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: ReduceOp | None = None,
    compression: Any = None,
) -> tf.Tensor:
    """Combine the values of all workers element by element. Every worker must call this.

    Args:
      value: a number, list of numbers, NumPy array or tensor, of the same shape on all workers.
      name: has no effect.
      average: the old form of `op`: True for `Average`, False for `Sum`. Default None: see `op`.
      prescale_factor: factor for each worker's value. Default 1.
      postscale_factor: factor for the result. Default 1.
      op: `Average`, `Sum`, `Min` or `Max`. Default None: `Average`.
      compression: has no effect. Values are sent as they are.

    Returns:
      An eager tensor with the same bits on all workers. It has the dtype of `value`, except that
      an average of integers or Booleans is float64.

    Raises:
      TypeError: the value is not numeric, or `op` is not one of the four.
      ValueError: on every worker, if the shapes or dtypes differ; also if both `average` and `op`
        are passed.
      RuntimeError, WorkerLost: see `Cluster.gather`.

    Example:
      >>> import tf_gossip_pga.horovod as hvd
      >>> hvd.init()
      >>> hvd.allreduce([0.25, 0.5], op=hvd.Average).numpy().tolist()
      [0.25, 0.5]
    """
    if average is not None and op is not None:
        raise ValueError("Pass either average or op to hvd.allreduce, not both.")
    if op is None:
        op = Sum if average is False else Average
    if not isinstance(op, ReduceOp):
        raise TypeError(
            f"op of hvd.allreduce must be hvd.Average, hvd.Sum, hvd.Min or hvd.Max, received "
            f"{op!r}."
        )
    own = _array(value)
    everyone = _gather(own, f"hvd.allreduce, op {op.value}")
    kinds = [f"{each.dtype.name} of shape {list(each.shape)}" for each in everyone]
    if len(set(kinds)) > 1:
        raise ValueError(
            "hvd.allreduce needs the same shape and dtype on every rank, received, in rank order: "
            f"{'; '.join(kinds)}."
        )
    return tf.constant(_combined(np.stack(everyone), op, prescale_factor, postscale_factor))


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """Concatenate the values of all workers along the first axis. Every worker must call this.

    Args:
      value: an array, list or tensor. Shapes may differ in the first axis. A number counts as an
        array with one element.
      name: has no effect.

    Returns:
      An eager tensor, in rank order.

    Raises:
      TypeError: the value is not numeric.
      ValueError: on every worker, if the shapes differ in another axis.
      RuntimeError, WorkerLost: see `Cluster.gather`.
    """
    return tf.constant(np.concatenate(_gather(np.atleast_1d(_array(value)), "hvd.allgather")))


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """Return one worker's value on all workers. Every worker must call this.

    Args:
      value: a number, list of numbers, NumPy array or tensor. Only that of `root_rank` is used.
      root_rank: the worker whose value is returned.
      name: has no effect.

    Returns:
      An eager tensor.

    Raises:
      TypeError: the value is not numeric.
      ValueError: there is no such rank.
      RuntimeError, WorkerLost: see `Cluster.gather`.
    """
    return tf.constant(_of_root(_array(value), root_rank, "hvd.broadcast"))


def allgather_object(obj: Any, name: str | None = None) -> list:
    """Return the objects of all workers, in rank order. Every worker must call this.

    Args:
      obj: None, a Boolean, number, string or bytes, a NumPy array, or a list, tuple or dict of
        these. Tensors are returned as NumPy arrays. Nothing is pickled.
      name: has no effect.

    Raises:
      TypeError: `obj` is or contains something else.
      RuntimeError, WorkerLost: see `Cluster.gather`.

    Example:
      >>> import tf_gossip_pga.horovod as hvd
      >>> hvd.init()
      >>> hvd.allgather_object({"rank": hvd.rank(), "shape": (2, 3)})
      [{'rank': 0, 'shape': (2, 3)}]
    """
    return _gather(obj, "hvd.allgather_object")


def broadcast_object(obj: Any, root_rank: int = 0, name: str | None = None) -> Any:
    """Return one worker's object on all workers. Every worker must call this.

    Args:
      obj: an object that `allgather_object` accepts. Only that of `root_rank` is used.
      root_rank: the worker whose object is returned. Default 0.
      name: has no effect.

    Raises:
      TypeError: the object of `root_rank` is or contains something else.
      ValueError: there is no such rank.
      RuntimeError, WorkerLost: see `Cluster.gather`.
    """
    return _of_root(obj, root_rank, "hvd.broadcast_object")


def broadcast_variables(variables: Iterable, root_rank: int) -> None:
    """Assign one worker's variables to those of all workers. Every worker must call this.

    `BroadcastGlobalVariablesCallback` already does this for a model and its optimizer when `fit`
    starts, and does it faster.

    Args:
      variables: Keras or TensorFlow variables, in the same order on all workers.
      root_rank: the worker whose values are assigned.

    Raises:
      ValueError: there is no such rank, or the number or shapes of the variables differ.
      RuntimeError, WorkerLost: see `Cluster.gather`.
    """
    variables = list(variables)
    own = [keras.ops.convert_to_numpy(each) for each in variables]
    values_of_root = _of_root(own, root_rank, "hvd.broadcast_variables")
    for variable, value in zip(variables, values_of_root, strict=True):
        variable.assign(value)


def barrier() -> None:
    """Wait until every worker has called this. See `Cluster.barrier`."""
    processes.cluster().barrier()


def _combined(stack: np.ndarray, op: ReduceOp, prescale: float, postscale: float) -> np.ndarray:
    """Return the values of all workers, `[size, …]`, combined along the first axis."""
    dtype = tf.as_dtype(stack.dtype)
    is_whole = not (dtype.is_floating or dtype.is_complex)
    if dtype.is_floating or (is_whole and op is Average):
        stack = stack.astype(np.float64)  # sum in high precision
    combine = {Average: np.mean, Sum: np.sum, Min: np.min, Max: np.max}[op]
    result = combine(stack * prescale if prescale != 1 else stack, axis=0)
    result = result * postscale if postscale != 1 else result
    return result if is_whole and op is Average else result.astype(dtype.as_numpy_dtype)


def _array(value: Any) -> np.ndarray:
    """Return a value as TensorFlow converts it: Python numbers become float32 and int32."""
    if not tf.executing_eagerly():
        raise RuntimeError(
            "hvd.allreduce, hvd.allgather and hvd.broadcast cannot be called in a tf.function, "
            "such as the train_step that Keras compiles. Call them in a hook of a Keras callback "
            "or outside of fit. The logs of fit are means over all workers already."
        )
    if not isinstance(value, np.ndarray):
        value = keras.ops.convert_to_numpy(tf.convert_to_tensor(value))
    if value.dtype.kind in "OUS":
        raise TypeError(
            f"Expected numbers, received an array of dtype {value.dtype}. For other objects, use "
            "hvd.allgather_object or hvd.broadcast_object."
        )
    return value


def _of_root(value: Any, root_rank: int, doing: str) -> Any:
    cluster = processes.cluster()
    if root_rank not in cluster.members:
        raise ValueError(
            f"root_rank of {doing} must be one of the ranks {list(cluster.members)}, received "
            f"{root_rank!r}."
        )
    own = value if cluster.rank == root_rank else None
    return _gather(own, f"{doing} from rank {root_rank}")[cluster.members.index(root_rank)]


def _gather(value: Any, doing: str) -> list:
    """Return the values of all workers, in rank order, that `values.encoded` accepts."""
    cluster = processes.cluster()
    text = json.dumps(values.encoded(value))
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]

    def exchange(piece: Any) -> list:
        if cluster.exchange_values is None:  # a `Cluster` that `initialize` did not return
            return [piece]
        # "cluster.gather": the session compares names that begin so, and raises if they differ.
        return cluster.exchange_values(piece, f"cluster.gather ({doing})", _TIMEOUT_S)

    first = exchange([len(pieces), pieces[0]])
    texts = [[piece] for _, piece in first]
    for index in range(1, max(count for count, _ in first)):
        piece = pieces[index] if index < len(pieces) else ""
        for parts, each in zip(texts, exchange(piece), strict=True):
            parts.append(each)
    return [values.decoded(json.loads("".join(parts))) for parts in texts]
