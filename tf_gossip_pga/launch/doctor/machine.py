"""Describe this host, and try the checkpoint folder, for the examiner."""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from tf_gossip_pga.cluster.machine import boot_id
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.launch import gpus, versions
from tf_gossip_pga.launch.doctor.measurements import COMPARED
from tf_gossip_pga.tools import memory

_RESOLVE_S = 10.0  # for all names together
_READ_S = 3.0  # to wait for a file, because a network file system may show a new file late
_POLL_S = 0.1

_NETWORK = pathlib.Path("/proc/self/ns/net")


def describe(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `Facts`.

    Args:
      names: the names of all hosts, to resolve here.
    """
    addresses, unresolved = _resolved(names)
    return {
        "host_name": socket.gethostname(),
        "machine": _machine(),
        "python": sys.executable,
        "versions": {name: versions.installed(name) for name in COMPARED},
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.available(),
        "gpus": len(gpus.visible()),
        "addresses": addresses,
        "unresolved": unresolved,
    }


def _machine() -> str:
    """Return an id of this machine. A container with a network of its own counts as a machine."""
    with contextlib.suppress(OSError):
        if boot := boot_id():
            return f"{boot} {os.readlink(_NETWORK)}"
    return ""


def _resolved(names: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the addresses of each name, and the reason for each name that does not resolve."""
    answers: queue.SimpleQueue[tuple[str, list[str], str]] = queue.SimpleQueue()

    def resolve(name: str) -> None:
        try:
            answers.put((name, list(addresses_lib.look_up(name)), ""))
        except (OSError, UnicodeError) as error:
            answers.put((name, [], getattr(error, "strerror", None) or str(error)))

    for name in names:  # threads, because a name server may not answer for a long time
        threading.Thread(target=resolve, args=(name,), daemon=True).start()
    addresses: dict[str, list[str]] = {name: [] for name in names}
    unresolved = dict.fromkeys(names, f"no answer within {_RESOLVE_S:g} s")
    ends = time.monotonic() + _RESOLVE_S
    with contextlib.suppress(queue.Empty):
        for _ in names:
            name, found, why = answers.get(timeout=max(0.0, ends - time.monotonic()))
            addresses[name], unresolved[name] = found, why
    return addresses, {name: why for name, why in unresolved.items() if why}


class Folder:
    """Write files to the checkpoint folder, and read those of other hosts.

    The folder need not exist, because `Checkpoint` will create it when training begins. If it does
    not exist, the files are written to its nearest parent that exists.

    Args:
      path: the folder.
      token: a random text that all examiners share. It is part of the files' names.
    """

    def __init__(self, path: str, token: str):
        self._path = _existing(pathlib.Path(path).expanduser())
        self._token = token
        self._written: list[pathlib.Path] = []

    def write(self, name: str, text: str) -> str:
        """Write a file. Return why this fails, or an empty string."""
        file = self._file(name)
        try:
            self._written.append(file)
            with file.open("x") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def read(self, name: str, text: str) -> str:
        """Wait for a file with the given text. Return why this fails, or an empty string."""
        ends = time.monotonic() + _READ_S
        while True:
            why = "the file has other content"
            try:
                if self._file(name).read_text() == text:
                    return ""
            except OSError as error:
                why = error.strerror or str(error)
            if time.monotonic() > ends:
                return why
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Remove all files that this host has written."""
        for file in self._written:
            with contextlib.suppress(OSError):
                file.unlink()
        self._written.clear()

    def _file(self, name: str) -> pathlib.Path:
        return self._path / f".gossip-pga-doctor-{self._token}-{name}"


def _existing(path: pathlib.Path) -> pathlib.Path:
    """Return a path, or its nearest parent that exists."""
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # the attempt to write there reports the reason
            pass
        return each
    return path
