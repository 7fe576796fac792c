"""One algorithm at work on all nodes at once; see `tf_gossip_pga.simulate`."""

import collections
import functools
import math
import weakref

import numpy as np
import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.algorithm import schedule as schedule_lib
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.simulate import mixing
from tf_gossip_pga.simulate.problems import Problem, whole
from tf_gossip_pga.tools import memory

# Steps that one call of the compiled loop takes at most.
_CHUNK = 512
# Samples whose loss is computed at once: they fit into a processor's cache.
_BLOCK = 16384

# x: [nodes, trials, d]. anchor, velocity: [trials, d], SlowMo's x0 and u. loss, fresh: [trials].
_State = collections.namedtuple("_State", "x anchor velocity loss fresh")


class Simulation:
    """One algorithm at work on all nodes, in several independent trials at once.

    Args:
      problem: a `Problem`.
      topology: a name in `pga.topology.BY_NAME`, or a `Topology` for as many nodes.
        `"disconnected"` makes Local SGD. Default `"one_peer_exponential"`.
      H: the period of global averages in steps, >= 1; 1 is Parallel SGD, None Gossip SGD, an
        `AdaptivePeriod` Gossip-AGA, for which each trial has a period of its own. Default 6.
      step_size: > 0, plain SGD's. Default 0.1.
      halve_every: number of steps after which the step size is halved, again and again, >= 1; None:
        never. Default None.
      batch_size: samples in a batch of one node, >= 1; None: all of the node's. Default 1.
      trials: how many runs from the same start with batches of their own, >= 1. Default 1.
      shuffle: whether batches are drawn at random, with replacement, from parts into which each
        node's samples are shuffled once. Otherwise step k takes the samples in their order, from
        the (k - 1) * batch_size-th on, and the first again after the last, in all trials alike.
        Default True.
      slow_momentum: what SlowMo adds at each global average, its slow learning rate being 1, with u
        from 0 and x0 what the last one left; 0 is Gossip-PGA by another formula. None: a plain
        average. Default None. (Wang et al., "SlowMo", ICLR 2020, Algorithm 1.)

            u <- slow_momentum * u + (x0 - 1/n sum_j y_j) / step_size
            x_i <- x0 - step_size * u

      seed: of the batches, >= 0. Simulations with the same seed draw the same ones. Default 0.
      jit_compile: whether XLA compiles the steps. It takes seconds to begin, and saves most of the
        time of a step where there is little to compute. Default False.

    Attributes:
      step: number of steps taken.
      global_averages: how many of them were global averages, `[trials]` int.

    Raises:
      ValueError: an argument is out of its range, or the topology does not exist for so many nodes.
      TypeError: `topology` is neither a name nor a `Topology`.
      MemoryError: parameters, batches and samples would not fit into this machine's memory; said
        before any of them is allocated. (What a loss needs in between is not known beforehand.)

    Example: a Keras model on four nodes.

        problem = simulate.from_keras(model, "mse", x, y)     # x, y: [4, samples, …]
        simulation = simulate.Simulation(problem, "ring", H=6)
        simulation.advance(100)
        simulation.x[0, 3]                                    # node 3's parameters, flat
    """

    def __init__(
        self,
        problem: Problem,
        topology="one_peer_exponential",
        H=6,  # noqa: N803 (the paper's name)
        *,
        step_size: float = 0.1,
        halve_every: int | None = None,
        batch_size: int | None = 1,
        trials: int = 1,
        shuffle: bool = True,
        slow_momentum: float | None = None,
        seed: int = 0,
        jit_compile: bool = False,
    ):
        if not isinstance(problem, Problem):
            raise ValueError(
                "problem must be a simulate.Problem, such as simulate.logistic(nodes=20), received "
                f"{problem!r}."
            )
        self.problem = problem
        self.trials = whole(trials, "trials")
        self._batch = problem.samples if batch_size is None else whole(batch_size, "batch_size")
        self._step_size = _number(step_size, "step_size", "> 0", lambda v: v > 0)
        self._halve_every = None if halve_every is None else whole(halve_every, "halve_every")
        self._slow_momentum = None
        if slow_momentum is not None:
            self._slow_momentum = _number(
                slow_momentum, "slow_momentum", ">= 0 and < 1, or None", lambda v: 0 <= v < 1
            )
        n, d = problem.nodes, problem.dimension
        self._shuffle, self._seed = bool(shuffle), whole(seed, "seed", 0)
        batches = _batches, problem, self._batch, self._seed if self._shuffle else None
        _check_size(problem, self.trials, self._batch, batches in _in_use)
        topology = topology_lib.resolve(topology, n)
        self._adaptive = isinstance(H, schedule_lib.AdaptivePeriod)
        self._schedules = [schedule_lib.resolve(H) for _ in range(self.trials)]
        self._dtype = _dtype_of(problem)
        self._batches = _shared(*batches)
        self._batches_of_node = len(self._batches[0]) // n
        self._mixers = [mixing.mixer(each, self._dtype) for each in topology.cycle]
        self._steps = tf.function(self._take, autograph=False, jit_compile=bool(jit_compile))
        start = tf.constant(problem.initial, self._dtype)
        self._state = _State(
            x=tf.tile(start[tf.newaxis, tf.newaxis], [n, self.trials, 1]),
            anchor=tf.tile(start[tf.newaxis], [self.trials, 1]),
            velocity=tf.zeros([self.trials, d], self._dtype),
            loss=tf.zeros([self.trials], self._dtype),
            fresh=tf.ones([self.trials], tf.bool),
        )
        self.step = 0
        self.global_averages = np.zeros(self.trials, int)

    @property
    def x(self) -> tf.Tensor:
        """The parameters of all nodes, `[trials, nodes, d]`."""
        return tf.transpose(self._state.x, [1, 0, 2])

    @property
    def mean(self) -> tf.Tensor:
        """Their mean over nodes, `[trials, d]`."""
        return tf.reduce_mean(self._state.x, axis=0)

    @property
    def consensus_distance(self) -> np.ndarray:
        """`[trials]`: root mean square distance of the nodes from their mean, over its norm."""
        mean = self.mean
        spread = tf.reduce_sum((self._state.x - mean) ** 2, axis=2)
        distance = tf.sqrt(tf.reduce_mean(spread, axis=0))
        return tf.math.divide_no_nan(distance, tf.norm(mean, axis=1)).numpy()

    def advance(self, steps: int):
        """Takes `steps` steps, >= 1, in all trials."""
        end = self.step + whole(steps, "steps")
        while self.step < end:
            self._advance_to_average(end)

    def excess(self) -> np.ndarray:
        """`[trials]`: f(mean of the nodes) - minimum, over the samples of all nodes."""
        return self._mean_loss(self.mean).numpy().astype(np.float64) - self.problem.minimum

    def _advance_to_average(self, end: int):
        """Up to `end`, or as far as is known which steps are global averages."""
        is_global = np.zeros((_CHUNK, self.trials), bool)
        count = 0
        while count < min(_CHUNK, end - self.step):
            step = self.step + count + 1
            is_global[count] = [each.is_global(step) for each in self._schedules]
            count += 1
            if self._adaptive and is_global[count - 1].any():
                break
        before, taken = (tf.constant(number, tf.int64) for number in (self.step, count))
        self._state = self._steps(self._state, before, taken, is_global, self._sizes())
        self.step += count
        self.global_averages += is_global[:count].sum(axis=0)
        if self._adaptive:
            for trial in np.flatnonzero(is_global[count - 1]):
                self._schedules[trial].observe(self.step, float(self._state.loss[trial]))

    def _sizes(self) -> np.ndarray:
        """The step sizes of the steps to come, `[_CHUNK]`."""
        steps = self.step + np.arange(_CHUNK)
        halvings = 0 if self._halve_every is None else steps // self._halve_every
        sizes = self._step_size * np.exp2(-np.minimum(halvings, 1000)) * np.ones(_CHUNK)
        return sizes.astype(self._dtype.as_numpy_dtype)

    def _take(self, state, before, count, is_global, sizes):
        """`count` steps after step `before`; `is_global` and `sizes` have a row for each."""

        # XLA would compile anew for each `before` that is the same in all turns of the loop.
        def body(index, before, state):
            row = tf.gather(is_global, index), tf.gather(sizes, index)
            return index + 1, before + 1, self._step(state, before, *row)

        start = (tf.constant(0, tf.int64), before, state)
        return tf.while_loop(lambda index, *_: index < count, body, start)[2]

    def _step(self, state, before, is_global, step_size):
        losses, gradient = self._losses(state.x, self._draw(before))
        y = state.x - step_size * gradient
        mean = tf.reduce_mean(y, axis=0)
        velocity = state.velocity
        if self._slow_momentum is not None:
            moved = (state.anchor - mean) / step_size
            velocity = self._slow_momentum * state.velocity + moved
            mean = state.anchor - step_size * velocity
        chosen = is_global[:, tf.newaxis]  # [trials, 1]
        return _State(
            x=tf.where(chosen, mean, self._mix(y, before)),
            anchor=tf.where(chosen, mean, state.anchor),
            velocity=tf.where(chosen, velocity, state.velocity),
            # Of the first batch after a global average, as GossipPGA reports it to the schedule.
            loss=tf.where(state.fresh, tf.reduce_mean(losses, axis=0), state.loss),
            fresh=is_global,
        )

    def _draw(self, before) -> list[tf.Tensor]:
        """Each node's batches `[nodes * trials, batch, …]` of the next step."""
        n, each = self.problem.nodes, self._batches_of_node
        shape = [n, self.trials]
        if self._shuffle:
            seed = tf.stack([tf.constant(self._seed, tf.int64), before])
            drawn = tf.random.stateless_uniform(shape, seed, 0, each, tf.int64)
        else:
            drawn = tf.fill(shape, before % each)
        places = drawn + each * tf.range(n, dtype=tf.int64)[:, tf.newaxis]
        return [tf.gather(batches, tf.reshape(places, [-1])) for batches in self._batches]

    def _losses(self, x, batches):
        """The loss `[nodes, trials]` and its gradient `[nodes, trials, d]`, of each by itself."""
        one_by_one = tf.reshape(x, [-1, self.problem.dimension])
        with tf.GradientTape() as tape:
            tape.watch(one_by_one)
            losses = tf.vectorized_map(
                lambda both: self.problem.loss(both[0], *both[1]), (one_by_one, batches)
            )
        gradient = tape.gradient(losses, one_by_one)  # of the sum: each depends on its own x alone
        return tf.reshape(losses, x.shape[:2]), tf.reshape(gradient, x.shape)

    def _mix(self, y, before):
        if len(self._mixers) == 1:
            return self._mixers[0](y)
        branches = [functools.partial(mixer, y) for mixer in self._mixers]
        return tf.switch_case(tf.cast(before % len(branches), tf.int32), branches)

    @functools.cached_property
    def _mean_loss(self):
        """`[trials, d] -> [trials]`: f, over blocks, each with the weight of its samples."""
        shared = _shared(_blocks, self.problem)
        all_samples = self.problem.nodes * self.problem.samples

        def of_block(x, block):
            return tf.vectorized_map(lambda one: self.problem.loss(one, *block), x)

        @tf.function(autograph=False)
        def mean_loss(x):
            blocks, rest = shared
            losses = tf.map_fn(lambda b: of_block(x, b), blocks, fn_output_signature=self._dtype)
            total = blocks[0].shape[1] * tf.reduce_sum(losses, axis=0)
            if len(rest[0]):
                total += len(rest[0]) * of_block(x, rest)
            return total / all_samples

        return mean_loss


def _number(value, name: str, accepted: str, fits) -> float:
    number = _validate.number(value)
    if number is None or not fits(number):
        raise ValueError(f"{name} must be a number {accepted}, received {value!r}.")
    return number


def _check_size(problem: Problem, trials: int, batch: int, has_batches: bool):
    """Before anything is allocated: what a step and a look hold at least, beside what is there."""
    n, item = problem.nodes, np.asarray(problem.initial).dtype.itemsize
    sample = sum(math.prod(np.shape(array)[2:]) for array in problem.data)
    floats = 6 * problem.dimension + 2 * batch * sample  # x, its gradient, y, mixed y, …
    samples = n * problem.samples  # in blocks, of the mean loss
    if not has_batches:
        samples += samples * batch // math.gcd(batch, problem.samples)
    needed = item * (n * trials * floats + samples * sample) + 700 * n  # the topology
    what = f"A simulation of {n} nodes x {trials} trials x {problem.dimension} parameters"
    memory.check(needed, what)


class _Tensors(list):
    """What simulations of one problem share: unlike a list it can be referred to weakly."""


_in_use = weakref.WeakValueDictionary()  # for as long as one of them holds it


def _shared(make, *arguments) -> _Tensors:
    """What `make(*arguments)` has made, or makes now."""
    key = (make, *arguments)
    found = _in_use.get(key)
    if found is None:
        found = _in_use[key] = _Tensors(make(*arguments))
    return found


def _dtype_of(problem: Problem) -> tf.DType:
    return tf.as_dtype(np.asarray(problem.initial).dtype)


def _tensor(array: np.ndarray, problem: Problem) -> tf.Tensor:
    """Floats become those of the parameters."""
    is_float = np.issubdtype(array.dtype, np.floating)
    return tf.constant(array, _dtype_of(problem) if is_float else None)


def _batches(problem: Problem, batch: int, seed: int | None) -> list[tf.Tensor]:
    """`[nodes * batches of a node, batch, …]`, of each array."""
    places = _places(problem.samples, batch, seed)
    return [
        tf.reshape(_tensor(array[:, places], problem), [-1, batch, *array.shape[2:]])
        for array in map(np.asarray, problem.data)
    ]


def _blocks(problem: Problem) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """`[blocks, samples, …]` of so many nodes each, and `[rest, …]` of those that are left."""
    n, samples = problem.nodes, problem.samples
    together = max(1, min(n, _BLOCK // samples))
    end = n - n % together  # of the nodes in blocks
    blocks, rest = [], []
    for array in map(np.asarray, problem.data):
        shape = [-1, together * samples, *array.shape[2:]]
        blocks.append(tf.reshape(_tensor(array[:end], problem), shape))
        rest.append(tf.reshape(_tensor(array[end:], problem), [-1, *array.shape[2:]]))
    return blocks, rest


def _places(samples: int, batch: int, seed: int | None) -> np.ndarray:
    """`[batches, batch]`: a node's samples, over and over until they make whole batches."""
    order = np.arange(samples)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    return np.tile(order, batch // math.gcd(batch, samples)).reshape(-1, batch)
