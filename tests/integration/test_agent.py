"""The agent that runs a worker on another host, here without ssh."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest

from tests.support import deadlines, processes

pytestmark = pytest.mark.multiprocess

# A worker with a child in a session of its own, which keeps the output open.
WORKER = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"],
                         start_new_session=True)
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print(child.pid, flush=True)
time.sleep(3600)
"""


# The agent, which here does not kill a worker that is slow to end.
AGENT = """
import sys
from tf_gossip_pga.launch import agent
agent.GRACE_S = 600
sys.exit(agent.main())
"""


@contextlib.contextmanager
def agent(**more):
    """Start an agent with a worker, and yield it with the id of the worker's child."""
    request = {
        "command": [sys.executable, "-c", WORKER],
        "variables": {},
        "task": 0,
        "workers": 1,
        "gpus_per_worker": 1,
        "share_gpus": False,
        **more,
    }
    command = [sys.executable, "-c", AGENT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes, text=True) as process:
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_the_worker_and_all_that_it_has_started(number):
    with agent() as process:
        child = int(process.stdout.readline())
        process.send_signal(number)
        said, _ = process.communicate(timeout=deadlines.scaled(60))
        assert (process.returncode, said) == (75, "saved\n")
        processes.await_end([child])


@pytest.mark.parametrize("last", ["", "SIGT"])  # the connection may end within a line
def test_the_end_of_the_input_stops_the_worker(last):
    with agent() as process:
        child = int(process.stdout.readline())
        said, _ = process.communicate(last, timeout=deadlines.scaled(60))
        assert (process.returncode, said) == (75, "saved\n")
        processes.await_end([child])


def test_a_request_of_another_version_is_an_error():
    with agent(new_field=1) as process:
        said, _ = process.communicate(timeout=deadlines.scaled(60))
        assert process.returncode == 1
        assert said == "The launcher has another version of tf_gossip_pga than this host.\n"


def test_a_signal_is_passed_on():
    with agent() as process:
        process.stdout.readline()
        process.stdin.write("SIGKILL\n")
        process.stdin.flush()
        assert process.wait(deadlines.scaled(60)) == 128 + signal.SIGKILL
