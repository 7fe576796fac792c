"""HOW bytes move: TensorFlow's CollectiveOps, and everything one must know to use them safely.

This is the only room that knows collective ops and private names of TensorFlow. It owns the
server, the group keys, the instance keys, the order of exchanges, and what becomes of all that when
workers are lost.

What is public: `tf.distribute.MultiWorkerMirroredStrategy` starts the server;
`tf.raw_ops.CollectiveBcastSendV2` and `CollectiveBcastRecvV2` in a group of two are a directed
edge; in the group of all `CollectiveReduceV2` is the global average, `CollectiveGatherV2` a
meeting.

What is private, all of `context.context()`, tested in `tests/test_collectives.py` and
`tests/test_survival.py`:
  - `abort_collective_ops(code, message)` fails every pending collective of this process, and every
    later one. Public API can only wait.
  - `enable_collective_ops(server)` gives the running server another cluster, which also undoes an
    abort; `_collective_ops_server_def` is the one that the strategy gave it. Public API starts
    another process.
  - `configure_coordination_service(…)` says how long a worker may be silent.
  - `_context_handle` is set once TensorFlow runs, when it is too late to start. Public API says so
    only after rank 0 has answered.

Rules that keep it alive:
  - **Order.** A rank issues its messages chunk by chunk and, within a chunk, by the topology's
    edge colours: one order for all ranks. At most `_MESSAGES_IN_FLIGHT` are under way, each waiting
    for the one so many places before it. The least unfinished message in that order has nobody left
    to wait for, so some message can always finish: no deadlock, even with one in flight, which is
    what NCCL's single stream per device amounts to.
  - **Deadlines are ours.** The ops' own `timeout_seconds` starts two threads for each collective,
    which sleep for the whole timeout even when it is over at once: some minutes of training exhaust
    the process. We pass none, and abort from one watching thread, which asks the late ones through
    `channel` where they are.
  - **Keys.** A group key is bound for life to its members; ours are derived from them and from the
    generation of the cluster, and lie far above those that strategies count up from 1. An instance
    key is bound for life to a shape, and may be used again once its exchange is over: TensorFlow
    keeps a record for every key it has seen and asks the group's leader over the network about a
    new one, so reusing keys is both smaller and faster.
  - **One device of each worker exchanges**, the first. Several devices of one worker train together
    without any collective: the cluster's leader would take those of all workers for one group.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import inspect
import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tf_gossip_pga.cluster import devices
from tf_gossip_pga.cluster import tf_config as cluster_lib
from tf_gossip_pga.coordination import channel, guest, membership, watch
from tf_gossip_pga.errors import ExchangeBroken, TrainingFinished, ViewAbandoned, ViewChanged

# Collectives a rank has under way at once. Two chunks, each sent and received.
_MESSAGES_IN_FLIGHT = 4

# Far above those that strategies count up from 1. Of each generation: the key of all members, of
# all for gathers, and of each edge.
_FIRST_GROUP_KEY = 1 << 20
_FIRST_INSTANCE_KEY = 1 << 20
_KEYS_OF_GATHERS = 32  # one for each power of two

# How long `initialize` waits for the workers that TensorFlow has just found started.
_START_S = 300.0

# TensorFlow's coordination service gives up a worker whose heartbeats, every half of this, have not
# come for so long, and then breaks the exchanges of all others: by default 10 s after one is
# stopped, and once more when those that are left have formed a cluster of their own. So never, in
# practice: what closes its sockets is noticed anyway, and what is silent by `watch`.
_HEARTBEAT_S = 10 * 365 * 86400.0

# How often a guest announces itself, for how long that counts, and how long the others wait for one
# that they have invited.
_ANNOUNCE_S = 0.5
_ANNOUNCED_S = 5.0
_SAY_S = 10.0  # before a guest says that it waits
_ADMIT_S = 120.0

# How often the same exchange may fail, though nobody is lost, before that is the end.
_REGROUPS_IN_VAIN = 3

# Bcast kernels know these types; others of the same width travel in their clothes.
_BCAST_TYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)
_SAME_WIDTH = {1: None, 2: tf.float16, 4: tf.int32, 8: tf.int64}


class Collectives:
    """The exchanges of one process with its cluster. Made by `initialize`, once a process.

    Attributes:
      cluster: this process's place at the start.
      all_workers: the `tf.distribute.MultiWorkerMirroredStrategy` that started the server; absent
        with a single worker.
      completed: number of exchanges that the caller has completed, or missed, in step with all
        other ranks; see `missed`. The caller counts it.
      is_guest: whether it was started to join the others again, and is not a member yet.
      invitation: what it was told when they were ready to take it in, or None.
      missed: how many exchanges others have completed and this rank has not, since it lost them
        with a worker. The caller must leave them out, and counts them down.
    """

    def __init__(self, cluster: cluster_lib.Cluster, joins: bool = False):
        self.cluster = cluster
        self.invitation: guest.Invitation | None = None
        self.is_guest = False
        self.completed = self.missed = 0
        self._guests: dict[int, tuple[dict, float]] = {}  # contact, and when it was told
        self._completed_at_regroup: int | None = None
        self._regroups_in_vain = 0
        self._least_workers: int | None = None  # None: a loss is the end
        self._regroup_s = 0.0
        self._background = concurrent.futures.ThreadPoolExecutor(1, "gossip")
        self._under_way: concurrent.futures.Future | None = None
        if cluster.size == 1:
            return
        gpus = tf.config.get_visible_devices("GPU")
        communication = tf.distribute.experimental.CommunicationImplementation
        # RING is TensorFlow's own, over gRPC. AUTO picks NCCL where the tensors are on GPUs.
        implementation = communication.AUTO if gpus else communication.RING
        self._hint = implementation.value.lower()
        self._messages_in_flight = 1 if gpus else _MESSAGES_IN_FLIGHT
        # Before any waiting: rank 0 may have ended with this same error.
        if context.context()._context_handle is not None:
            raise RuntimeError(_too_late())
        find = guest.await_knock if joins else guest.contacts_if_missed
        known = find(cluster.addresses, cluster.rank)
        self.is_guest = known is not None
        if self.is_guest:
            watch.say(f"Rank {cluster.rank} is to join the others, who train already.")
        else:
            _await_chief(cluster)
        resolver = _resolver({"GPU": 1} if gpus else {})
        if self.is_guest:
            self._server = _server_def(resolver)
            self._join((cluster.rank,), 0)
        else:
            _configure_heartbeats(resolver.cluster_spec())
            with _interruptible():
                self.all_workers = tf.distribute.MultiWorkerMirroredStrategy(
                    resolver,
                    tf.distribute.experimental.CommunicationOptions(implementation=implementation),
                )
            self._server = copy.deepcopy(context.context()._collective_ops_server_def)
        self._device = "/device:GPU:0" if gpus else "/device:CPU:0"
        status = channel.Status()
        self._status = status
        self._channel = channel.Channel(cluster.addresses, cluster.rank, status)
        self._watch = watch.Watch(cluster.rank, cluster.size, self._channel, status, _abort)
        self._membership = membership.Membership(
            self._channel, status, cluster.rank, cluster.size, self._watch.call_off
        )
        self._begin_generation()
        if self.is_guest:
            self._membership.members = (cluster.rank,)  # nobody else's loss is its own
            self._channel.handlers["invite"] = self._take_invitation
            for rank, contact in known.items():
                self._channel.know(rank, contact)
            return
        self._channel.handlers["guest"] = self._receive
        # Here and not in the first `fit`: that a rank never calls it is what to tell the others.
        self._channel.join(self.gather(self._channel.contact, "the start", _START_S))

    def _begin_generation(self):
        """What belongs to the members of one generation: keys, and functions that hold them."""
        self._next_instance_key = _FIRST_INSTANCE_KEY + _KEYS_OF_GATHERS
        # Keys of the same group, wherever a member computes them.
        groups = 2 + self.cluster.size**2
        self._first_group_key = _FIRST_GROUP_KEY + groups * self._membership.generation
        self._gathers = {}
        with tf.device("/device:CPU:0"):
            self._token_of_gathers = tf.Variable(0.0)
        with tf.device(self._device):
            self._tokens = [tf.Variable(0.0) for _ in range(self._messages_in_flight)]

    # ---- Who exchanges --------------------------------------------------------------------------

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that exchange, in order: all, or those that are left."""
        return self.cluster.members

    @property
    def generation(self) -> int:
        """How often they have changed."""
        return self._membership.generation if self.cluster.size > 1 else 0

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.members)

    @property
    def place(self) -> int:
        """This rank's among them, 0 … size-1: its node in topologies."""
        return self.members.index(self.cluster.rank)

    def survive(self, least_workers: int | None, timeout_s: float = 0.0, completed: int = 0):
        """Whether a loss lets those that are left go on, at least so many; None: it is the end.

        The count of completed exchanges begins again: all ranks call it in step.

        Args:
          timeout_s: how long they wait for those of them that are busy with something else.
          completed: where the count begins, for one that comes to others.
        """
        self._least_workers = least_workers
        self._regroup_s = timeout_s
        self.completed, self.missed = completed, 0
        self._completed_at_regroup = None
        if self.cluster.size > 1:
            self._membership.has_finished = False

    def end_fit(self):
        """Says that this rank has trained to the end, together with all others."""
        self.survive(None)
        if self.cluster.size > 1:
            self._membership.has_finished = True

    def unreachable(self) -> list[int]:
        """Ranks that do not answer questions, without which none can be gone on without."""
        return self._channel.unreachable() if self.size > 1 else []

    def check(self):
        """Raises `ViewChanged` where another rank has lost a worker since the last exchange."""
        if self.size > 1 and self._watch.called_off:
            self._after(ExchangeBroken("no exchange", self._watch.called_off))

    # ---- Who comes back -------------------------------------------------------------------------

    def guests(self) -> dict[str, dict]:
        """Contacts of lost workers that wait to be taken in, by rank in decimal digits."""
        if self._least_workers is None or not self.cluster.lost:
            return {}
        soon = time.monotonic() - _ANNOUNCED_S
        return {
            str(rank): contact
            for rank, (contact, heard) in self._guests.items()
            if rank in self.cluster.lost and heard > soon
        }

    def admit(self, guests: dict[str, dict], epoch: int, facts: str, state: dict):
        """Takes workers in; the present members call it in step, and have just met.

        Raises:
          ViewChanged: it failed, and those that are left are ready to go on without them.
          WorkerLost: it failed, and that is the end.
        """
        ranks = sorted(map(int, guests))
        veterans, generation = self.members, self.generation + 1
        try:
            for rank in ranks:
                self._channel.know(rank, guests[str(rank)])
            if self.place == 0:
                self._channel.ask_all(
                    "invite",
                    generation=generation,
                    completed=self.completed,
                    veterans=veterans,
                    guests=ranks,
                    contacts=self._channel.contacts,
                    epoch=epoch,
                    facts=facts,
                    state=state,
                )
            self._grow(generation, veterans, ranks)
        except (ViewAbandoned, OSError):  # the latter: its name is not known here
            self._guests = {}
            doing = f"taking in {membership.named(ranks)}"
            self._after(ExchangeBroken(doing, "another did not come"), ranks)
        watch.say(
            f"Rank {self.cluster.rank} goes on with {membership.named(ranks)}, who came back."
        )

    def await_invitation(self) -> guest.Invitation:
        """On a guest: announces itself to all until it is to be taken in.

        Raises:
          WorkerLost: the others have ended.
        """
        waiting = watch.Waiting(_SAY_S)
        while self.invitation is None:
            answers = self._channel.ask_all(
                "guest", rank=self.cluster.rank, contact=self._channel.contact
            )
            told = [each for each in answers.values() if isinstance(each, dict)]
            if all(each is channel.Absence.GONE for each in answers.values()):
                raise watch.WorkerLost(
                    f"Rank {self.cluster.rank} was started to join the others again, but all of "
                    "them have ended."
                )
            for each in told:  # others may have come since
                self._know(each["contacts"])
            if waited_s := waiting.due():
                where = f" Rank {min(answers)} is {told[0]['where']}." if told else ""
                watch.say(
                    f"Rank {self.cluster.rank} has waited {waited_s:.0f} s for the others to "
                    f"begin an epoch.{where}"
                )
            time.sleep(_ANNOUNCE_S)
        self._know(self.invitation.contacts)
        self._channel.keep({*self.invitation.veterans, *self.invitation.guests})
        return self.invitation

    def _know(self, contacts: dict[str, dict]):
        for rank, contact in contacts.items():
            self._channel.know(int(rank), contact)

    def enter(self):
        """On a guest that has been invited: becomes a member, together with all others.

        Raises:
          WorkerLost: they have not waited for it, or one was lost meanwhile.
        """
        invitation = self.invitation
        try:
            self._grow(invitation.generation, invitation.veterans, invitation.guests)
        except ViewAbandoned:
            raise watch.WorkerLost(
                f"Rank {self.cluster.rank} was not taken in: another was lost meanwhile, or the "
                "others have not waited for it. Start it again."
            ) from None
        self.is_guest = False
        watch.say(f"Rank {self.cluster.rank} goes on with the others, who have taken it in.")
        self._channel.handlers["guest"] = self._receive

    def _grow(self, generation: int, veterans, ranks: list[int]):
        self._membership.grow(generation, veterans, ranks, _ADMIT_S, self._join)
        self._guests = {}
        self._start_generation()

    def _start_generation(self):
        """What follows from a new list of members."""
        members = self._membership.members
        self.cluster.lost.clear()
        self.cluster.lost.update(set(range(self.cluster.size)) - set(members))
        self._channel.keep(members)
        self._channel.knock(sorted(self.cluster.lost) if self.cluster.is_chief else ())
        self._begin_generation()
        self._status.exchanges = 0  # from here on all members begin the same ones again
        self._watch.resume()
        self._membership.recheck()

    def _receive(self, request: dict) -> dict:
        """A guest has announced itself. On the channel's thread."""
        heard = (request["contact"], time.monotonic())
        self._guests = {**self._guests, int(request["rank"]): heard}
        return {"contacts": self._channel.contacts, "where": self._status.tell().where}

    def _take_invitation(self, request: dict) -> dict:
        """On a guest, on the channel's thread."""
        request.pop("kind")
        self.invitation = guest.Invitation(**request)
        return {}

    # ---- Where this rank is ---------------------------------------------------------------------

    def at(self, where: str, step: int):
        """Says what this rank does, for those that may wait for it.

        Args:
          where: as the end of a sentence that begins with "It is".
          step: number of completed steps.
        """
        if self.cluster.size > 1:
            self._watch.at(where, step)

    def enter_fit(self, code):
        """Says that this thread trains until the function with this code object has returned."""
        if self.cluster.size > 1:
            self._status.enter_fit(code)

    # ---- Outside of tf.function -----------------------------------------------------------------

    def gather(self, value, doing: str, timeout_s: float) -> list:
        """What every member passed, in order; `value` is anything JSON can hold.

        Args:
          value: this rank's contribution.
          doing: for error messages, e.g. `"the start of training"`.
          timeout_s: seconds before waiting ends with `WorkerLost`.
        """
        if self.size == 1:
            return [value]
        message = _encode(self.cluster.rank, value)
        with self.waiting(doing, timeout_s):
            longest = self._gather_ints(np.array([len(message)], np.int32)).max()
            padded = np.zeros(1 << int(longest - 1).bit_length(), np.int32)
            padded[: len(message)] = message
            everyone = _decode(self._gather_ints(padded))
        self.hear()
        return everyone

    def _gather_ints(self, values: np.ndarray) -> np.ndarray:
        """`[n]` int32, n a power of two and the same on all -> `[size, n]`."""
        length = len(values)
        if length not in self._gathers:
            # Concrete, since `fit` may be called in the scope of another strategy.
            function = tf.function(self._all_gather, autograph=False)
            spec = tf.TensorSpec([length], tf.int32)
            self._gathers[length] = function.get_concrete_function(spec)
        gathered = self._gathers[length](tf.constant(values))
        return gathered.numpy().reshape(self.size, length)

    def reserve_instance_keys(self, count: int, doing: str, timeout_s: float) -> int:
        """The first of `count` instance keys that are unused on every rank, the same on all."""
        first = max(self.gather(self._next_instance_key, doing, timeout_s))
        self._next_instance_key = first + count
        return first

    @contextlib.contextmanager
    def waiting(self, doing: str, timeout_s: float):
        """Runs exchanges under a deadline.

        What `begin` has begun ends first, and fails here if it fails: all ranks exchange in one
        order.

        Raises:
          WorkerLost: an exchange failed, and that is the end.
          ViewChanged: one failed, and those that are left are ready to go on.
          TrainingFinished: one failed, but others have trained to the end.
        """
        if self.size == 1:
            yield
            return
        try:
            if self._under_way is not None:
                self._under_way.result()
            with self._watch.deadline(doing, timeout_s):
                yield
        except ExchangeBroken as broken:
            self._after(broken)

    def begin(self, exchange, doing: str, timeout_s: float):
        """Runs `exchange()` in the background from now on; `finish` returns what it returns."""

        def run():
            with self._watch.deadline(doing, timeout_s):
                return exchange()

        if self._under_way is not None:
            self.finish()
        self._under_way = self._background.submit(run)

    def finish(self):
        """What the exchange in the background returned. Raises as `waiting` does.

        None, where it was lost before, and those that are left have regrouped.
        """
        if self._under_way is None:
            return None
        try:
            return self._under_way.result()
        except ExchangeBroken as broken:
            return self._after(broken)

    def hear(self):
        """Notes that an exchange with all ranks has just succeeded."""
        if self.size > 1:
            self._channel.hear()

    def _after(self, broken: ExchangeBroken, guests=()):
        """Raises what a broken exchange means, or that `guests` could not be taken in."""
        if self._least_workers is None or not self._status.tell().in_fit:
            raise watch.WorkerLost(self._watch.text_of_loss(broken)) from None
        self._watch.call_off(broken.reason)
        if self._under_way is not None:  # nothing of the old generation may be in flight
            concurrent.futures.wait([self._under_way])
            self._under_way = None
        before = sorted({*self.members, *guests})
        try:
            most = self._membership.regroup(
                self.completed, self._least_workers, self._regroup_s, self._join
            )
        except TrainingFinished:
            self._watch.resume()  # the generation is whole, but for the one that was lost
            raise
        self.missed = most - self.completed
        gone = [rank for rank in before if rank not in self._membership.members]
        helps = gone or self.completed != self._completed_at_regroup
        self._regroups_in_vain = 0 if helps else self._regroups_in_vain + 1
        if self._regroups_in_vain == _REGROUPS_IN_VAIN:
            raise watch.WorkerLost(self._watch.text_of_loss(broken)) from None
        self._completed_at_regroup = self.completed
        self._start_generation()
        how = f"without {membership.named(gone)}" if gone else "with all"
        watch.say(
            f"Rank {self.cluster.rank} goes on {how}: "
            f"{self.size} of {self.cluster.size} workers are left. It was at {broken.doing}."
        )
        raise ViewChanged from None

    def _join(self, members: tuple[int, ...], generation: int):
        """Makes this process's server one of these members' alone."""
        server = copy.deepcopy(self._server)
        tasks = [(job, task) for job in server.cluster.job for task in sorted(job.tasks)]
        for rank, (job, task) in enumerate(tasks):  # a chief comes before the workers, as in ranks
            if rank not in members:
                del job.tasks[task]
        for index in reversed(range(len(server.cluster.job))):
            if not server.cluster.job[index].tasks:
                del server.cluster.job[index]
        job, task = tasks[members[0]]
        config = server.default_session_config.experimental
        config.collective_group_leader = f"/job:{job.name}/replica:0/task:{task}"
        config.ClearField("coordination_config")
        with _without_its_warning():
            context.context().enable_collective_ops(server)

    # ---- Inside of tf.function ------------------------------------------------------------------

    def exchange(self, chunks, colours, first_key: int, encode=lambda chunk: chunk):
        """Sends every chunk along this node's outgoing edges and receives along incoming ones.

        Args:
          chunks: list of 1-D tensors, or whatever `encode` takes.
          colours: the edge colouring of one round (`Topology.colours`).
          first_key: first of `len(chunks)` reserved instance keys.
          encode: makes the message of a chunk, a 1-D tensor with a static shape that is the same on
            all ranks. It runs shortly before the message's turn: all at once would keep the
            processor from sending, and hold all messages in memory.

        Returns:
          For each chunk `(message, received, sent)`: what this rank sends, a dict `{sender:
          tensor}`, and the sends, which what is done with it must wait for: nobody uses the output
          of a send, so that TensorFlow would prune it and the receiver wait for ever.
        """
        place = self.place
        mine = [edge for colour in colours for edge in colour if place in edge]
        exchanged, issued = [], []
        for index, chunk in enumerate(chunks):
            received, sent = {}, []
            with tf.control_dependencies(self._its_turn(issued, 2 * self._messages_in_flight)):
                message = encode(chunk)
            for sender, receiver in mine:
                key = self._first_group_key + 2 + sender * self.cluster.size + receiver
                with tf.control_dependencies(self._its_turn(issued, self._messages_in_flight)):
                    issued.append(self._bcast(message, sender, 2, key, first_key + index))
                if receiver == place:
                    received[sender] = issued[-1]
                else:
                    sent.append(issued[-1])
            exchanged.append((message, received, sent))
        return exchanged

    def broadcast(self, chunks, first_key: int, source: int = 0):
        """One member's `chunks`, a list, on every member.

        Arguments as in `exchange`; `source` is the member's place.
        """
        if self.size == 1:
            return chunks
        received = []
        for index, chunk in enumerate(chunks):
            with tf.control_dependencies(self._its_turn(received, self._messages_in_flight)):
                received.append(
                    self._bcast(chunk, source, self.size, self._first_group_key, first_key + index)
                )
        return received

    def mean(self, chunks, first_key: int):
        """The mean over members of every chunk, each by a ring all-reduce of its own.

        All ranks get the same bits: each piece is summed on its way round the ring, then copied.
        Arguments as in `broadcast`, but other keys.
        """
        if self.size == 1:
            return chunks
        means = []
        for index, chunk in enumerate(chunks):
            with tf.device(self._device):
                means.append(
                    tf.raw_ops.CollectiveReduceV2(
                        input=chunk,
                        group_size=self.size,
                        group_key=self._first_group_key,
                        instance_key=first_key + index,
                        # TensorFlow runs those with the same token one after the other.
                        ordering_token=[self._tokens[index % len(self._tokens)].handle],
                        merge_op="Add",
                        final_op="Div",
                        communication_hint=self._hint,
                    )
                )
        return means

    @staticmethod
    def _its_turn(issued, limit: int):
        """What the next one waits for, so that no more than the limit are under way."""
        return [issued[-limit]] if len(issued) >= limit else []

    def _all_gather(self, values):
        # On the CPU, where the numbers are wanted.
        with tf.device("/device:CPU:0"):
            return tf.raw_ops.CollectiveGatherV2(
                input=values,
                group_size=self.size,
                group_key=self._first_group_key + 1,
                instance_key=_FIRST_INSTANCE_KEY + values.shape[0].bit_length(),
                ordering_token=[self._token_of_gathers.handle],
                communication_hint="ring",
            )

    def _bcast(self, chunk, sender: int, group_size: int, group_key: int, instance_key: int):
        """The sender's `chunk`, on every member of the group."""
        kind = chunk.dtype if chunk.dtype in _BCAST_TYPES else _SAME_WIDTH[chunk.dtype.size]
        if kind is None:
            raise TypeError(f"Variables of type {chunk.dtype.name} cannot be sent to workers.")
        arguments = {
            "group_size": group_size,
            "group_key": group_key,
            "instance_key": instance_key,
            "communication_hint": self._hint,
        }
        with tf.device(self._device):
            if sender == self.place:
                message = tf.raw_ops.CollectiveBcastSendV2(
                    input=tf.bitcast(chunk, kind), **arguments
                )
            else:
                message = tf.raw_ops.CollectiveBcastRecvV2(shape=chunk.shape, T=kind, **arguments)
            return tf.bitcast(message, chunk.dtype)


def _encode(rank: int, value) -> np.ndarray:
    """A message of `gather`: its length in bytes, then JSON, `[1 + bytes]` int32."""
    text = np.frombuffer(json.dumps([rank, value]).encode(), np.uint8)
    return np.concatenate([[len(text)], text]).astype(np.int32)


def _decode(messages: np.ndarray) -> list:
    """The values of messages, a row each, in rank order."""
    pairs = [json.loads(row[1 : 1 + row[0]].astype(np.uint8).tobytes()) for row in messages]
    # TensorFlow gathers in the order of its devices' names: task:10 comes before task:2.
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def _abort(reason: str):
    """Makes every collective of this process fail, until it joins another generation."""
    context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, reason)


_active: Collectives | None = None


def initialize(join: bool | None = None) -> cluster_lib.Cluster:
    """Joins the cluster that `TF_CONFIG` describes; call it before anything else of TensorFlow.

    Starts TensorFlow's server and waits until all workers have started theirs. Without a
    `TF_CONFIG` (or with one of a single worker) it starts no server. Calling it again returns the
    same cluster.

    Args:
      join: whether the others train already, without this worker, and shall take it in again. It
        then waits until they have found it. None: whether `TF_GOSSIP_PGA_JOIN` is set to 1, or
        they are all there and look for it. See `GossipPGA`, `on_worker_lost`.

    Returns:
      The `Cluster`: `rank`, `size`, `addresses`, `is_chief`, `shard(dataset)`, and the `strategy`
      for a worker with several devices.

    Raises:
      ValueError: `TF_CONFIG` cannot be used; the message quotes it and shows an example. Also one
        of a single worker that is to join others.
      RuntimeError: TensorFlow is already running, so its server can no longer be configured; the
        message names the line to move.
      WorkerLost: nobody has looked for this worker, which was to join again.

    Example:

        import tf_gossip_pga as pga
        cluster = pga.initialize()
    """
    global _active
    if _active is None:
        cluster = cluster_lib.from_tf_config(os.environ.get("TF_CONFIG"))
        if join is None:
            join = os.environ.get(cluster_lib.JOIN) == "1"
        if join and cluster.size == 1:
            raise ValueError(
                f"A worker that is to join others ({cluster_lib.JOIN}=1, or join=True) needs the "
                "TF_CONFIG that it had, with the addresses of all workers; it has none of several."
            )
        collectives = Collectives(cluster, join)
        collectives.cluster = dataclasses.replace(
            cluster, strategy=devices.local_strategy(), exchange_values=collectives.gather
        )
        _active = collectives
    return _active.cluster


def active() -> Collectives:
    """The collectives of this process; those of a single worker where there is no cluster.

    Raises:
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called.
    """
    if _active is not None:
        return _active
    cluster = cluster_lib.from_tf_config(os.environ.get("TF_CONFIG"))
    if cluster.size > 1:
        raise RuntimeError(
            f"TF_CONFIG names {cluster.size} workers, but this process has not joined them. Put\n"
            "    cluster = tf_gossip_pga.initialize()\n"
            "at the top of the program, before the first model, tensor or dataset."
        )
    return Collectives(cluster)


def _resolver(accelerators: dict) -> tf.distribute.cluster_resolver.ClusterResolver:
    """`TF_CONFIG`, with so many accelerators a worker instead of all that it sees."""
    config = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        config.cluster_spec(),
        task_type=config.task_type,
        task_id=config.task_id,
        num_accelerators=accelerators,
    )


@contextlib.contextmanager
def _without_its_warning():
    """Leaves out what TensorFlow says each time: tensors made before may not be found again."""

    def is_other(record) -> bool:
        return "Enabling collective ops after program startup" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _server_def(resolver) -> tf.train.ServerDef:
    """What MultiWorkerMirroredStrategy makes, for a worker that starts without the others."""
    return tf.train.ServerDef(
        cluster=resolver.cluster_spec().as_cluster_def(),
        default_session_config=context.context().config,
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        protocol="grpc",
    )


def _configure_heartbeats(spec: tf.train.ClusterSpec):
    """What MultiWorkerMirroredStrategy does unless it is done, but with more patience."""
    config = tf.compat.v1.ConfigProto().experimental.coordination_config
    for job in spec.jobs:
        config.coordinated_job_list.add(name=job, num_tasks=spec.num_tasks(job))
    leader = "chief" if "chief" in spec.jobs else "worker"
    context.context().configure_coordination_service(
        "standalone",
        f"/job:{leader}/replica:0/task:0",
        coordinated_jobs=list(config.coordinated_job_list),
        heartbeat_timeout_in_ms=int(1000 * _HEARTBEAT_S),
    )


def _await_chief(cluster: cluster_lib.Cluster):
    """Returns when rank 0's server is up; says what it waits for when that takes long.

    TensorFlow would wait without a word, and without letting another Python thread speak.
    """
    address = cluster.addresses[0]
    waited_s = 0
    while not cluster.is_chief:
        with contextlib.suppress(OSError):
            socket.create_connection(channel.split(address), timeout=1).close()
            return
        time.sleep(0.2)
        waited_s += 0.2
        if round(waited_s, 1) % 60 == 10:
            print(
                f"Rank {cluster.rank} of {cluster.size} waits for rank 0 at {address}: has it been "
                "started, and can it be reached from here?",
                file=sys.stderr,
                flush=True,
            )


@contextlib.contextmanager
def _interruptible():
    """Lets SIGINT and SIGTERM end the process while TensorFlow waits for the other workers.

    Python's handlers cannot run before TensorFlow returns. It also installs a SIGTERM handler of
    its own, which swallows the signal: what Python had is put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not Python that set it
                signal.signal(number, handler)


def _too_late() -> str:
    # The innermost three frames are this function, Collectives and initialize; then the user's.
    caller = inspect.stack()[3]
    return (
        "initialize() came too late: TensorFlow is already running, so that its server can no "
        f"longer be configured. Move the call at {caller.filename}:{caller.lineno} to the top of "
        "the program, above the first model, variable, tensor or dataset (importing is fine)."
    )
