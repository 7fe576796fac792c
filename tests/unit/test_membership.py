"""The thread that asks the others once in a while lives on after an error."""

import threading
import types

from tests.support import deadlines
from tf_gossip_pga.coordination.membership import Membership
from tf_gossip_pga.coordination.status import Status
from tf_gossip_pga.coordination.timing import Timing


def test_the_thread_that_pings_survives_an_error(capfd):
    asked, again = [], threading.Event()

    def ask_all(kind, **details):
        asked.append(kind)
        if len(asked) == 1:
            raise RuntimeError("no memory for a socket")
        again.set()
        return {}

    channel = types.SimpleNamespace(handlers={}, ask_all=ask_all)
    timing = Timing(ping_every_s=0.001)
    others = Membership(channel, Status(), 0, 2, timing, lambda reason: None)
    others.watch()
    assert again.wait(deadlines.scaled(60))
    others._pinging = None  # enough
    assert set(asked) == {"regroup"}
    assert "RuntimeError: no memory for a socket" in capfd.readouterr().err
