"""What is done before TensorFlow's server starts, and how its errors are explained."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from tests.support import addresses, deadlines
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination import greetings
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost
from tf_gossip_pga.exchange import guard, startup

CLUSTER = Cluster(0, 3, ("localhost:1", "10.0.0.7:2", "[fe80::1]:3"))


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ({}, []),
        ({"no_proxy": "a.com,.svc"}, ["a.com", ".svc"]),  # which no_grpc_proxy hides
        ({"no_proxy": "a.com", "no_grpc_proxy": "b.com,localhost"}, ["b.com"]),
    ],
)
def test_no_proxy_applies_to_the_hosts_of_the_cluster(monkeypatch, before, kept):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("no_grpc_proxy", "")
    monkeypatch.delenv("no_grpc_proxy")
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    startup.bypass_proxies(CLUSTER)
    hosts = os.environ[startup.UNPROXIED].split(",")
    assert hosts[: len(kept)] == kept
    assert set(hosts) - set(kept) - {"::1"} == {"localhost", "127.0.0.1", "10.0.0.7", "fe80::1"}
    assert os.environ.get("no_proxy") == before.get("no_proxy")
    startup.bypass_proxies(CLUSTER)
    assert os.environ[startup.UNPROXIED].split(",") == hosts


class _Runtime:
    """A server that does not start."""

    def __init__(self, reason: str):
        self._reason = reason

    def start(self, timeout_s: float):
        raise tf.errors.UnknownError(None, None, self._reason)


@pytest.mark.parametrize(
    ("reason", "kind", "explained"),
    [
        ("Could not start gRPC server", RuntimeError, "Rank 0 cannot listen on localhost:1"),
        ("Barrier timed out", WorkerLost, "servers then failed to connect"),
    ],
)
def test_tensorflows_reason_is_explained_and_kept(reason, kind, explained):
    with pytest.raises(RuntimeError, match=f"{explained}.*{reason}") as caught:
        startup.start(_Runtime(reason), CLUSTER, Timing())
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, tf.errors.UnknownError)


def test_a_chief_that_has_gone_is_not_waited_for_forever():
    cluster = Cluster(1, 2, tuple(addresses.free(2)))
    with pytest.raises(
        WorkerLost, match=r"Rank 1 of 2 has reached rank 0, and is waiting .*deadline has passed"
    ):
        startup.start(_Runtime("not reached"), cluster, Timing(start_s=0.3))


@pytest.mark.parametrize(
    ("begins", "start_s", "kind", "text"),
    [
        (greetings.ROLL_CALL, 0.5, WorkerLost, "waiting for TensorFlow's .* deadline has passed"),
        # Its own start begins.
        (b"\0\0\x06\4\0\0\0\0\0\0\3", deadlines.scaled(60), RuntimeError, "cannot listen"),
    ],
)
def test_the_roll_call_of_rank_0_is_not_taken_for_tensorflows_server(begins, start_s, kind, text):
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def serve():
            while not over.is_set():
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    connection.sendall(begins)

        thread = threading.Thread(target=serve)
        thread.start()
        chief = f"127.0.0.1:{listener.getsockname()[1]}"
        cluster = Cluster(1, 2, (chief, "127.0.0.1:1"))
        timing = Timing(start_s=start_s, poll_s=0.02, serve_s=deadlines.scaled(1))
        runtime = _Runtime("Could not start gRPC server")
        try:
            with pytest.raises(kind, match=text) as caught:
                startup.start(runtime, cluster, timing)
        finally:
            over.set()
            thread.join()
    assert type(caught.value) is kind


def test_what_must_be_equal_has_names_and_values():
    found = startup.facts("auto", "7.0")
    assert found["version of TensorFlow"] == tf.__version__
    assert set(found) == {
        *(f"version of {name}" for name in ("tf_gossip_pga", "TensorFlow", "Keras")),
        "requested communication",
        "job",
    }
    assert found["job"] == "7.0"


ASLEEP = """
import signal, sys, time
from tf_gossip_pga.exchange import guard
with guard.watched("It is asleep.", *map(float, sys.argv[1:])):
    print("asleep", flush=True)
    signal.pause()
"""


def _asleep(report_s: float, deadline_s: float) -> subprocess.Popen:
    command = [sys.executable, "-c", ASLEEP, str(report_s), str(deadline_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_runs_no_python_is_spoken_for_again_and_again():
    with _asleep(0.2, 600) as process:
        assert [process.stderr.readline() for _ in range(2)] == ["It is asleep.\n"] * 2
        process.kill()


def test_a_process_that_runs_no_python_is_ended_at_the_deadline():
    with _asleep(600, 0.2) as process:
        _, said = process.communicate(timeout=deadlines.long())
    assert process.returncode == -signal.SIGKILL
    assert said == "It is asleep. The deadline has passed, so this worker ends.\n"


def test_a_process_that_runs_no_python_heeds_sigterm():
    with _asleep(600, 600) as process:
        assert process.stdout.readline() == "asleep\n"
        process.terminate()
        assert process.communicate(timeout=deadlines.long()) == ("", "")
    assert process.returncode == -signal.SIGKILL


def test_a_guard_leaves_with_what_it_watches():
    began = signal.getsignal(signal.SIGTERM)
    with guard.watched("It is awake.", 600, 600):
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGTERM) is began
