"""Average one model's variables: variables -> flat chunks of one dtype -> exchange -> assign.

Each exchange is one traced function, built once: one for every round of the topology, one for the
global average.

Where a worker has several devices, a variable is TensorFlow's mirrored one. Reading it gives the
first device's value, and whatever is assigned or added reaches all devices.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.exchange.health import Health
from tf_gossip_pga.exchange.mixing import Mixer
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.exchange.traced import Traced


@dataclasses.dataclass(frozen=True)
class Variables:
    """The `tf.Variable`s of one model and its optimizer, by what becomes of them.

    Attributes:
      parameters: what every gossip and every global average mixes.
      statistics: what only global averages mix (BatchNorm's moving mean and variance).
      others: what is only broadcast (integers, the optimizer's variables).
      slots: those of `others` that `Averager.average_slots` mixes (momentum and the like).
    """

    parameters: list
    statistics: list = dataclasses.field(default_factory=list)
    others: list = dataclasses.field(default_factory=list)
    slots: list = dataclasses.field(default_factory=list)

    def are(self, other: Variables) -> bool:
        """Return whether these are the very same variables in the same places."""
        return self._ids == other._ids

    @property
    def _ids(self) -> list[list[int]]:
        lists = (self.parameters, self.statistics, self.others, self.slots)
        return [[id(variable) for variable in each] for each in lists]


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long exchanges wait for other workers, in seconds.

    Attributes:
      exchange_s: an exchange in training.
      start_s: an exchange before the first step, or after a change of the view.
    """

    exchange_s: float
    start_s: float


@dataclasses.dataclass(frozen=True)
class Averaged:
    """What a global average has found beside the means.

    Attributes:
      squares: `(|x_i - mean|^2, |mean|^2)` of the parameters, with this rank's x_i before
        averaging. The mean is the same everywhere: rank 0 computes its norm for all, the others
        have 0.
      non_finite: the first step since the last global average after which a rank's own parameters
        were not finite, by rank.
      sums: the sums over ranks of the numbers that they passed, float64.
    """

    squares: tuple[float, float]
    non_finite: dict[int, int]
    sums: np.ndarray


class Averager:
    """Gossip, global average and broadcast of one model's variables.

    Args:
      session: the exchanges of this process. The averager belongs to its present view.
      topology: who averages with whom.
      variables: what is averaged.
      patience: how long exchanges wait for other workers.
      wire: in what form a gossip sends parameters.
      numbers: how many numbers of each rank a global average sums beside the variables.
      health: what is known of the same parameters; None for nothing yet.

    Attributes:
      health: what this rank knows of its own parameters.
      bytes_sent: payload in bytes that this rank has sent since the averager was built. A broadcast
        counts as one copy, though rank 0 sends several when there are many ranks.
    """

    def __init__(
        self,
        session: SoloSession,
        topology: Topology,
        variables: Variables,
        patience: Patience,
        wire: wire_lib.Wire = wire_lib.BY_NAME["float32"],
        numbers: int = 0,
        health: Health | None = None,
    ):
        self.bytes_sent = 0
        self._session = session
        self._view = session.view
        self._ops = session.ops
        self._topology = topology
        self._variables = variables
        self._patience = patience
        self._wire = wire
        self._parameters = buckets.Bucket(variables.parameters)
        self.health = health or Health(self._parameters)
        self._statistics = buckets.Bucket(variables.statistics)
        self._numbers = numbers
        self._passed = tf.Variable(tf.zeros([session.cluster.size + numbers]))
        self._passengers = buckets.Bucket([*variables.statistics, self._passed])
        self._slots = buckets.Bucket(variables.slots)
        self._everything = buckets.Bucket(
            [*variables.parameters, *variables.statistics, *variables.others]
        )
        self._started = False  # a gossip in the background that is not finished
        # A key is bound to one group, one kind of exchange and one length. A gossip and a broadcast
        # may share some, since their groups differ.
        sent = max(len(self._parameters), len(self._everything))
        means = len(self._parameters) + len(self._passengers)
        first_key = session.reserve_keys(
            sent + means + len(self._slots), "the start", patience.start_s
        )
        self._mixer = Mixer(self._ops, topology, self._parameters, wire, first_key)
        self._key_of_means = first_key + sent
        self._key_of_slots = self._key_of_means + means
        rounds = range(topology.rounds)  # each has peers of its own
        self._gossip_bytes = [self._mixer.bytes_sent(r) for r in rounds]
        self._gossips = [Traced(functools.partial(self._gossip, r)) for r in rounds]
        self._changes = [Traced(functools.partial(self._changes_of, r)) for r in rounds]
        self._pack = Traced(self._parameters.pack)
        self._add = Traced(lambda *changes: self._parameters.add(changes))
        self._average_all = Traced(self._global_average)
        self._average_all_slots = Traced(self._mean_of_slots)
        self._broadcast = Traced(functools.partial(self._broadcast_from, first_key))

    def rebuilt(self, topology: Topology) -> Averager:
        """Return an averager for the same variables and the present members."""
        return Averager(
            self._session,
            topology,
            self._variables,
            self._patience,
            self._wire,
            self._numbers,
            self.health,
        )

    def serves(self, variables: Variables) -> bool:
        """Return whether it was built for exactly these variables and the present view."""
        return self._view == self._session.view and self._variables.are(variables)

    def gossip(self, round: int, doing: str):
        """Mix the parameters with this round's neighbors: x_i <- sum_j W[i, j] * x_j."""
        step, round = round + 1, round % self._topology.rounds
        if self._topology.cycle[round].is_empty:
            return
        self.health.steps.append(step)
        with self._session.waiting(doing, self._patience.exchange_s):
            self._gossips[round]()
        self.bytes_sent += self._gossip_bytes[round]

    def start_gossip(self, round: int, doing: str):
        """Begin a gossip of the present parameters; return while it is under way.

        The parameters may change meanwhile. `finish_gossip` must follow before the next exchange
        that changes them.
        """
        step, round = round + 1, round % self._topology.rounds
        if self._topology.cycle[round].is_empty:
            return
        # The values, not the variables: TensorFlow copies a variable when an optimizer is about to
        # change it in place while somebody else holds its value.
        chunks = self._pack()
        exchange = functools.partial(self._changes[round], *chunks)
        self.health.steps.append(step)
        self._session.begin(exchange, doing, self._patience.exchange_s)
        self._started = True
        self.bytes_sent += self._gossip_bytes[round]

    def finish_gossip(self, apply: bool = True):
        """Wait for the gossip under way, if any: x_i <- x_i + (sum_j W[i, j] * x'_j - x'_i).

        Args:
          apply: whether the parameters take it; a global average makes it pointless.
        """
        started, self._started = self._started, False
        if started:
            changes = self._session.finish()
            if apply and changes is not None:
                self._add(*changes)

    def global_average(self, doing: str, step: int = 0, numbers=None) -> Averaged:
        """Set parameters and statistics to their means over ranks: x_i <- 1/n sum_j x_j.

        Args:
          doing: the exchange's name in messages.
          step: the number of completed steps.
          numbers: what else to sum over ranks, as many float32 as were announced; None for zeros.
        """
        self.health.steps.append(step)
        with self._session.waiting(doing, self._patience.exchange_s):
            passed = tf.constant(0.0 if numbers is None else numbers, tf.float32, [self._numbers])
            found = self._average_all(passed).numpy()
        self._session.heard_all()
        self._count_all_reduce(self._parameters.bytes + self._passengers.bytes)
        distance, norm, *_ = found.tolist()
        ends = len(found) - self._numbers
        return Averaged((distance, norm), self.health.first_steps(found[2:ends]), found[ends:])

    def average_slots(self, doing: str):
        """Set the slots to their means over ranks."""
        if not len(self._slots):
            return
        with self._session.waiting(doing, self._patience.exchange_s):
            self._average_all_slots()
        self._count_all_reduce(self._slots.bytes)

    def clear_slots(self):
        """Set the slots to zero, without an exchange."""
        for variable in self._slots.variables:
            variable.assign(tf.zeros_like(variable))

    def broadcast(self, doing: str):
        """Set all variables, `others` too, to rank 0's."""
        with self._session.waiting(doing, self._patience.start_s):
            self._broadcast()
        if self._session.place == 0 and self._session.size > 1:
            self.bytes_sent += self._everything.bytes

    def transfer_state(self, source: int, is_new: bool):
        """Set all variables of new members to those of the member at place `source`.

        All members call it; only those that are new take what arrives.
        """
        doing, count = "the state transfer", len(self._everything)
        # A broadcast's key is bound to its source, too.
        key = self._session.reserve_keys(count, doing, self._patience.start_s)
        with self._session.waiting(doing, self._patience.start_s):
            Traced(functools.partial(self._broadcast_from, key, source, is_new))()
        if self._session.place == source:
            self.bytes_sent += self._everything.bytes

    def snapshot(self) -> list[tf.Tensor]:
        """Return copies of parameters and statistics, each where it lies, for `restore`."""
        copies = []
        for variable in self._on_all_devices():
            with tf.device(variable.device):
                copies.append(tf.identity(variable))
        return copies

    def restore(self, snapshot: list[tf.Tensor]):
        """Put back what `snapshot` returned."""
        for variable, value in zip(self._on_all_devices(), snapshot, strict=True):
            variable.assign(value)

    def digests(self) -> tuple[str, str]:
        """Return digests of the parameters and of the statistics, equal where all bits are."""
        return _digest(self._parameters.variables), _digest(self._statistics.variables)

    def _count_all_reduce(self, sent: int):
        # In a ring every piece travels n-1 times to be summed and n-1 times to be copied.
        size = self._session.size
        self.bytes_sent += round(2 * (size - 1) / size * sent)

    def _gossip(self, round: int):
        self._parameters.add(self._changes_of(round, *self._parameters.pack()))

    def _changes_of(self, round: int, *chunks):
        self.health.note(chunks)
        return self._mixer.changes(round, *chunks)

    def _global_average(self, numbers):
        self._merge_statistics()
        chunks = self._parameters.pack()
        self.health.note(chunks)
        cluster = self._session.cluster
        non_finite = tf.one_hot(cluster.rank, cluster.size) * self.health.take_count()
        self._passed.assign(tf.concat([non_finite, numbers], 0))
        means = self._ops.mean([*chunks, *self._passengers.pack()], self._key_of_means)
        squares = tf.zeros([2], tf.float64)  # of the distance and of the norm
        for chunk, mean in zip(chunks, means[: len(chunks)], strict=True):
            distance = tf.nn.l2_loss(buckets.wide(chunk) - buckets.wide(mean))
            norm = tf.nn.l2_loss(buckets.wide(mean)) if self._session.place == 0 else 0.0
            squares += 2 * tf.stack([tf.cast(distance, tf.float64), tf.cast(norm, tf.float64)])
        self._parameters.assign(means[: len(chunks)])
        self._passengers.assign(means[len(chunks) :])
        self._mixer.remember(means[: len(chunks)])
        return tf.concat([squares, tf.cast(self._passed, tf.float64) * self._ops.size], 0)

    def _merge_statistics(self):
        """Set the statistics to their means over this worker's devices.

        Keras updates parameters equally on all devices, but BatchNorm's statistics with what each
        device has seen.
        """
        for variable in self._statistics.variables:
            replicas = self._replicas(variable)
            if len(replicas) > 1:
                variable.assign(tf.reduce_mean(tf.stack(replicas), 0))

    def _replicas(self, variable) -> tuple[tf.Variable, ...]:
        """Return a variable's copies, one for each of this worker's devices."""
        return self._session.cluster.strategy.experimental_local_results(variable)

    def _on_all_devices(self) -> list[tf.Variable]:
        variables = self._parameters.variables + self._statistics.variables
        return [replica for variable in variables for replica in self._replicas(variable)]

    def _mean_of_slots(self):
        self._slots.assign(self._ops.mean(self._slots.pack(), self._key_of_slots))

    def _broadcast_from(self, first_key: int, source: int = 0, is_taken: bool = True):
        received = self._ops.broadcast(self._everything.pack(), first_key, source)
        if is_taken:
            self._everything.assign(received)
            self._mixer.remember(self._parameters.pack())
        with tf.control_dependencies(received):
            return tf.constant(0)


def _digest(variables: list) -> str:
    """Return 16 bytes, as hexadecimal digits, that stand for the values of variables."""
    digest = hashlib.blake2b(digest_size=16)
    for variable in variables:
        digest.update(variable.numpy().reshape(-1).view(np.uint8))
    return digest.hexdigest()


def consensus_distance(distances: list[tuple[float, float]]) -> float:
    """Return the replicas' root mean square distance from their mean, over the norm of the mean.

    Args:
      distances: `Averaged.squares` of each rank.
    """
    squares = np.array(distances)  # [ranks, 2] float64
    return float(np.sqrt(squares[:, 0].mean() / max(squares[0, 1], 1e-300)))
