"""Take the steps of one algorithm on all nodes and trials at once, in one compiled loop.

A step of node i:

y_i <- x_i - step_size * gradient of f_i(x_i, batch)
x_i <- 1/n sum_j y_j            if the step is a global average, without an outer optimizer
x_i <- sum_j W[i, j] * y_j      otherwise, if a gossip is due after the step
x_i <- y_i                      otherwise

Here, x_i are the parameters of node i, f_i is the mean loss over its data, n is the number of
nodes, and W is the mixing matrix of the topology's round for this step.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.simulate import mixing, tensors
from tf_gossip_pga.simulate.problem import Problem


class State(NamedTuple):
    """Tensors that one step passes to the next."""

    x: Any  # [nodes, trials, d], the parameters
    anchor: Any  # [trials, d], x_prev of `Outer`
    velocity: Any  # [trials, d], v of `Outer`
    loss: Any  # [trials], loss of the first batch after a global average, mean over nodes
    fresh: Any  # [trials] bool, whether the last step was a global average; initially True
    distance: Any  # [trials], consensus distance right before the last global average, if measured


def start(problem: Problem, trials: int) -> State:
    """Return the state before the first step."""
    dtype = tensors.dtype_of(problem)
    initial = tf.constant(problem.initial, dtype)
    return State(
        x=tf.tile(initial[tf.newaxis, tf.newaxis], [problem.nodes, trials, 1]),
        anchor=tf.tile(initial[tf.newaxis], [trials, 1]),
        velocity=tf.zeros([trials, problem.dimension], dtype),
        loss=tf.zeros([trials], dtype),
        fresh=tf.ones([trials], tf.bool),
        distance=tf.zeros([trials], dtype),
    )


def consensus_distance(x: Any) -> Any:
    """Return the RMS distance of the nodes from their mean, divided by its norm, `[trials]`.

    Args:
      x: `[nodes, trials, d]`, the parameters.
    """
    mean = tf.reduce_mean(x, axis=0)
    spread = tf.reduce_mean(tf.reduce_sum((x - mean) ** 2, axis=2), axis=0)
    return tf.math.divide_no_nan(tf.sqrt(spread), tf.norm(mean, axis=1))


class Steps:
    """Run the steps of one algorithm in a loop that TensorFlow can compile.

    Args:
      problem: a `Problem`.
      topology: who gossips with whom.
      trials: number of runs.
      batch: number of samples per batch on each node.
      seed: seed of the batches.
      shuffle: whether to draw batches at random instead of taking them in order.
      outer: takes a step at each global average; None: plain global averages.
      measures_distance: whether to measure `State.distance`.
    """

    def __init__(
        self,
        problem: Problem,
        topology: Topology,
        *,
        trials: int,
        batch: int,
        seed: int,
        shuffle: bool,
        outer: Outer | None,
        measures_distance: bool,
    ):
        self._problem = problem
        self._trials = trials
        self._seed, self._shuffle = seed, shuffle
        self._outer = outer
        self._measures_distance = measures_distance
        self._batches = tensors.shared(tensors.batches, problem, batch, seed if shuffle else None)
        self._batches_of_node = len(self._batches[0]) // problem.nodes
        dtype = tensors.dtype_of(problem)
        self._mixers = [mixing.mixer(each, dtype) for each in topology.cycle]

    def take(
        self, state: State, before: Any, count: Any, is_global: Any, rounds: Any, sizes: Any
    ) -> Any:
        """Take `count` steps after step `before`, and return the new state.

        Args:
          state: the state after step `before`.
          before: int64 scalar, number of steps taken so far.
          count: int64 scalar, number of steps to take.
          is_global: `[steps, trials]` bool, whether each step is a global average. Has at least
            `count` rows.
          rounds: `[steps]` int32, the topology's round that follows each step without a global
            average, or -1 if no gossip follows.
          sizes: `[steps]`, the step size of each step.
        """

        # `before` is a loop variable. If it were a constant, XLA would recompile the loop for each
        # value.
        def body(index, before, state):
            row = [tf.gather(each, index) for each in (is_global, rounds, sizes)]
            return index + 1, before + 1, self._step(state, before, *row)

        first = (tf.constant(0, tf.int64), before, state)
        return tf.while_loop(lambda index, *_: index < count, body, first)[2]

    def _step(self, state: State, before: Any, is_global: Any, round: Any, step_size: Any) -> State:
        losses, gradient = self._losses(state.x, self._draw(before))
        y = state.x - step_size * gradient
        mean, velocity = self._average(y, state)
        chosen = is_global[:, tf.newaxis]  # [trials, 1]
        return State(
            x=tf.where(chosen, mean, self._mix(y, round)),
            anchor=tf.where(chosen, mean, state.anchor),
            velocity=tf.where(chosen, velocity, state.velocity),
            # An adaptive period uses the loss of the first batch after a global average.
            loss=tf.where(state.fresh, tf.reduce_mean(losses, axis=0), state.loss),
            fresh=is_global,
            distance=tf.where(is_global, consensus_distance(y), state.distance)
            if self._measures_distance
            else state.distance,
        )

    def _average(self, y: Any, state: State) -> tuple[Any, Any]:
        """Return the result of a global average, `[trials, d]`, and the new velocity."""
        mean = tf.reduce_mean(y, axis=0)
        if self._outer is None:
            return mean, state.velocity
        return self._outer.step(mean, state.anchor, state.velocity)

    def _draw(self, before: Any) -> list[Any]:
        """Return the batches of all nodes for the next step, each `[nodes * trials, batch, …]`."""
        n, each = self._problem.nodes, self._batches_of_node
        shape = [n, self._trials]
        if self._shuffle:
            seed = tf.stack([tf.constant(self._seed, tf.int64), before])
            drawn = tf.random.stateless_uniform(shape, seed, 0, each, tf.int64)
        else:
            drawn = tf.fill(shape, before % each)
        places = drawn + each * tf.range(n, dtype=tf.int64)[:, tf.newaxis]
        return [tf.gather(batches, tf.reshape(places, [-1])) for batches in self._batches]

    def _losses(self, x: Any, batches: list[Any]) -> tuple[Any, Any]:
        """Return the losses of batches, `[nodes, trials]`, and gradients, `[nodes, trials, d]`."""
        one_by_one = tf.reshape(x, [-1, self._problem.dimension])
        with tf.GradientTape() as tape:
            tape.watch(one_by_one)
            losses = tf.vectorized_map(
                lambda both: self._problem.loss(both[0], *both[1]), (one_by_one, batches)
            )
        # This is the gradient of the sum of all losses. Each loss depends only on its own x, so
        # each row is the gradient of one loss.
        gradient: Any = tape.gradient(losses, one_by_one)
        return tf.reshape(losses, x.shape[:2]), tf.reshape(gradient, x.shape)

    def _mix(self, y: Any, round: Any) -> Any:
        branches = [tf.identity, *self._mixers]
        return tf.switch_case(round + 1, [functools.partial(mixer, y) for mixer in branches])
