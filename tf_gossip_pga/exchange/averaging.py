"""WHAT is averaged: variables -> flat chunks of one type -> exchange -> assign.

Each exchange is one traced function, built once: one for every round of the topology, one for the
global average.

Where a worker has several devices, a variable is TensorFlow's mirrored one: reading it gives the
first device's value, and whatever is assigned or added reaches all of them.
"""

import functools

import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.exchange import bucket
from tf_gossip_pga.exchange import collectives as collectives_lib
from tf_gossip_pga.exchange import wire as wire_lib


class Traced:
    """A function of tensors, traced at its first call and never again.

    A concrete function cannot retrace, and spares TensorFlow's warning about many small functions
    of one name, which every `fit` of a program would bring nearer.

    Attributes:
      total: how many functions this process has traced so far.
    """

    total = 0

    def __init__(self, body):
        self._body = body
        self._concrete = None

    def __call__(self, *tensors):
        if self._concrete is None:
            function = tf.function(self._count, autograph=False)
            self._concrete = function.get_concrete_function(*tensors)
        return self._concrete(*tensors)

    def _count(self, *tensors):
        Traced.total += 1  # Python runs this when it traces
        return self._body(*tensors)


class Averager:
    """Gossip, global average and broadcast of one model's variables.

    Args:
      collectives: the exchanges of this process.
      topology: who averages with whom.
      parameters: variables that every gossip and every global average mixes.
      statistics: variables that only global averages mix (BatchNorm's moving mean and variance).
      others: variables that are only broadcast (the optimizer's).
      timeout_s: seconds that an exchange may wait for other workers.
      start_timeout_s: the same for what happens before the first step.
      slots: those of `others` that `average_slots` mixes (momentum and the like).
      wire: in what form a gossip sends parameters.

    Attributes:
      bytes_sent: bytes of payload that this rank has sent since it was built; of a broadcast, one
        copy, though rank 0 sends several when there are many ranks.
    """

    def __init__(
        self,
        collectives: collectives_lib.Collectives,
        topology: topology_lib.Topology,
        parameters,
        statistics,
        others,
        timeout_s: float,
        start_timeout_s: float,
        slots=(),
        wire: wire_lib.Wire = wire_lib.BY_NAME["float32"],
    ):
        self.bytes_sent = 0
        self._collectives = collectives
        self._generation = collectives.generation
        self._topology = topology
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._parameters = bucket.Bucket(parameters)
        self._statistics = bucket.Bucket(statistics)
        self._slots = bucket.Bucket(slots)
        self._others = list(others)
        self._everything = bucket.Bucket([*parameters, *statistics, *others])
        self._wire = wire
        # What the replicas had after the last global average: where rounded differences start from.
        self._reference = []
        if wire.lossy and any(len(one.edge_weights) for one in topology.cycle):
            self._reference = [tf.Variable(chunk) for chunk in self._parameters.pack()]
        # A key is bound to one group, one kind of exchange and one length. A gossip and a broadcast
        # may share some, since their groups differ.
        counts = [
            max(len(self._parameters), len(self._everything)),
            len(self._parameters) + len(self._statistics),
            len(self._slots),
        ]
        first_key = collectives.reserve_instance_keys(sum(counts), "the start", start_timeout_s)
        self._key_of_sent = first_key
        self._key_of_means = first_key + counts[0]
        self._key_of_slots = first_key + counts[0] + counts[1]
        self._gossip_bytes = [
            sum(sender == collectives.place for color in colors for sender, _ in color)
            * sum(wire.bytes(length, dtype.size) for length, dtype in self._parameters.layout)
            for colors in map(topology.colors, range(topology.rounds))
        ]
        # One for each round, since each has peers of its own.
        rounds = range(topology.rounds)
        self._gossip_functions = [Traced(functools.partial(self._gossip, r)) for r in rounds]
        self._change_functions = [Traced(functools.partial(self._changes, r)) for r in rounds]
        self._pack_function = Traced(self._parameters.pack)
        self._apply_function = Traced(lambda *changes: self._parameters.add(changes))
        self._global_function = Traced(self._global_average)
        self._slots_function = Traced(self._average_slots)
        self._broadcast_function = Traced(functools.partial(self._broadcast, self._key_of_sent))
        self._started = False  # a gossip, that is not finished

    def anew(self, topology: topology_lib.Topology) -> "Averager":
        """One for the same variables and the present members of the cluster."""
        return Averager(
            self._collectives,
            topology,
            self._parameters.variables,
            self._statistics.variables,
            self._others,
            self._timeout_s,
            self._start_timeout_s,
            self._slots.variables,
            self._wire,
        )

    def averages(self, parameters, statistics, others, slots=()) -> bool:
        """Whether it was built for exactly these variables and the present members."""
        if self._generation != self._collectives.generation:  # its keys are those of its own
            return False
        mine = self._everything.variables + self._slots.variables
        return [id(v) for v in mine] == [id(v) for v in (*parameters, *statistics, *others, *slots)]

    def gossip(self, round: int, doing: str):
        """Mixes the parameters with this round's neighbours: x_i <- sum_j W[i, j] * x_j."""
        round %= self._topology.rounds
        if not len(self._topology.cycle[round].edge_weights):
            return
        with self._collectives.waiting(doing, self._timeout_s):
            self._gossip_functions[round]()
        self.bytes_sent += self._gossip_bytes[round]

    def start_gossip(self, round: int, doing: str):
        """Begins a gossip of the parameters as they are now, and returns while it is under way.

        The parameters may change meanwhile. `finish_gossip` must follow before the next exchange
        that changes them.
        """
        round %= self._topology.rounds
        if not len(self._topology.cycle[round].edge_weights):
            return
        # The values, not the variables: TensorFlow copies a variable when an optimizer is about to
        # change it in place while somebody else holds its value.
        exchange = functools.partial(self._change_functions[round], *self._pack_function())
        self._collectives.begin(exchange, doing, self._timeout_s)
        self._started = True
        self.bytes_sent += self._gossip_bytes[round]

    def finish_gossip(self, apply: bool = True):
        """Waits for the gossip that was begun, if any: x_i <- x_i + (sum_j W[i, j] * x'_j - x'_i).

        Args:
          apply: whether the parameters take it; a global average makes it pointless.
        """
        started, self._started = self._started, False
        if started:
            changes = self._collectives.finish()
            if apply and changes is not None:
                self._apply_function(*changes)

    def global_average(self, doing: str) -> tuple[float, float]:
        """Sets parameters and statistics to their means over ranks: x_i <- 1/n sum_j x_j.

        Returns:
          `(|x_i - mean|^2, |mean|^2)` of the parameters, with this rank's x_i before averaging. The
          mean is the same everywhere: rank 0 takes its norm for all, the others return 0.
        """
        with self._collectives.waiting(doing, self._timeout_s):
            distance, norm = self._global_function().numpy()
        self._collectives.hear()
        self._count_all_reduce(self._parameters.bytes + self._statistics.bytes)
        return float(distance), float(norm)

    def average_slots(self, doing: str):
        """Sets the slots to their means over ranks."""
        if not len(self._slots):
            return
        with self._collectives.waiting(doing, self._timeout_s):
            self._slots_function()
        self._count_all_reduce(self._slots.bytes)

    def clear_slots(self):
        """Sets the slots to zero, without an exchange."""
        for variable in self._slots.variables:
            variable.assign(tf.zeros_like(variable))

    def _count_all_reduce(self, sent: int):
        # In a ring every piece travels n-1 times to be summed and n-1 times to be copied.
        size = self._collectives.size
        self.bytes_sent += round(2 * (size - 1) / size * sent)

    def broadcast(self, doing: str):
        """Sets all variables, `others` too, to rank 0's."""
        with self._collectives.waiting(doing, self._start_timeout_s):
            self._broadcast_function()
        if self._collectives.place == 0 and self._collectives.size > 1:
            self.bytes_sent += self._everything.bytes

    def welcome(self, source: int, is_new: bool):
        """Sets all variables of new members to those of the member at place `source`."""
        doing, count = "the welcome", len(self._everything)
        # A key of a broadcast is bound to its source, too.
        key = self._collectives.reserve_instance_keys(count, doing, self._start_timeout_s)
        with self._collectives.waiting(doing, self._start_timeout_s):
            Traced(functools.partial(self._broadcast, key, source, is_new))()
        if self._collectives.place == source:
            self.bytes_sent += self._everything.bytes

    def snapshot(self) -> list[tf.Tensor]:
        """Copies of parameters and statistics, each where it lies, for `restore`."""
        copies = []
        for variable in self._on_all_devices():
            with tf.device(variable.device):
                copies.append(tf.identity(variable))
        return copies

    def restore(self, snapshot: list[tf.Tensor]):
        """Puts back what `snapshot` returned."""
        for variable, value in zip(self._on_all_devices(), snapshot, strict=True):
            variable.assign(value)

    def _gossip(self, round: int):
        self._parameters.add(self._changes(round, *self._parameters.pack()))

    def _changes(self, round: int, *chunks):
        """What a gossip adds to each chunk: sum_j W[i, j] * x_j - x_i, at least float32."""
        weights, _ = self._topology.neighbors(round, self._collectives.place)
        sources, encode = chunks, self._wire.encode
        if self._reference:
            sources, encode = list(zip(chunks, self._reference, strict=True)), self._difference
        exchanged = self._collectives.exchange(
            sources, self._topology.colors(round), self._key_of_sent, encode
        )
        changes = []
        for chunk, (message, arrived, sent) in zip(chunks, exchanged, strict=True):
            with tf.control_dependencies(sent):
                own = self._decode(message, chunk)
                parts = [
                    weight * (self._decode(arrived[sender], chunk) - own)
                    for sender, weight in weights.items()
                ]
                changes.append(tf.add_n(parts) if parts else tf.zeros_like(own))
        return changes

    def _difference(self, pair):
        """The message that tells how far a chunk is from its reference."""
        chunk, reference = pair
        return self._wire.encode(bucket.wide(chunk) - bucket.wide(reference))

    def _decode(self, message, chunk):
        return tf.cast(self._wire.decode(message, chunk.shape[0]), bucket.wide(chunk).dtype)

    def _global_average(self):
        self._merge_statistics()
        chunks = self._parameters.pack()
        means = self._collectives.mean([*chunks, *self._statistics.pack()], self._key_of_means)
        squares = tf.zeros([2], tf.float64)  # of the distance and of the norm
        for chunk, mean in zip(chunks, means[: len(chunks)], strict=True):
            distance = tf.nn.l2_loss(bucket.wide(chunk) - bucket.wide(mean))
            norm = tf.nn.l2_loss(bucket.wide(mean)) if self._collectives.place == 0 else 0.0
            squares += 2 * tf.stack([tf.cast(distance, tf.float64), tf.cast(norm, tf.float64)])
        self._parameters.assign(means[: len(chunks)])
        self._statistics.assign(means[len(chunks) :])
        self._remember(means[: len(chunks)])
        return squares

    def _merge_statistics(self):
        """Sets the statistics to their means over this worker's devices.

        Keras updates parameters alike on all devices, but BatchNorm's statistics with what each
        device has seen.
        """
        for variable in self._statistics.variables:
            replicas = self._replicas(variable)
            if len(replicas) > 1:
                variable.assign(tf.reduce_mean(tf.stack(replicas), 0))

    def _replicas(self, variable) -> tuple[tf.Variable, ...]:
        """A variable on each of this worker's devices."""
        return self._collectives.cluster.strategy.experimental_local_results(variable)

    def _on_all_devices(self) -> list[tf.Variable]:
        variables = self._parameters.variables + self._statistics.variables
        return [replica for variable in variables for replica in self._replicas(variable)]

    def _average_slots(self):
        self._slots.assign(self._collectives.mean(self._slots.pack(), self._key_of_slots))

    def _broadcast(self, first_key: int, source: int = 0, is_taken: bool = True):
        chunks = self._everything.pack()
        received = self._collectives.broadcast(chunks, first_key, source)
        if is_taken:
            self._everything.assign(received)
            self._remember(self._parameters.pack())
        with tf.control_dependencies(received):
            return tf.constant(0)

    def _remember(self, chunks):
        """Takes as the reference what all replicas have now."""
        if self._reference:
            for reference, chunk in zip(self._reference, chunks, strict=True):
                reference.assign(chunk)


def consensus_distance(distances: list[tuple[float, float]]) -> float:
    """Root mean square distance of the replicas from their mean, over the norm of the mean.

    Args:
      distances: what `Averager.global_average` returned on each rank.
    """
    squares = np.array(distances)  # [ranks, 2] float64
    return float(np.sqrt(squares[:, 0].mean() / max(squares[0, 1], 1e-300)))
