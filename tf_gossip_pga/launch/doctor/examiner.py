"""Examine one host for the doctor: `python -m tf_gossip_pga.launch.doctor.examiner`.

The doctor starts an examiner on each host and sends requests to its standard input, one JSON object
per line. Each request has an `id`, the name of a function of `Examiner` (`do`) and its arguments.
The examiner answers on standard output with one line: the `id` and the `result`, or an `error`.

An examiner ends when its standard input ends, so that no examiner outlives the doctor.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from tf_gossip_pga import __version__
from tf_gossip_pga.launch import signals
from tf_gossip_pga.launch.doctor import links, machine
from tf_gossip_pga.launch.doctor.measurements import REQUESTS

_CALLS = 64  # connections to try at a time


class Examiner:
    """The functions that answer a doctor's requests, with arguments and results of JSON's types."""

    def __init__(self) -> None:
        self._token = ""
        self._listener: links.Listener | None = None
        self._folder: machine.Folder | None = None

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the `version` of this package, and the `facts`: the fields of `Facts`.

        Args:
          names: the names of all hosts.
        """
        return {"version": __version__, "facts": machine.describe(names)}

    def clock(self) -> float:
        """Return the time of this host's clock, in seconds since 1970."""
        return time.time()

    def listen(self, name: str, token: str, ports: Sequence[int]) -> dict[str, Any]:
        """Listen on ports, under this host's name. Return `ports` and `taken` of `Listener`."""
        self._token = token
        self._listener = links.Listener(name, token, ports)
        return {"ports": self._listener.ports, "taken": self._listener.taken}

    def call(self, targets: Mapping[str, Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
        """Connect to the ports of other hosts. Return the fields of an `Attempt` for each port."""
        with ThreadPoolExecutor(_CALLS) as pool:
            calls = {
                host: [pool.submit(links.attempt, host, port, self._token) for port in ports]
                for host, ports in targets.items()
            }
            return {host: [vars(each.result()) for each in calls[host]] for host in calls}

    def measure(self, host: str, port: int) -> dict[str, Any]:
        """Measure the `round_trip_ms`, `mbit` and `failure` of the `Link` to another host."""
        found: dict[str, Any] = {"round_trip_ms": None, "mbit": None, "failure": ""}
        try:
            found["round_trip_ms"] = links.round_trip_ms(host, port, self._token)
            found["mbit"] = links.mbit(host, port, self._token)
        except (OSError, ValueError) as error:
            found["failure"] = str(error)
        return found

    def write(self, folder: str, token: str, name: str, text: str) -> str:
        """Write a file to a folder. Return why this fails, or an empty string."""
        self._folder = self._folder or machine.Folder(folder, token)
        return self._folder.write(name, text)

    def read(self, folder: str, token: str, name: str, text: str) -> str:
        """Read another host's file in a folder. Return why this fails, or an empty string."""
        return machine.Folder(folder, token).read(name, text)

    def close(self) -> None:
        """Remove the files that were written, and stop listening."""
        if self._folder:
            self._folder.close()
        if self._listener:
            self._listener.close()


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more.

    Args:
      requests: one JSON object per line.
      answers: receives one JSON object per line.
    """
    lock = threading.Lock()
    with contextlib.closing(Examiner()) as examiner:
        for line in requests:
            # Answer on another thread, to notice the end of the input during a long request.
            arguments = (examiner, json.loads(line), answers, lock)
            threading.Thread(target=_answer, args=arguments, daemon=True).start()


def _answer(
    examiner: Examiner, request: dict[str, Any], answers: TextIO, lock: threading.Lock
) -> None:
    answer = {"id": request.pop("id")}
    try:
        function: Callable[..., Any] = getattr(examiner, _known(request.pop("do")))
        answer["result"] = function(**request)
    except Exception as error:  # whatever fails, the doctor shall hear of it
        answer["error"] = str(error) or type(error).__name__
    with lock, contextlib.suppress(OSError, ValueError):  # the doctor is gone
        print(json.dumps(answer), file=answers, flush=True)


def _known(name: str) -> str:
    if name not in REQUESTS:
        raise ValueError(f"this examiner knows no request {name!r}")
    return name


def main() -> None:
    """Answer the requests on standard input."""
    with contextlib.suppress(KeyboardInterrupt), signals.handled(signals.INTERRUPTING):
        serve(sys.stdin, sys.stdout)
    os._exit(0)  # do not wait for requests in progress, which may take seconds


if __name__ == "__main__":
    main()
