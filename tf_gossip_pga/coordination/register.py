"""Record which workers have called rank 0, and decide what rank 0 answers, without using sockets.

In the rendezvous (module `rendezvous`), the other workers call rank 0 to learn the addresses of all
workers. Rank 0 passes each `Call` to its `Register`, which returns an `Answer`.
"""

from __future__ import annotations

import dataclasses
import threading

from tf_gossip_pga.cluster.place import Rendezvous
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination.messages import Port, Rank
from tf_gossip_pga.coordination.timing import Timing


@dataclasses.dataclass(frozen=True)
class Call:
    """A worker's request to rank 0 for the addresses of all workers.

    Attributes:
      job: text that identifies the caller's job.
      rank: the caller's rank.
      size: number of workers, as the caller's starter reports it.
      nonce: random characters that identify the calling process.
      process: the calling process in words: `"process 17 on host1"`.
      host: numeric address of the caller's machine in the network through which it called.
      port: port on which the caller's TensorFlow server will listen.
      called: the name of rank 0's host that the caller has used to reach rank 0.
    """

    job: str
    rank: int
    size: int
    nonce: str
    process: str
    host: str
    port: Port
    called: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """Rank 0's answer to a call.

    Attributes:
      missing: the ranks whose calls rank 0 is waiting for.
      addresses: `"host:port"` of all workers in rank order; empty while ranks are missing.
      failure: why the rendezvous has failed, as a sentence, or an empty string.
      is_of_other_job: whether it has failed because the called process is rank 0 of another job.
    """

    missing: list[Rank]
    addresses: list[str]
    failure: str = ""
    is_of_other_job: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the caller need not call again."""
        return bool(self.addresses or self.failure)


def call_every_s(size: int, timing: Timing) -> float:
    """Return the seconds between two calls of a worker to rank 0, more if there are many workers.

    Args:
      size: number of workers.
      timing: the shortest interval (`Timing.start_call_s`).
    """
    return max(timing.start_call_s, 0.01 * size)


class Register:
    """Rank 0's record of the calls of the other workers.

    Args:
      at: where rank 0 listens, and the job to which it belongs.
      size: number of workers.
      timing: how long a call remains valid: `Timing.announced_s` or, with many workers, three times
        the interval between the calls of one worker.

    Attributes:
      last: the answer that ends the rendezvous: the addresses, or a failure. None while ranks are
        missing.
    """

    def __init__(self, at: Rendezvous, size: int, timing: Timing) -> None:
        self._at, self._size, self._timing = at, size, timing
        self._calls: dict[int, Call] = {}  # by rank
        self._called_at: dict[int, float] = {}  # time of each rank's latest call
        self._local: set[str] = set()  # nonces of the callers on rank 0's machine
        # By nonce: calls of processes that a restarted process of the same rank has replaced.
        self._replaced: dict[str, Call] = {}
        # The processes that lack the last answer: their nonces, or "rank 3" if rank 3 never called.
        self._unconfirmed: set[str] = set()
        self._lock = threading.Lock()
        self.last: Answer | None = None

    def missing(self, now: float) -> list[int]:
        """Return the ranks without a recent call. A rank that calls no more may have ended."""
        valid_s = max(self._timing.announced_s, 3 * call_every_s(self._size, self._timing))
        since = now - valid_s
        return [rank for rank in range(1, self._size) if self._called_at.get(rank, since) <= since]

    @property
    def is_over(self) -> bool:
        """Whether every caller has received the last answer."""
        return self.last is not None and not self._unconfirmed

    def answer(self, call: Call, is_local: bool, now: float) -> Answer:
        """Record a call, and return the answer.

        Args:
          call: the call.
          is_local: whether the caller runs on rank 0's machine.
          now: the time of the call, by `time.monotonic`.
        """
        with self._lock:
            if call.job != self._at.job:
                text = f"rank 0 belongs to another job ({self._at.job[:100]})"
                return Answer([], [], text, is_of_other_job=True)
            text = self._error(call)
            if self.last is None and text:
                self._end(Answer([], [], text))
            elif text:  # the rendezvous is over, without this process
                return Answer([], [], text)
            elif self.last is None:
                self._record(call, is_local, now)
            return self.last or Answer(self.missing(now), [])

    def confirm(self, call: Call) -> None:
        """Record that a caller has received the last answer."""
        with self._lock:
            self._unconfirmed -= {call.nonce, f"rank {call.rank}"}

    def _error(self, call: Call) -> str:
        """Return what makes this call an error, or an empty string."""
        if call.size != self._size:
            return (
                f"the workers differ in the number of workers: {self._size} on rank 0, but "
                f"{call.size} on rank {call.rank} ({call.process})"
            )
        if call.rank >= self._size:
            return f"{call.process} has the rank {call.rank}, but there are {self._size} workers"
        known = self._calls.get(call.rank)
        is_second = known is not None and known.nonce != call.nonce
        # A restarted process may replace its rank's earlier process, which must not call again.
        if call.rank == 0 or call.nonce in self._replaced or (is_second and self.last):
            other = f"{known.process} and " if known else ""
            return (
                f"rank {call.rank} was started twice: {other}{call.process} "
                f"{'have' if other else 'has'} this rank. Give each process a rank of its own"
            )
        return ""

    def _record(self, call: Call, is_local: bool, now: float) -> None:
        known = self._calls.get(call.rank)
        if known and known.nonce != call.nonce:
            self._replaced[known.nonce] = known
        self._calls[call.rank], self._called_at[call.rank] = call, now
        if is_local:
            self._local.add(call.nonce)
        if not self.missing(now):
            self._end(self._complete())

    def _end(self, last: Answer) -> None:
        self.last = last
        self._unconfirmed = {call.nonce for call in self._calls.values()}
        if last.failure:
            self._unconfirmed |= set(self._replaced)
            # Wait for the ranks that have not called yet, so that they too learn of the failure.
            self._unconfirmed |= {f"rank {r}" for r in range(1, self._size) if r not in self._calls}

    def _complete(self) -> Answer:
        """Return the answer with all addresses, or with a failure if two addresses are equal."""
        # Callers may reach rank 0 by different names. Choose a name that works on other machines.
        used = {call.called for call in self._calls.values() if call.nonce not in self._local}
        host = next((each for each in self._at.hosts if each in used), self._at.hosts[0])
        addresses = [addresses_lib.join(host, self._at.own_port)]
        for _, call in sorted(self._calls.items()):
            # `call.host` of a process on rank 0's machine may be a loopback address.
            own = host if call.nonce in self._local else call.host
            addresses.append(addresses_lib.join(own, call.port))
        for rank, address in enumerate(addresses):
            if (first := addresses.index(address)) != rank:
                return Answer(
                    [],
                    [],
                    f"rank {first} and rank {rank} have the same address {address}. Set LOCAL_RANK "
                    "to the number of each process on its machine",
                )
        return Answer([], addresses)
