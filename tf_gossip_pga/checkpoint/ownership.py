"""Let one job at a time write to a directory of checkpoints, and of that job its newest view.

    DIRECTORY/
      owner/000003.json     the claim in force is the one with the highest number

A claim names the run, the number of the view, and the processes that are its members. Only one
process can create the file of a number, on NFS too, and what it holds never changes; so whoever
finds a claim that is not its own group's has lost the directory, and neither writes nor removes
anything. All members of a view make the same claim: on a shared directory the first of them creates
the file, and the others find it; on disks of their own each creates one.

Who may replace a claim:

  claim in force                     replaced by
  of the same run, an earlier view   a view that descends from it: it knows the claim, or shares a
                                     member with it. Not by a worker that was left out.
  of another run                     a fit that begins, once the job has released the directory or
                                     ended. Never by one that has begun: it has been overtaken.

A job has ended if all of its processes ran on this machine and are gone. Where some ran elsewhere,
the file's modification time is the sign of life: members renew it every `BEAT_S`, and a job that
has not done so for `LEASE_S` has ended. Both times compared are the file server's. The end of `fit`
releases the directory (modification time 0), so that a live process that trains no more holds
nothing. Nobody has to remove a file by hand.

Limits: a job whose members are all stopped, or cut off from the directory, for `LEASE_S` can be
overtaken by one on another machine. It notices before its next write, and trains on without
checkpoints. A process that is stopped exactly between the check and the renaming of one file can
still rename it; the digests in the manifest then show that file as damaged. File systems that do
not keep modification times (some object stores) carry no signs of life between machines.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import regular
from tf_gossip_pga.errors import CheckpointError

BEAT_S = 5.0
LEASE_S = 60.0
_WRITING_S = 5.0  # how long a claim may be unreadable because it is just being written

# The run that this process belongs to, by process number: a forked child belongs to another.
_runs: dict[int, str] = {}


@dataclasses.dataclass(frozen=True)
class Process:
    """One process, told apart from all others.

    Attributes:
      rank: its rank.
      host: name of its machine.
      machine: the machine's present boot and process namespace, within which `pid` has a meaning.
      pid: its number.
      started: when it started, in clock ticks since boot; 0 where the system does not tell.
    """

    rank: int
    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def this(cls, rank: int) -> "Process":
        """Return this process."""
        pid = os.getpid()
        return cls(rank, _host(), _machine(), pid, _started(pid) or 0)

    @property
    def lives(self) -> bool | None:
        """Return whether it runs; None where this cannot be told from here."""
        if self.machine != _machine():
            return None
        if os.path.exists("/proc/self/stat"):
            return _started(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


@dataclasses.dataclass(frozen=True)
class Claim:
    """Who may write.

    Attributes:
      run: name of the run: all processes that trained together from the start, and those that
        joined them. A job that is started again is another run.
      view: number of the view.
      members: its processes, in rank order.
    """

    run: str
    view: int
    members: tuple[Process, ...]


@dataclasses.dataclass(frozen=True)
class _Found:
    """The claim in force; `claim` is None where it cannot be read."""

    number: int
    claim: Claim | None
    since: str

    @property
    def words(self) -> str:
        if self.claim is None or not self.claim.members:
            return f"claim {self.number}"
        members = self.claim.members
        first = next((each for each in members if each.lives), members[0])
        return f"process {first.pid} on {first.host} (rank {first.rank}), since {self.since}"


class Ownership:
    """This process's share in the directory.

    Args:
      directory: of the checkpoints.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._folder = directory / "owner"
        self._number = 0  # of the newest claim known to be of this process's group
        self._run = ""
        self._claim: Claim | None = None  # of this fit
        self._stop = threading.Event()

    def offer(self, rank: int) -> dict:
        """Return what the other members need to know to make the same claim, as JSON holds it."""
        process = dataclasses.asdict(Process.this(rank))
        return {"run": _runs.get(os.getpid()), "process": process}

    def take(self, offers: list[dict], view: int, members: tuple[int, ...]):
        """Claim the directory for a view, unless that has been done.

        Wait up to `LEASE_S` where only the sign of life can tell whether another job has ended.

        Args:
          offers: of all members, in rank order.
          view: number of the view.
          members: its ranks.

        Raises:
          CheckpointError: the directory belongs to another job, or to another view.
          OSError: it cannot be listed or written to.
        """
        processes = [Process(**each["process"]) for each in offers]
        known = next((each["run"] for each in offers if each["run"]), None)
        self._run = _runs[os.getpid()] = known or _digest(processes)
        claim = Claim(self._run, view, tuple(each for each in processes if each.rank in members))
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            found = self._newest()
            if found is not None and found.claim == claim:
                self._number = found.number
                break
            if found is not None:
                self._check_replaceable(found, claim)
            number = max(found.number if found else 0, self._number) + 1
            if self._create(number, claim):
                self._number = number
            else:
                time.sleep(0.05)  # NFS may list it later than it refuses to create it again
        self._claim = claim
        with contextlib.suppress(PermissionError):  # another user's: the maker renews it
            os.utime(self._path(self._number))  # it may have been released

    def described(self) -> dict:
        """Return run and view of this fit's claim, for a manifest."""
        return {"run": self._claim.run, "view": self._claim.view} if self._claim else {}

    def check(self):
        """Return if this process may write.

        Raises:
          CheckpointError: it may not, or not any more.
          OSError: the directory cannot be read.
        """
        self._server_time()  # so that NFS does not answer from its cache of the folder
        found = self._newest()
        if self._claim is None or found is None or found.claim != self._claim:
            raise CheckpointError(self._lost(found))

    def begin(self, is_needed: Callable[[], bool]):
        """Begin a fit: renew the sign of life until `release`, or until it is not needed any more.

        Args:
          is_needed: whether training still runs; called in another thread.
        """
        self._claim = None
        self._stop.set()
        self._stop = threading.Event()
        arguments = (self._stop, is_needed)
        threading.Thread(target=self._beat, args=arguments, name="owner", daemon=True).start()

    def release(self):
        """Let others have the directory; what is written there stays under this claim."""
        self._stop.set()
        self._let_go()
        self._claim = None

    def _let_go(self):
        with contextlib.suppress(OSError, CheckpointError):
            self.check()
            os.utime(self._path(self._number), (0, 0))

    def _beat(self, stop: threading.Event, is_needed: Callable[[], bool]):
        seen = 0.0
        while not stop.wait(BEAT_S):
            if not is_needed():
                self._let_go()
                return
            path = self._path(self._number)
            with contextlib.suppress(OSError):  # the next write reports it
                if path.stat().st_mtime == seen:  # no other member has
                    os.utime(path)
                seen = path.stat().st_mtime

    # ---- Claims ---------------------------------------------------------------------------------

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06d}.json"

    def _newest(self) -> _Found | None:
        """Return the claim in force; None without any. Wait a moment for one that is written."""
        ends = time.monotonic() + _WRITING_S
        while number := max(self._numbers(), default=0):
            try:
                with regular.opened(self._path(number)) as file:
                    content = json.loads(file.read())
                members = tuple(Process(**each) for each in content["members"])
                claim = Claim(content["run"], content["view"], members)
                return _Found(number, claim, str(content["since"]))
            except FileNotFoundError:  # replaced meanwhile
                pass
            except (ValueError, KeyError, TypeError, RecursionError):
                if time.monotonic() > ends or self._age_s(self._path(number)) > _WRITING_S:
                    return _Found(number, None, "")
            time.sleep(0.02)
        return None

    def _numbers(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self._folder)
            found = (re.fullmatch(r"([0-9]{6,})\.json", name) for name in names)
            return [int(match[1]) for match in found if match]
        return []

    def _create(self, number: int, claim: Claim) -> bool:
        """Make a claim and remove earlier ones; return False if another process was faster."""
        now = datetime.datetime.now(datetime.UTC)
        content = {**dataclasses.asdict(claim), "since": f"{now:%Y-%m-%d %H:%M:%S} UTC"}
        path, flags = self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            with regular.folder(self._folder) as folder:
                descriptor = os.open(path.name, flags, 0o644, dir_fd=folder)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
        except OSError:
            path.unlink()
            raise
        for earlier in self._numbers():
            if earlier < number:
                with contextlib.suppress(OSError):
                    self._path(earlier).unlink()
        return max(self._numbers(), default=0) == number

    def _check_replaceable(self, found: _Found, claim: Claim):
        """Return if the claim in force may be replaced; wait until this can be told."""
        held = found.claim
        shares = held is not None and bool(set(held.members) & set(claim.members))
        if held is not None and held.run == claim.run:
            if held.view >= claim.view or not (shares or found.number <= self._number):
                raise CheckpointError(self._lost(found))
        elif self._claim is not None:
            raise CheckpointError(self._lost(found))
        elif not shares and self._is_held(found):
            raise CheckpointError(
                f"{self._directory} is in use: {found.words}, writes checkpoints there. Wait until "
                "that job has ended, end it, or give this one another directory"
            )

    def _lost(self, found: _Found | None) -> str:
        if found is None:
            return f"{self._directory} has lost the claim of this job: something has removed it"
        if found.claim and found.claim.run == self._run:
            return (
                f"{self._directory} belongs to view {found.claim.view} of this run, which this "
                f"worker is not in: {found.words}. It writes and removes nothing there"
            )
        return (
            f"{self._directory} belongs to another job by now: {found.words}. This one writes and "
            "removes nothing there any more"
        )

    # ---- Signs of life --------------------------------------------------------------------------

    def _is_held(self, found: _Found) -> bool:
        """Return whether the job of a claim holds the directory; wait until this can be told."""
        path = self._path(found.number)
        with contextlib.suppress(FileNotFoundError):  # it has just been replaced
            renewed = path.stat().st_mtime
            if renewed == 0:
                return False
            lives = [each.lives for each in found.claim.members] if found.claim else [None]
            if True in lives or None not in lives:
                return True in lives
            if (left := LEASE_S - self._age_s(path)) > 0:
                logger.warning(
                    f"Waits up to {left:.0f} s to see whether the job that wrote to "
                    f"{self._directory} has ended: {found.words}."
                )
            while self._age_s(path) < LEASE_S:
                if path.stat().st_mtime != renewed:
                    return path.stat().st_mtime != 0
                time.sleep(0.5)
        return False

    def _age_s(self, path: pathlib.Path) -> float:
        """Return how long ago a file was modified, by the clock of the file server alone."""
        return self._server_time() - path.lstat().st_mtime

    def _server_time(self) -> float:
        """Return what a file that is made now has for its modification time."""
        clock = self._folder / f".clock-{uuid.uuid4().hex}"
        clock.touch(exist_ok=False)
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink()


def _digest(processes: list[Process]) -> str:
    """Return the name of the run that these processes begin, the same on all of them."""
    text = json.dumps([dataclasses.asdict(each) for each in processes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache  # a name that changes in mid-run must not look like another process
def _host() -> str:
    return socket.gethostname()


@functools.cache
def _machine() -> str:
    """Return what tells this boot of this machine, and this process namespace, from all others."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return _host()


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return None if state in "ZX" else int(fields[18])
