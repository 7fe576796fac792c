"""Workers that are late, stopped, gone or elsewhere, in real processes: the others say who."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import time

import pytest

from tests.support import addresses, deadlines, nursery, product, workers

pytestmark = pytest.mark.multiprocess

# Three ranks train two epochs of four steps; one does something else on the way.
PROGRAM = """
import json, os, pathlib, re, signal, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
from tests.support import deadlines, product
how, odd, timeout_s, overlap, outputs = json.loads(sys.argv[1])
odd = cluster.rank == odd
pid = pathlib.Path(f"{outputs[2]}.pid")
if odd:
    pid.write_text(str(os.getpid()))

def keep_the_others_waiting(what):
    # Until both have reported that they wait for this rank, which does this.
    def reported():
        others = [pathlib.Path(outputs[rank]).read_text() for rank in (0, 1)]
        return all(re.search(f": rank 2 .*{what}", said) for said in others)
    deadlines.Deadline(120).until(reported)

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
        if how == "raises" and self.step == 5:
            raise OSError("disk full")
        if how == "exits" and self.step == 5:
            sys.exit(3)
    def on_test_batch_end(self, batch, logs=None):
        if how == "is slow" and self.step == 4 and batch == 0:
            keep_the_others_waiting("in the validation after step 4")
    def on_epoch_end(self, epoch, logs=None):
        if how == "is slow" and epoch == 0:
            keep_the_others_waiting("at the end of epoch 1")

class Later(keras.callbacks.Callback):
    # Comes to the exchange after step 6 when the odd one, which has told why, has ended.
    def on_train_batch_end(self, batch, logs=None):
        if gossip.step == 5:
            place = pathlib.Path("/proc", pid.read_text())
            deadlines.Deadline(120).until(lambda: not place.exists())

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
if how == "stops":  # compile before a short timeout applies
    compiled = pga.GossipPGA(H=3, overlap=overlap)
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, validation_data=(x, y),
              callbacks=[compiled])
gossip = pga.GossipPGA(H=3, timeout_s=timeout_s, overlap=overlap)
callbacks = [gossip, Odd()] if odd else [gossip]
if how in ("raises", "exits"):
    product.ask_patiently()
    callbacks = callbacks if odd else [Later(), gossip]
if odd and how == "is slow":
    keep_the_others_waiting("has not called fit")
try:
    model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0, validation_data=(x, y),
              callbacks=callbacks)
except InterruptedError:
    print("left fit", flush=True)
    time.sleep(3600)
print("trained", gossip.step, flush=True)
"""


class Crew:
    """Three processes of `PROGRAM`, and what each has printed."""

    def __init__(self, folder: pathlib.Path, *arguments):
        self._deadline = deadlines.Deadline(240)
        self._outputs = [folder / str(rank) for rank in range(3)]
        self.processes = []
        given = addresses.free(3)
        program = ["-c", PROGRAM, json.dumps([*arguments, list(map(str, self._outputs))])]
        for output in self._outputs:
            output.touch()
        for rank, output in enumerate(self._outputs):
            config = product.tf_config(given, rank)
            environment = {**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "2"}
            with output.open("w") as file:
                self.processes.append(nursery.start(program, environment, file))

    def said(self, rank: int) -> str:
        return self._outputs[rank].read_text()

    def until(self, happened):
        """Wait for a condition, with one deadline for all."""
        self._deadline.until(happened, lambda: "\n".join(map(self.said, range(3))))

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
    """Return what the other ranks have said, who have all ended with `WorkerLost` for `odd`."""
    others = sorted({0, 1, 2} - {odd})
    assert all(crew.exit_codes(others))
    for rank in others:
        said = crew.said(rank)
        assert re.search(rf"WorkerLost: Rank {rank} of 3 lost rank {odd} at", said), said
    return [crew.said(rank) for rank in others]


@pytest.mark.parametrize(
    ("odd", "overlap"), [pytest.param(0, False, marks=pytest.mark.slow), (2, True)]
)
def test_a_stopped_worker_ends_all_others_who_name_it(tmp_path, odd, overlap):
    with _crew(tmp_path, "stops", timeout_s=deadlines.scaled(6), odd=odd, overlap=overlap) as crew:
        for said in _ended_for(crew, odd):
            assert f"rank {odd} does not answer (its process is stopped, or the network" in said
        assert crew.is_stopped(odd)


@pytest.mark.slow  # a shorter stop: test_survival
def test_a_worker_that_continues_after_a_stop_is_waited_for(tmp_path):
    with _crew(tmp_path, "stops", timeout_s=deadlines.scaled(60), odd=0) as crew:
        crew.until(lambda: crew.is_stopped(0))
        time.sleep(12)  # TensorFlow's own heartbeats would not wait for so long
        os.kill(crew.processes[0].pid, signal.SIGCONT)
        assert crew.exit_codes(range(3)) == [0, 0, 0]
        assert all("trained 8" in crew.said(rank) for rank in range(3))


SLOW = [
    r"has not called fit with GossipPGA yet",
    r"for \d+ s has been in the validation after step 4",
    r"for \d+ s has been at the end of epoch 1",
]


def test_the_others_say_what_a_slow_worker_does_and_wait(tmp_path):
    with _crew(tmp_path, "is slow", timeout_s=deadlines.scaled(60)) as crew:
        assert crew.exit_codes(range(3)) == [0, 0, 0]
        for rank in (0, 1):
            said = crew.said(rank)
            for what in SLOW:
                reports = re.findall(rf"Rank {rank} has waited (\d+) s at (.*): .*{what}\.", said)
                assert reports, said
                # Once for each wait, and then when it has been twice as long. Rounded.
                waited = [int(seconds) for seconds, _ in reports]
                for before, after in itertools.pairwise(waited):
                    assert after >= 2 * before - 2, said
                assert f"Rank 2 has waited {reports[0][1]}" not in crew.said(2)
            assert "trained 8" in said


def test_a_worker_that_has_left_fit_is_not_waited_for(tmp_path):
    with _crew(tmp_path, "leaves", timeout_s=10 * deadlines.long()) as crew:
        for said in _ended_for(crew, 2):
            raised = r"rank 2 raised InterruptedError: a callback's own error"
            assert re.search(rf"{raised}; \d+ s ago it was computing step 6", said), said
        assert crew.processes[2].poll() is None


def test_a_worker_that_has_ended_is_named(tmp_path):
    with _crew(tmp_path, "dies", timeout_s=10 * deadlines.long()) as crew:
        for said in _ended_for(crew, 2):
            assert "rank 2 has ended" in said, said


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raises", "rank 2 raised OSError: disk full, and has ended"),
        pytest.param("exits", "rank 2 has left fit and ended, by sys.exit", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_an_exception_ends_says_which(tmp_path, how, why):
    with _crew(tmp_path, how, timeout_s=10 * deadlines.long()) as crew:
        for said in _ended_for(crew, 2):
            assert why in said, said


def _outcome_of_fit(on_batch_end, **arguments) -> str:
    """Return what a fit has raised, once the others know it, or `"trained"`."""
    import keras
    import numpy as np

    import tf_gossip_pga as pga

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    gossip = pga.GossipPGA(H=100, timeout_s=deadlines.long(), **arguments)
    steps = keras.callbacks.LambdaCallback(on_train_batch_end=on_batch_end)
    departures = product.active()._watchdog.departures
    before = departures._reported
    try:
        model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=[steps, gossip])
    except BaseException as error:
        # As in a notebook, the next fit is not called at once.
        deadlines.Deadline(120).until(lambda: departures._reported not in (None, before))
        return f"{type(error).__name__}: {error}"
    return "trained"


def _interrupted_fits(cluster, folder):
    """Rank 2 raises in a fit that survives it; then SIGINT reaches rank 1 in an exchange."""
    import logging
    import threading

    product.ask_patiently()
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("tf_gossip_pga").addHandler(handler)
    sent = pathlib.Path(folder, "sent")

    def fail(batch, logs):
        if cluster.rank == 2 and batch == 3:
            raise OSError("disk full")

    def interrupt():
        status = product.active()._status
        deadlines.Deadline(120).until(lambda: status.tell().waits_at == "the gossip of step 5")
        os.kill(os.getpid(), signal.SIGINT)
        sent.write_text("")

    def be_interrupted(batch, logs):
        if batch == 4 and cluster.rank == 1:
            threading.Thread(target=interrupt).start()
        if batch == 4 and cluster.rank == 0:
            deadlines.Deadline(120).until(sent.exists)

    outcomes = [_outcome_of_fit(fail, on_worker_lost="continue")]
    if cluster.rank < 2:
        for number, on_batch_end in enumerate((be_interrupted, lambda batch, logs: None)):
            outcomes.append(_outcome_of_fit(on_batch_end))
            # In a notebook the next fit is not called, nor the process ended, at once.
            first, second = (pathlib.Path(folder, f"{number} {rank}") for rank in (0, 1))
            (second if cluster.rank else first).touch()
            deadlines.Deadline(120).until(lambda: first.exists() and second.exists())  # noqa: B023
    return {"outcomes": outcomes, "said": "\n".join(said)}


def test_the_others_know_what_was_raised_and_what_was_interrupted(tmp_path):
    first, second, third = workers.run(_interrupted_fits, 3, folder=str(tmp_path))
    assert third["outcomes"] == ["OSError: disk full"]
    # Rank 0 has completed the exchange in which rank 1 was interrupted, and fails in the next one.
    for survivor, unfinished in ((first, 6), (second, 5)):
        assert survivor["outcomes"][0] == "trained"
        assert "continues without rank 2, which raised OSError: disk full" in survivor["said"]
        restart = f"it did not complete the gossip of step {unfinished}: it was interrupted there"
        assert restart in survivor["outcomes"][2]
    assert second["outcomes"][1] == "KeyboardInterrupt: "
    assert "lost rank 1 at" in first["outcomes"][1]
    assert (
        "rank 1 raised KeyboardInterrupt in the gossip of step 5, and must be restarted"
        in (first["outcomes"][1])
    )
