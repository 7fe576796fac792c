"""Measure the processor time of a test session's processes, and find those that outlive it.

Children of the nursery have their own sessions. Process groups do not contain them, and the
processor time of waited-for children does not include them. They are found by an environment
variable that each test process sets before it starts anything.
"""

import os
import pathlib
import resource
import signal
import subprocess
import threading
import uuid

from tests.support import deadlines

_VARIABLE = "TF_GOSSIP_PGA_TEST_SESSION"
_TICKS = os.sysconf("SC_CLK_TCK")


def mark():
    """Mark all processes that this process starts afterwards."""
    os.environ[_VARIABLE] = uuid.uuid4().hex


def heed_signals():
    """Undo what `nohup` or a shell's `&` has set: all processes that this one starts inherit it."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def marked() -> dict[int, str]:
    """Return the command lines of all running processes with this process's mark, by id."""
    wanted = f"{_VARIABLE}={os.environ[_VARIABLE]}".encode()
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            carries = wanted in (folder / "environ").read_bytes().split(b"\0")
            if carries and _stat(folder)[0] != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Return the next lines of a process's output. Kill the process if they take too long.

    The lines that are missing then are empty.
    """
    timer = threading.Timer(deadlines.long(), process.kill)
    timer.start()
    try:
        return [process.stdout.readline() for _ in range(count)]
    finally:
        timer.cancel()


def await_end(pids: list[int]):
    """Wait until none of these processes runs. End those that run for too long, and raise.

    Orphans are reaped by the system's first process, not by the tests.
    """
    assert pids
    try:
        deadlines.Deadline(30).until(
            lambda: not any(map(_runs, pids)), lambda: f"Still running: {pids}"
        )
    finally:
        for pid in filter(_runs, pids):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return _stat(pathlib.Path(f"/proc/{pid}"))[0] != "Z"
    except OSError:
        return False


def processor_seconds() -> float:
    """Return the processor time of this process and of all that it started, ended or not."""
    total = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    for pid in marked():
        try:
            fields = _stat(pathlib.Path(f"/proc/{pid}"))
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / _TICKS  # utime, stime; the same of ended children
    return total


def _stat(folder: pathlib.Path) -> list[str]:
    """Return the fields of `/proc/PID/stat` after the name: the state comes first."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
