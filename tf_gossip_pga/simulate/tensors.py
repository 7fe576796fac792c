"""Convert a problem's data to tensors that all simulations of the problem share."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_gossip_pga.simulate.problem import Problem
from tf_gossip_pga.tools import memory

_BLOCK = 16384  # samples per block of the mean loss; few enough for the CPU cache


class _Tensors(list):
    """A list of one problem's tensors. Unlike a plain list, it supports weak references."""


_in_use: weakref.WeakValueDictionary[tuple[Hashable, ...], _Tensors] = weakref.WeakValueDictionary()


def shared(make: Callable[..., Any], *arguments: Hashable) -> _Tensors:
    """Return the tensors of `make(*arguments)`, shared with other simulations.

    Call `make` only if no simulation holds its result yet. The tensors are kept as long as any
    simulation holds them.

    Args:
      make: returns an iterable of tensors.
      *arguments: arguments of `make`.
    """
    key = (make, *arguments)
    found = _in_use.get(key)
    if found is None:
        found = _in_use[key] = _Tensors(make(*arguments))
    return found


def check_size(problem: Problem, trials: int, batch: int, seed: int | None) -> None:
    """Raise `MemoryError` unless the tensors of a simulation fit into memory.

    Args:
      problem: a `Problem`.
      trials: number of runs.
      batch: number of samples per batch on each node.
      seed: seed of the batches; None: take them in order.

    Raises:
      MemoryError: the tensors would not fit.
    """
    n, item = problem.nodes, np.asarray(problem.initial).dtype.itemsize
    sample = sum(math.prod(np.shape(array)[2:]) for array in problem.data)
    floats = 6 * problem.dimension + 2 * batch * sample  # x, its gradient, y, mixed y, …
    samples = n * problem.samples  # in blocks, for the mean loss
    if (batches, problem, batch, seed) not in _in_use:
        samples += samples * batch // math.gcd(batch, problem.samples)
    needed = item * (n * trials * floats + samples * sample) + 700 * n  # the topology
    what = f"A simulation of {n} nodes x {trials} trials x {problem.dimension} parameters"
    memory.check(needed, what)


def dtype_of(problem: Problem) -> tf.DType:
    """Return the dtype of all computations, which is the dtype of `problem.initial`."""
    return tf.as_dtype(np.asarray(problem.initial).dtype)


def batches(problem: Problem, batch: int, seed: int | None) -> list[tf.Tensor]:
    """Divide the data into batches.

    Args:
      problem: a `Problem`.
      batch: number of samples per batch on each node.
      seed: seed for shuffling the samples; None: keep their order.

    Returns:
      For each array of the data, a tensor `[nodes * batches per node, batch, …]`.
    """
    places = batch_places(problem.samples, batch, seed)
    return [
        tf.reshape(_tensor(array[:, places], problem), [-1, batch, *array.shape[2:]])
        for array in map(np.asarray, problem.data)
    ]


def batch_places(samples: int, batch: int, seed: int | None) -> np.ndarray:
    """Return which samples each batch of a node contains, `[batches, batch]`.

    A sample is given by its index among the node's samples. All samples occur equally often: the
    smallest number of times that fills whole batches.

    Args:
      samples: number of samples of a node.
      batch: number of samples per batch.
      seed: seed for shuffling the samples; None: keep their order.
    """
    order = np.arange(samples)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    return np.tile(order, batch // math.gcd(batch, samples)).reshape(-1, batch)


def blocks(problem: Problem) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Divide the data into blocks that each hold all samples of some nodes, for the mean loss.

    Returns:
      Two lists, each with one tensor per array of the data: first the blocks,
      `[blocks, samples per block, …]`, then the samples of the remaining nodes, which do not fill a
      block, `[samples, …]`.
    """
    n, samples = problem.nodes, problem.samples
    together = max(1, min(n, _BLOCK // samples))
    end = n - n % together  # number of nodes in blocks
    whole, rest = [], []
    for array in map(np.asarray, problem.data):
        shape = [-1, together * samples, *array.shape[2:]]
        whole.append(tf.reshape(_tensor(array[:end], problem), shape))
        rest.append(tf.reshape(_tensor(array[end:], problem), [-1, *array.shape[2:]]))
    return whole, rest


def mean_loss(problem: Problem) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function f, the mean loss over the samples of all nodes: `[trials, d] -> [trials]`.

    The function f processes one block of samples at a time.
    """
    held = shared(blocks, problem)
    dtype, all_samples = dtype_of(problem), problem.nodes * problem.samples

    def of_block(x: tf.Tensor, block: Any) -> Any:
        return tf.vectorized_map(lambda one: problem.loss(one, *block), x)

    @tf.function(autograph=False)
    def f(x: tf.Tensor) -> Any:
        whole, rest = held
        losses = tf.map_fn(lambda block: of_block(x, block), whole, fn_output_signature=dtype)
        total = whole[0].shape[1] * tf.reduce_sum(losses, axis=0)
        if len(rest[0]):
            total += len(rest[0]) * of_block(x, rest)
        return total / all_samples

    return f


def _tensor(array: np.ndarray, problem: Problem) -> tf.Tensor:
    """Return the array as a tensor; an array of floats gets the dtype of the parameters."""
    is_float = np.issubdtype(array.dtype, np.floating)
    return tf.constant(array, dtype_of(problem) if is_float else None)
