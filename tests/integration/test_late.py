"""Workers that are late, stopped, gone or elsewhere, in real processes: the others say who."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import nursery, workers
from tf_gossip_pga import launch
from tf_gossip_pga.cluster import tf_config as cluster_lib

pytestmark = pytest.mark.multiprocess

# Three ranks train two epochs of four steps; one does something else on the way.
PROGRAM = """
import json, os, signal, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
how, odd, timeout_s, overlap = json.loads(sys.argv[1])
odd = cluster.rank == odd

class Odd(keras.callbacks.Callback):
    step = 0
    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if how == "stops" and self.step == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "leaves" and self.step == 5:
            raise InterruptedError("a callback's own error")
        if how == "dies" and self.step == 5:
            os._exit(0)
    def on_test_batch_end(self, batch, logs=None):
        if how == "is slow" and self.step == 4 and batch == 0:
            time.sleep(9)
    def on_epoch_end(self, epoch, logs=None):
        if how == "is slow" and epoch == 0:
            time.sleep(9)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
gossip = pga.GossipPGA(H=3, timeout_s=timeout_s, overlap=overlap)
callbacks = [gossip, Odd()] if odd else [gossip]
if odd and how == "comes late":
    time.sleep(9)
try:
    model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0, validation_data=(x, y),
              callbacks=callbacks)
except InterruptedError:
    print("left fit", flush=True)
    time.sleep(1000)
print("trained", gossip.step, flush=True)
"""


class Crew:
    """Three processes of `PROGRAM`, and what each has printed."""

    def __init__(self, folder: pathlib.Path, *arguments):
        self._ends = time.monotonic() + workers.DEADLINE_S
        self._outputs = [folder / str(rank) for rank in range(3)]
        self.processes = []
        addresses = launch.free_addresses(3)
        with nursery.forks():
            for rank, output in enumerate(self._outputs):
                config = cluster_lib.to_tf_config(addresses, rank)
                with output.open("w") as file:
                    self.processes.append(
                        subprocess.Popen(
                            [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
                            env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "2"},
                            stdout=file,
                            stderr=file,
                            start_new_session=True,
                        )
                    )

    def said(self, rank: int) -> str:
        return self._outputs[rank].read_text()

    def until(self, happened):
        """Waits for a condition, with one deadline for all."""
        while not happened():
            assert time.monotonic() < self._ends, [self.said(rank) for rank in range(3)]
            time.sleep(0.1)

    def exit_codes(self, ranks) -> list[int]:
        self.until(lambda: all(self.processes[rank].poll() is not None for rank in ranks))
        return [self.processes[rank].returncode for rank in ranks]

    def is_stopped(self, rank: int) -> bool:
        stat = pathlib.Path(f"/proc/{self.processes[rank].pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _crew(folder, how, timeout_s, odd=2, overlap=False):
    crew = Crew(folder, how, odd, timeout_s, overlap)
    try:
        yield crew
    finally:
        crew.end()


def _ended_for(crew, odd: int) -> list[str]:
    """What the other ranks have said, all of which have ended with `WorkerLost` for `odd`."""
    others = sorted({0, 1, 2} - {odd})
    assert all(crew.exit_codes(others))
    for rank in others:
        said = crew.said(rank)
        assert re.search(rf"WorkerLost: Rank {rank} of 3 lost rank {odd} at", said), said
    return [crew.said(rank) for rank in others]


@pytest.mark.parametrize(("odd", "overlap"), [(0, False), (2, True)])
def test_a_stopped_worker_ends_all_others_who_name_it(tmp_path, odd, overlap):
    with _crew(tmp_path, "stops", timeout_s=6, odd=odd, overlap=overlap) as crew:
        for said in _ended_for(crew, odd):
            assert f"rank {odd} does not answer (its process is stopped, or the network" in said
        assert crew.is_stopped(odd)


def test_a_worker_that_goes_on_after_a_stop_is_waited_for(tmp_path):
    with _crew(tmp_path, "stops", timeout_s=60, odd=0) as crew:
        crew.until(lambda: crew.is_stopped(0))
        time.sleep(12)  # TensorFlow's own heartbeats would not wait for so long
        os.kill(crew.processes[0].pid, signal.SIGCONT)
        assert crew.exit_codes(range(3)) == [0, 0, 0]
        assert all("trained 8" in crew.said(rank) for rank in range(3))


SLOW = {
    "is slow": [
        r"for \d+ s it has been in the validation after step 4",
        r"for \d+ s it has been at the end of epoch 1",
    ],
    "comes late": ["has not called fit with GossipPGA yet"],
}


@pytest.mark.parametrize("how", SLOW)
def test_the_others_say_what_a_slow_worker_does_and_wait(tmp_path, how):
    with _crew(tmp_path, how, timeout_s=60) as crew:
        assert crew.exit_codes(range(3)) == [0, 0, 0]
        for rank in (0, 1):
            said = crew.said(rank)
            for place in SLOW[how]:
                line = rf"Rank {rank} has waited \d+ s at .*: rank 2 .*{place}\."
                assert re.search(line, said), said
            # Once for each wait, and then when it has been twice as long.
            assert said.count(f"Rank {rank} has waited") == len(SLOW[how])
            assert "trained 8" in said
        assert "has waited" not in crew.said(2)


def test_a_worker_that_has_left_fit_is_not_waited_for(tmp_path):
    with _crew(tmp_path, "leaves", timeout_s=10 * workers.DEADLINE_S) as crew:
        for said in _ended_for(crew, 2):
            assert re.search(r"rank 2 has left fit; \d+ s ago it was computing step 6", said)
        assert crew.processes[2].poll() is None


def test_a_worker_that_has_ended_is_named(tmp_path):
    with _crew(tmp_path, "dies", timeout_s=10 * workers.DEADLINE_S) as crew:
        for said in _ended_for(crew, 2):
            assert "rank 2 has ended" in said, said
