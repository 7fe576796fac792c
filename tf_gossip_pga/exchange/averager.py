"""Average one model's variables: pack them into flat chunks, exchange the chunks, and unpack them.

Gossips, global averages and broadcasts are functions that TensorFlow traces once. Gossips have
separate functions for each round of the topology, because the neighbors differ.

On a worker with several devices, TensorFlow mirrors each variable. Reading a variable returns the
first device's value; assigning or adding to a variable changes it on all devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange import buckets
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.exchange.copying import copy, copying
from tf_gossip_pga.exchange.group_ops import KEYS_PER_CHUNK
from tf_gossip_pga.exchange.health import Health
from tf_gossip_pga.exchange.mixing import Mixer
from tf_gossip_pga.exchange.outer_state import OuterState
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.exchange.traced import Traced

# Returns a context manager inside which an exchange runs.
Record = Callable[[], contextlib.AbstractContextManager[None]]
_UNRECORDED: Record = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Variables:
    """The variables of one model and its optimizers, grouped by how they are exchanged.

    All are instances of `tf.Variable`.

    Attributes:
      parameters: variables that are mixed by gossips and averaged by global averages.
      statistics: variables that only global averages change (BatchNorm's moving mean and variance).
      others: variables that neither gossips nor global averages change (integers, optimizer
        variables). Broadcasts and state transfers copy them.
      slots: the optimizer slots in `others`, such as momentum. `Averager.average_slots` averages
        them.
      outer: the state of the outer optimizer of `parameters`, or None. Broadcasts and state
        transfers copy its variables.
    """

    parameters: list
    statistics: list = dataclasses.field(default_factory=list)
    others: list = dataclasses.field(default_factory=list)
    slots: list = dataclasses.field(default_factory=list)
    outer: OuterState | None = None

    @property
    def of_outer(self) -> list:
        """Return the variables of the outer optimizer."""
        return self.outer.variables if self.outer else []

    @property
    def everything(self) -> list:
        """Return all variables that broadcasts and state transfers copy."""
        return [*self.parameters, *self.statistics, *self.others, *self.of_outer]

    def are(self, other: Variables) -> bool:
        """Return whether `other` holds the same variable objects as this one, in the same order."""
        return self._ids == other._ids

    @property
    def _ids(self) -> list[list[int]]:
        lists = (self.parameters, self.statistics, self.others, self.slots, self.of_outer)
        return [[id(variable) for variable in each] for each in lists]


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long exchanges wait for other workers, in seconds.

    Attributes:
      exchange_s: for an exchange during training.
      start_s: for an exchange at the start of `fit`, at a sync point, or after a view change.
    """

    exchange_s: float
    start_s: float


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The results of a global average, apart from the means.

    Attributes:
      squares: `(|x_i - mean|^2, |mean|^2)` of the parameters, where x_i are this rank's parameters
        before the average. Because the mean is the same on all ranks, only the first member
        computes the mean's norm; on the others, the second number is 0.
      non_finite: `{rank: step}`: for each rank whose own parameters were not finite, the first such
        step since the previous global average.
      sums: the numbers passed to `Averager.global_average`, summed over ranks, `[numbers]` float64.
    """

    squares: tuple[float, float]
    non_finite: dict[int, int]
    sums: np.ndarray


class Averager:
    """Gossip, average globally, and broadcast one model's variables.

    Args:
      session: runs the exchanges of this process. The averager is valid only for the session's
        current view.
      topology: which members average with each other.
      variables: the variables to exchange.
      patience: how long exchanges wait for other workers.
      wire: the encoding of gossips. Default: each variable in its own dtype.
      numbers: how many numbers of each rank a global average also sums over ranks. Default 0.
      health: the checks of an earlier averager of these parameters, to continue them. Default None:
        create new ones.

    Attributes:
      health: the checks of this rank's own parameters.
      bytes_sent: number of payload bytes that this rank has sent since the averager was built. A
        broadcast counts as one copy, although the sender may send several.
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
        """Reserve instance keys (see `group_ops`), which is an exchange: all members must do it."""
        self.bytes_sent = 0
        self._session = session
        self._view = session.view
        self._ops = session.ops
        self._topology = topology
        self._variables = variables
        self._patience = patience
        self._wire = wire
        self._parameters = self._bucket(variables.parameters)
        self.health = health or Health(self._parameters)
        self._statistics = self._bucket(variables.statistics)
        self._numbers = numbers
        # Sent with a global average: each rank's count of non-finite exchanges, and the numbers.
        self._passed = tf.Variable(tf.zeros([session.cluster.size + numbers]))
        self._passengers = self._bucket([*variables.statistics, self._passed])
        self._slots = self._bucket(variables.slots)
        self._everything = self._bucket(variables.everything)
        self._started = False  # whether a gossip is running in the background
        # An instance key is bound to one kind of exchange, and to one message length.
        gossips, broadcasts = KEYS_PER_CHUNK * len(self._parameters), len(self._everything)
        means, slots = len(self._parameters) + len(self._passengers), len(self._slots)
        count = gossips + broadcasts + means + slots
        first_key = session.reserve_keys(count, "the start", patience.start_s)
        self._mixer = Mixer(self._ops, topology, self._parameters, wire, first_key)
        self._key_of_means = first_key + gossips + broadcasts
        self._key_of_slots = self._key_of_means + means
        rounds = range(topology.rounds)  # each has different neighbors
        self._gossip_bytes = [self._mixer.bytes_sent(r) for r in rounds]
        self._gossips = [Traced(functools.partial(self._gossip, r)) for r in rounds]
        self._changes = [Traced(functools.partial(self._changes_of, r)) for r in rounds]
        self._pack = Traced(self._parameters.pack)
        self._add = Traced(lambda *changes: self._parameters.add(changes))
        self._average_all = Traced(self._global_average)
        self._average_all_slots = Traced(self._mean_of_slots)
        remember = Traced(lambda: self._mixer.remember(self._parameters.pack()))
        self._remember = remember if wire.lossy else lambda: None
        self._broadcast = copying(self._ops, self._everything, first_key + gossips)

    def _bucket(self, variables: list) -> buckets.Bucket:
        return buckets.Bucket(variables, self._ops.transport.message_bytes)

    def rebuilt(self, topology: Topology) -> Averager:
        """Return an averager of the same variables for the current members and their topology."""
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
        """Return whether this averager was built for exactly these variables and this view."""
        return self._view == self._session.view and self._variables.are(variables)

    def gossip(self, round: int, doing: str, step: int = 0):
        """Mix the parameters with this round's neighbors: x_i <- sum_j W[i, j] * x_j.

        Args:
          round: number of the round, counted from 0. The topology's rounds repeat in a cycle.
          doing: name of the exchange, for log and error messages.
          step: number of completed steps. Default 0.
        """
        round %= self._topology.rounds
        if self._topology.cycle[round].is_empty:
            return
        self.health.steps.append(step)
        with self._session.waiting(doing, self._patience.exchange_s):
            self._gossips[round]()
        self.bytes_sent += self._gossip_bytes[round]

    def start_gossip(self, round: int, doing: str, step: int = 0, record: Record = _UNRECORDED):
        """Start a gossip of the current parameters in the background, inside `record()`.

        The parameters may change while the gossip runs. Call `finish_gossip` before the next
        exchange that changes them. The other arguments are the same as for `gossip`.
        """
        round %= self._topology.rounds
        if self._topology.cycle[round].is_empty:
            return
        # Pass values, not variables. The values stay as they are: while another op holds a
        # variable's value, TensorFlow copies the variable before an optimizer changes it in place.
        chunks = self._pack()
        exchange = functools.partial(_inside, record, self._changes[round], *chunks)
        self.health.steps.append(step)
        self._session.begin(exchange, doing, self._patience.exchange_s)
        self._started = True
        self.bytes_sent += self._gossip_bytes[round]

    def finish_gossip(self, apply: bool = True):
        """Wait for the background gossip, and apply it: x_i <- x_i + (sum_j W[i, j] * x'_j - x'_i).

        x' are the parameters at the time of `start_gossip`. Does nothing if no gossip is running.

        Args:
          apply: whether to change the parameters. Right before a global average, the change would
            have no effect, because a gossip keeps the mean over ranks. Default True.
        """
        started, self._started = self._started, False
        if started and (changes := self._session.finish()) is not None and apply:
            self._add(*changes)

    def global_average(self, doing: str, step: int = 0, numbers=None) -> Averaged:
        """Set the parameters and statistics to their means over ranks: x_i <- 1/n sum_j x_j.

        Args:
          doing: name of the exchange, for log and error messages.
          step: number of completed steps. Default 0.
          numbers: this rank's numbers, to be summed over ranks: float32, as many as the argument
            `numbers` of the constructor says. Default None: zeros.
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
        """Set the optimizer's slots to their means over ranks."""
        if not len(self._slots):
            return
        with self._session.waiting(doing, self._patience.exchange_s):
            self._average_all_slots()
        self._count_all_reduce(self._slots.bytes)

    def clear_slots(self):
        """Set the optimizer's slots to zero, without an exchange."""
        for variable in self._slots.variables:
            variable.assign(tf.zeros_like(variable))

    def step_outer(self):
        """Take the outer optimizer's step, if there is one, from the result of a global average."""
        if self._variables.outer:
            self._variables.outer.step()
            self._remember()

    def copy_outer(self, source: int):
        """Copy the outer optimizer's state, if there is one, from the member with this index."""
        doing, bucket = "the outer state", self._bucket(self._variables.of_outer)
        self.bytes_sent += copy(self._session, bucket, source, True, doing, self._patience.start_s)

    def broadcast(self, doing: str):
        """Copy all variables, including `others`, from the first member."""
        with self._session.waiting(doing, self._patience.start_s):
            self._broadcast()
            self._remember()
        if self._session.place == 0 and self._session.size > 1:
            self.bytes_sent += self._everything.bytes

    def transfer_state(self, source: int, is_new: bool):
        """Copy all variables of one member to the new members. All members must call this.

        Args:
          source: index of the sending member among the members.
          is_new: whether this member is new, and therefore assigns the variables that it receives.
        """
        doing, start_s = "the state transfer", self._patience.start_s
        self.bytes_sent += copy(self._session, self._everything, source, is_new, doing, start_s)
        if is_new:
            self._remember()

    def snapshot(self) -> list[tf.Tensor]:
        """Return copies of the parameters and statistics, on the same devices, for `restore`."""
        copies = []
        for variable in self._on_all_devices():
            with tf.device(variable.device):
                copies.append(tf.identity(variable))
        return copies

    def restore(self, snapshot: list[tf.Tensor]):
        """Restore the parameters and statistics from the result of `snapshot`."""
        for variable, value in zip(self._on_all_devices(), snapshot, strict=True):
            variable.assign(value)

    def digests(self) -> tuple[str, str]:
        """Return digests of the parameters and of the statistics, computed from their bits."""
        return _digest(self._parameters.variables), _digest(self._statistics.variables)

    def _count_all_reduce(self, sent: int):
        # In a ring, each piece is sent n-1 times to be summed and n-1 times to be copied.
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
        squares = tf.zeros([2], tf.float64)  # squared distance, squared norm
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

        Keras updates parameters equally on all devices, but computes BatchNorm's statistics from
        each device's own examples.
        """
        for variable in self._statistics.variables:
            replicas = self._replicas(variable)
            if len(replicas) > 1:
                variable.assign(tf.reduce_mean(tf.stack(replicas), 0))

    def _replicas(self, variable) -> tuple[tf.Variable, ...]:
        """Return a variable's copies, one per device of this worker."""
        return self._session.cluster.strategy.experimental_local_results(variable)

    def _on_all_devices(self) -> list[tf.Variable]:
        variables = self._parameters.variables + self._statistics.variables
        return [replica for variable in variables for replica in self._replicas(variable)]

    def _mean_of_slots(self):
        self._slots.assign(self._ops.mean(self._slots.pack(), self._key_of_slots))


def _inside(record: Record, exchange: Callable[..., Any], *chunks: tf.Tensor) -> Any:
    with record():
        return exchange(*chunks)


def _digest(variables: list) -> str:
    """Return a digest of the variables' values: 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for variable in variables:
        digest.update(variable.numpy().reshape(-1).view(np.uint8))
    return digest.hexdigest()


def consensus_distance(distances: list[tuple[float, float]]) -> float:
    """Return the replicas' root mean square distance from their mean, divided by the mean's norm.

    Args:
      distances: `Averaged.squares` of each rank, beginning with the first member.
    """
    squares = np.array(distances)  # [ranks, 2] float64
    return float(np.sqrt(squares[:, 0].mean() / max(squares[0, 1], 1e-300)))
