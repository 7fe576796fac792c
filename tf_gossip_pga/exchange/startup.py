"""Prepare and start TensorFlow's server, and explain any failure to start."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import os
import time

import tensorflow as tf

from tf_gossip_pga import __version__
from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import addresses as addresses_lib
from tf_gossip_pga.coordination import greetings, roll_call_sockets
from tf_gossip_pga.coordination.reports import Waiting
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost
from tf_gossip_pga.exchange import guard
from tf_gossip_pga.exchange.runtime import Runtime

# The environment variable that lists the hosts for which gRPC uses no proxy. gRPC reads only the
# lowercase name.
UNPROXIED = "no_grpc_proxy"


def facts(communication: str, job: str) -> dict[str, str]:
    """Return the facts that must be equal on all ranks, which `roll_call` compares.

    Args:
      communication: the requested transport, one of `transport.CHOICES`.
      job: the job (see `Place`).
    """
    found = {
        "version of tf_gossip_pga": __version__,
        "version of TensorFlow": tf.__version__,
        "requested communication": communication,
        "job": job,
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["version of Keras"] = importlib.metadata.version("keras")
    return found


def bypass_proxies(cluster: Cluster) -> None:
    """Make gRPC bypass proxies for the cluster's hosts, in this process and its children.

    gRPC obeys `grpc_proxy`, `https_proxy`, and `http_proxy`, except for hosts in `no_grpc_proxy`
    or, if that is unset, in `no_proxy`.
    """
    kept = os.environ.get(UNPROXIED, os.environ.get("no_proxy", ""))
    hosts = [host for host in kept.split(",") if host]
    for address in cluster.addresses:
        host, _ = addresses_lib.split(address)
        hosts.append(host)
        with contextlib.suppress(OSError, UnicodeError):
            hosts += addresses_lib.look_up(host)
    os.environ[UNPROXIED] = ",".join(dict.fromkeys(hosts))


def start(runtime: Runtime, cluster: Cluster, timing: Timing) -> None:
    """Start TensorFlow's server together with all other workers' servers, after the roll call.

    If the servers do not find each other within `Timing.start_s`, a guard process kills this
    process, which cannot end itself while TensorFlow blocks it.

    Raises:
      RuntimeError: this worker's port is taken.
      WorkerLost: rank 0's server did not start within `Timing.start_s`, or TensorFlow reports that
        the servers did not find each other.
    """
    _await_chief(cluster, timing)
    text = (
        f"Rank {cluster.rank} of {cluster.size} has reached all other workers, and is waiting for "
        "TensorFlow's servers to connect. Has another worker ended?"
    )
    try:
        with guard.watched(text, timing.join_report_s, timing.start_s):
            runtime.start(timing.start_s)
    except tf.errors.OpError as error:
        raise _failure(cluster, error) from error


def _await_chief(cluster: Cluster, timing: Timing) -> None:
    """Wait until rank 0's server is running, and report a long wait.

    TensorFlow itself would wait silently, blocking all Python threads.

    Raises:
      WorkerLost: rank 0's server does not start within `Timing.start_s`.
    """
    waiting, deadline = Waiting(timing.start_report_s), time.monotonic() + timing.start_s
    while cluster.rank != 0:
        greeting = roll_call_sockets.greeting_at(cluster.addresses[0], timing.serve_s)
        if greeting and not greetings.is_own(greeting):  # from TensorFlow, not from the roll call
            return
        time.sleep(timing.poll_s)
        text = (
            f"Rank {cluster.rank} of {cluster.size} has reached rank 0, and is waiting for "
            f"TensorFlow's server at {cluster.addresses[0]}. Has rank 0 ended?"
        )
        if time.monotonic() > deadline:
            raise WorkerLost(f"{text} The deadline has passed, so this worker ends.")
        if waiting.due():
            logger.warning(text)


def _failure(cluster: Cluster, error: tf.errors.OpError) -> RuntimeError:
    """Return the error for a server that did not start, including TensorFlow's reason."""
    address, reason = cluster.addresses[cluster.rank], f"TensorFlow says: {error}"
    if "Could not start gRPC server" in str(error):
        return RuntimeError(
            f"Rank {cluster.rank} cannot listen on {address}: the port was free a moment ago, but "
            f"another program has taken it. Restart the job. {reason}"
        )
    return WorkerLost(
        f"Rank {cluster.rank} of {cluster.size} reached all other workers, but TensorFlow's "
        f"servers then failed to connect. Has another worker ended? {reason}"
    )


def too_late() -> RuntimeError:
    """Return the error for a call of `initialize` after TensorFlow has started."""
    package = __name__.partition(".")[0]
    stack = inspect.stack()
    caller = next(
        each
        for each in stack
        if each.frame.f_globals.get("__name__", "").partition(".")[0] != package
    )
    return RuntimeError(
        "initialize() was called too late: TensorFlow is already running, so its server can no "
        f"longer be configured. Move the call at {caller.filename}:{caller.lineno} to the top of "
        "the program, above the first model, variable, tensor or dataset (importing is fine)."
    )
