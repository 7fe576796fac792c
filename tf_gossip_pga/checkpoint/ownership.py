"""Let only one job at a time, and only its newest view, write to a checkpoint directory.

The layout::

    DIRECTORY/
      owner/000003.json     the claim with the highest number is in force

A claim lists the run, the view number, and the processes that are members of the view. Only one
process can create the file with a given number, even on NFS, and the content of that file never
changes. All members of a view make the same claim. In a shared directory, one member creates the
file and the others find it. On separate disks, each member creates its own file. A process has lost
the directory if the claim in force is not its own: it then no longer writes or removes files there.

Who may replace the claim in force:

================================  =================================================================
claim in force                    may be replaced by
================================  =================================================================
of the same run, an earlier view  a later view that shares a member with the claim, or whose
                                  members have themselves made this claim. An excluded worker may
                                  not replace the claim.
of another run                    a `fit` that begins after the claim's job has released the
                                  directory or ended. A `fit` already under way may not: another
                                  job has taken the directory from it.
================================  =================================================================

If all of a job's processes ran on this machine, the job has ended once none of them exists. If some
ran on other machines, the modification time of the claim's file shows whether the job is alive:
members renew it every `BEAT_S` seconds, and a job that has not renewed it for `LEASE_S` seconds
counts as ended. Both the modification time and the current time come from the file server's clock.
When `fit` ends, it releases the directory by setting the modification time to 0, so a live process
that no longer trains does not hold the directory. No file ever has to be removed by hand.

Limits:

- If all members of a job are stopped, or cut off from the directory, for `LEASE_S` seconds, a job
  on another machine can take the directory. The first job notices this before its next write, and
  continues training without checkpoints.
- A process that is stopped between the ownership check and the rename of a file can still rename
  the file later. The digests in the manifest then show that the file is damaged.
- On file systems that do not keep modification times (some object stores), a machine cannot tell
  whether a job on another machine is alive.
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
from tf_gossip_pga.cluster.machine import boot_id
from tf_gossip_pga.errors import CheckpointError

BEAT_S = 5.0
LEASE_S = 60.0
_WRITING_S = 5.0  # how long a claim may be unreadable while it is being written

# This process's run, keyed by process id because a forked child belongs to another run.
_runs: dict[int, str] = {}


@dataclasses.dataclass(frozen=True)
class Process:
    """The unique identity of a process.

    Attributes:
      rank: its rank.
      host: name of its machine.
      machine: identity of the machine's current boot and process namespace, in which `pid` is
        valid.
      pid: its process id.
      started: when it started, in clock ticks since boot; 0 if unknown.
    """

    rank: int
    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def this(cls, rank: int) -> "Process":
        """Return the identity of this process."""
        pid = os.getpid()
        return cls(rank, _host(), _machine(), pid, _started(pid) or 0)

    @property
    def lives(self) -> bool | None:
        """Return whether the process is running; None if this machine or container cannot tell."""
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
    """A claim of the directory.

    Attributes:
      run: name of the run, which consists of all processes that started together and those that
        joined them later. A restarted job is a new run.
      view: number of the view.
      members: the processes that are members of the view, in rank order.
    """

    run: str
    view: int
    members: tuple[Process, ...]


@dataclasses.dataclass(frozen=True)
class _Found:
    """The claim in force; `claim` is None if it cannot be read."""

    number: int
    claim: Claim | None
    since: str

    @property
    def words(self) -> str:
        if self.claim is None or not self.claim.members:
            return f"claim {self.number}, whose file names no process"
        members = self.claim.members
        first = next((each for each in members if each.lives), members[0])
        return f"process {first.pid} on {first.host} (rank {first.rank}), since {self.since}"


class Ownership:
    """Claim, check and release the directory for this process.

    Args:
      directory: path of the directory of checkpoints.
    """

    def __init__(self, directory: pathlib.Path):
        """Store the argument. Does not claim anything."""
        self._directory = directory
        self._folder = directory / "owner"
        self._number = 0  # number of this process's last claim; 0: none
        self._run = ""
        self._claim: Claim | None = None  # the claim of this fit
        self._stop = threading.Event()

    def offer(self, rank: int) -> dict:
        """Return this process's part of the claim, JSON-serializable, for the other members."""
        process = dataclasses.asdict(Process.this(rank))
        return {"run": _runs.get(os.getpid()), "process": process}

    def take(self, offers: list[dict], view: int, members: tuple[int, ...]):
        """Claim the directory for a view, unless it is already claimed for that view.

        Waits up to `LEASE_S` seconds if only the modification time can show whether another job has
        ended.

        Args:
          offers: the results of `offer` on all members, in rank order.
          view: number of the view.
          members: the ranks of the view's members.

        Raises:
          CheckpointError: the directory belongs to another job, or to another view.
          OSError: the directory cannot be listed or written.
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
                time.sleep(0.05)  # NFS may refuse to create a file that it does not list yet
        self._claim = claim
        with contextlib.suppress(PermissionError):  # another user's file, which its creator renews
            os.utime(self._path(self._number))  # undoes a release

    def described(self) -> dict:
        """Return the run and view of this fit's claim for a manifest, or `{}` without a claim."""
        return {"run": self._claim.run, "view": self._claim.view} if self._claim else {}

    def check(self):
        """Raise an error unless this process may write and remove files in the directory.

        Raises:
          CheckpointError: this process has no claim, or another claim is in force.
          OSError: the directory cannot be read.
        """
        self._server_time()  # makes NFS refresh its cache of the folder
        found = self._newest()
        if self._claim is None or found is None or found.claim != self._claim:
            raise CheckpointError(self._lost(found))

    def begin(self, is_needed: Callable[[], bool]):
        """Begin a fit: renew the claim file's modification time until `release` or training ends.

        Args:
          is_needed: function that returns whether training is still running. It is called in
            another thread.
        """
        self._claim = None
        self._stop.set()
        self._stop = threading.Event()
        arguments = (self._stop, is_needed)
        threading.Thread(target=self._beat, args=arguments, name="owner", daemon=True).start()

    def release(self):
        """Release the directory, so that another job can take it."""
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
                if path.stat().st_mtime == seen:  # no other member has renewed it
                    os.utime(path)
                seen = path.stat().st_mtime

    # ---- Claims ---------------------------------------------------------------------------------

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06d}.json"

    def _newest(self) -> _Found | None:
        """Return the claim in force, or None. Waits briefly for a claim that is being written."""
        ends = time.monotonic() + _WRITING_S
        while number := max(self._numbers(), default=0):
            try:
                with regular.opened(self._path(number)) as file:
                    content = json.loads(file.read())
                members = tuple(Process(**each) for each in content["members"])
                claim = Claim(content["run"], content["view"], members)
                return _Found(number, claim, str(content["since"]))
            except FileNotFoundError:  # another process has just replaced it
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
        """Create a claim and remove earlier ones. Return False if another process was faster."""
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
        """Raise `CheckpointError` unless `claim` may replace `found`. May wait to find out."""
        held = found.claim
        shares = held is not None and bool(set(held.members) & set(claim.members))
        if held is not None and held.run == claim.run:
            if held.view >= claim.view or not (shares or found.number <= self._number):
                raise CheckpointError(self._lost(found))
        elif self._claim is not None:
            raise CheckpointError(self._lost(found))
        elif not shares and self._is_held(found):
            raise CheckpointError(
                f"{self._directory} is in use by another job: {found.words}. Wait until that job "
                "has ended, end it, or use another directory for this job"
            )

    def _lost(self, found: _Found | None) -> str:
        if found is None:
            return f"{self._directory} no longer contains this job's claim: it has been removed"
        if found.claim and found.claim.run == self._run:
            return (
                f"{self._directory} belongs to view {found.claim.view} of this run, of which this "
                f"worker is not a member: {found.words}. This worker writes and removes no files "
                "there"
            )
        return (
            f"{self._directory} now belongs to another job: {found.words}. This job no longer "
            "writes or removes files there"
        )

    # ---- Signs of life --------------------------------------------------------------------------

    def _is_held(self, found: _Found) -> bool:
        """Return whether a claim's job still holds the directory. May wait to find out."""
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
                    f"Waiting up to {left:.0f} s to find out whether the job that wrote to "
                    f"{self._directory} has ended: {found.words}."
                )
            while self._age_s(path) < LEASE_S:
                if path.stat().st_mtime != renewed:
                    return path.stat().st_mtime != 0
                time.sleep(0.5)
        return False

    def _age_s(self, path: pathlib.Path) -> float:
        """Return the age of a file's modification time in seconds, by the file server's clock."""
        return self._server_time() - path.lstat().st_mtime

    def _server_time(self) -> float:
        """Return the file server's time, taken from the modification time of a new file."""
        clock = self._folder / f".clock-{uuid.uuid4().hex}"
        clock.touch(exist_ok=False)
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink()


def _digest(processes: list[Process]) -> str:
    """Return a name for the run that these processes start. It is the same on all of them."""
    text = json.dumps([dataclasses.asdict(each) for each in processes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache  # if the name changes during a run, the process must keep its identity
def _host() -> str:
    return socket.gethostname()


@functools.cache
def _machine() -> str:
    """Return an identifier of this boot of this machine and of this process namespace."""
    with contextlib.suppress(OSError):
        if boot := boot_id():
            return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return _host()


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # after the name, which may contain anything
    return None if state in "ZX" else int(fields[18])
