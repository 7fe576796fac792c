"""Collect the internals of the package that tests use."""

import contextlib
import dataclasses
from unittest import mock


def active():
    """Return the session of this process, which exchanges with its cluster."""
    from tf_gossip_pga.exchange import process

    return process.active()


def traced() -> int:
    """Return the number of exchange functions that this process has traced."""
    from tf_gossip_pga.exchange.traced import Traced

    return Traced.total


def tf_config(addresses, rank: int) -> str:
    """Return the `TF_CONFIG` of one worker."""
    from tf_gossip_pga.cluster import tf_config as cluster_lib

    return cluster_lib.to_tf_config(addresses, rank)


def ask_patiently():
    """Let this process wait long for an answer, so that a slow machine is no dead worker."""
    from tests.support import deadlines

    channel = active()._channel
    channel._timing = dataclasses.replace(channel._timing, ask_s=deadlines.scaled(60))


@contextlib.contextmanager
def around_exchanges(around):
    """Run every exchange of this process inside `around(doing)`, a context manager."""
    from tf_gossip_pga.coordination.watchdog import Watchdog

    deadline = Watchdog.deadline

    @contextlib.contextmanager
    def wrapped(self, doing, *arguments):
        with around(doing), deadline(self, doing, *arguments) as wait:
            yield wait

    with mock.patch.object(Watchdog, "deadline", wrapped):
        yield
