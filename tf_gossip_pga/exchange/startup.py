"""Check and wait for what must hold before TensorFlow's server starts."""

from __future__ import annotations

import contextlib
import inspect
import socket
import time

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.addresses import split
from tf_gossip_pga.coordination.reports import Waiting
from tf_gossip_pga.coordination.timing import Timing


def await_chief(cluster: Cluster, timing: Timing):
    """Return when rank 0's server is up; report what this rank waits for when that takes long.

    TensorFlow would wait without a word, and without letting another Python thread speak.
    """
    address = cluster.addresses[0]
    waiting = Waiting(timing.start_report_s)
    while not cluster.is_chief:
        with contextlib.suppress(OSError):
            socket.create_connection(split(address), timeout=timing.serve_s).close()
            return
        time.sleep(timing.poll_s)
        if waiting.due():
            logger.warning(
                f"Rank {cluster.rank} of {cluster.size} waits for rank 0 at {address}: has it been "
                "started, and can it be reached from here?"
            )


def too_late() -> RuntimeError:
    """Return the error for an `initialize` that comes after TensorFlow has started."""
    package = __name__.partition(".")[0]
    stack = inspect.stack()
    caller = next(
        each
        for each in stack
        if each.frame.f_globals.get("__name__", "").partition(".")[0] != package
    )
    return RuntimeError(
        "initialize() came too late: TensorFlow is already running, so that its server can no "
        f"longer be configured. Move the call at {caller.filename}:{caller.lineno} to the top of "
        "the program, above the first model, variable, tensor or dataset (importing is fine)."
    )
