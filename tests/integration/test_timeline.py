"""The timeline of real workers: a slow one, one that is lost and returns, one by the launcher."""

import collections
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.support import deadlines, nursery
from tests.support.curves import curves
from tests.unit.test_report_page import Parsed
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess

STEPS, BATCH = 6, 4


def _slow_fit(cluster, folder, slow, settings):
    """Train two epochs while a rank, if one is named, begins every exchange last."""
    import keras

    import tf_gossip_pga as pga
    from tests.support.last import BeginsLast

    keras.utils.set_random_seed(cluster.rank)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x = np.random.default_rng(cluster.rank).normal(size=(STEPS * BATCH, 4)).astype(np.float32)

    gossip = pga.GossipPGA(H=4, **settings)
    others = [pga.Timeline(f"{folder}/trace.json", steps=(3, 11)), pga.TensorBoard(folder, every=3)]
    fit = {"batch_size": BATCH, "epochs": 2, "verbose": 0, "validation_data": (x, x[:, :1])}
    # Compile first, because the ranks take different times for that.
    model.fit(x, x[:, :1], callbacks=[gossip], **fit)
    gossip = pga.GossipPGA(H=4, **settings)  # counts steps from 1 again
    held_up = []
    if slow is not None:
        arrivals = pathlib.Path(folder) / "arrivals"
        arrivals.mkdir(exist_ok=True)
        held_up = [BeginsLast(cluster, slow, arrivals, seconds=0.15)]
    model.fit(x, x[:, :1], callbacks=[*held_up, gossip, *others], **fit)
    return [gossip.distances, len(gossip.run.recorder.listeners)]


def _events(path) -> list[dict]:
    return [each for each in json.loads(path.read_text())["traceEvents"] if each["ph"] == "X"]


def _waited(events) -> dict[tuple[int, int], float]:
    """For each rank and the rank that it waited for, the milliseconds."""
    found = collections.defaultdict(float)
    for each in events:
        if each["cat"] == "wait":
            found[each["pid"], each["args"]["rank"]] += each["dur"] / 1e3
    return found


@pytest.mark.parametrize(
    "settings", [{"optimizer_state": "average"}, {"overlap": True, "topology": "ring"}]
)
def test_the_others_wait_for_the_slow_rank(pools, tmp_path, settings):
    slow = 2
    results = pools.run(_slow_fit, 3, folder=str(tmp_path), slow=slow, settings=settings)
    assert {listeners for _, listeners in results} == {0}
    events = _events(tmp_path / "trace.json")
    assert {each["pid"] for each in events} == {0, 1, 2}
    assert {each["args"]["step"] for each in events} == set(range(3, 12))

    # Of all waits of the two others, nearly all are for the slow rank, which hardly waits.
    waited = _waited(events)
    for_slow = waited[0, slow], waited[1, slow]
    other = sum(waited.values()) - sum(for_slow)
    assert min(for_slow) > other, dict(waited)

    kinds = collections.Counter(each["name"] for each in events if each["pid"] == 0)
    assert kinds["compute"] == 9
    assert kinds["global average"] == 2 + 1  # steps 4 and 8, and the validation after step 6
    assert kinds["gossip"] == 9 - 2
    assert kinds["validation"] == 1
    # With overlap, no gossip is started right before a global average (after steps 3, 7 and 11).
    assert kinds["gossip in the background"] == (4 if "overlap" in settings else 0)
    assert kinds["average of the optimizer state"] == (0 if "overlap" in settings else 2)
    for each in events:
        if each["name"] == "global average":
            assert each["args"]["peers"] == [rank for rank in range(3) if rank != each["pid"]]
            assert each["args"]["bytes"] > 0
        if each["name"] == "gossip" and not settings.get("overlap"):
            assert each["args"]["bytes"] == 4 * (4 * 3 + 3 + 3 + 1)  # the parameters, once
    assert len([path for path in tmp_path.iterdir() if "tfevents" in path.name]) == 1


def test_tensorboard_shows_the_distances_of_all_ranks(pools, tmp_path):
    results = pools.run(_slow_fit, 3, folder=str(tmp_path), slow=None, settings={})
    (tmp_path / "trace.json").unlink()
    found = curves(tmp_path)
    expected = [(step, pytest.approx(distance)) for step, distance in results[0][0]]
    assert found["consensus_distance"] == expected
    assert [step for step, _ in found["bytes_sent"]] == [3, 6, 9, 12]
    assert found["members"] == [(step, 3.0) for step in (3, 6, 9, 12)]
    assert all(0 < share < 1 for _, share in found["communication_share"])


SCRIPT = """
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((24, 4), "float32")
model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[pga.GossipPGA(H=2)])
"""


def test_the_launcher_writes_a_timeline_and_a_report_of_a_script_that_does_not(tmp_path):
    script, trace, page = (tmp_path / name for name in ("script.py", "trace.json", "page.html"))
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "tf_gossip_pga", "run", "--workers=2"]
    command += [f"--timeline={trace}", "--timeline-steps=2:4", f"--report={page}", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=deadlines.long())
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count(f"The timeline of steps 2 to 4 is in {trace}.") == 1
    assert said.count(f"The report is in {page}.") == 1
    text = Parsed(page.read_text("utf-8")).text
    assert "Training finished after 1 epoch." in text
    assert "script.py" in text
    found = [(each["pid"], each["name"], each["args"]["step"]) for each in _events(trace)]
    for rank in range(2):
        own = [(name, step) for pid, name, step in found if pid == rank and "wait" not in name]
        expected = [("compute", 2), ("global average", 2), ("compute", 3), ("gossip", 3)]
        assert own == [*expected, ("compute", 4), ("global average", 4)]


# A rank kills itself in the second epoch, and the others wait for its return before the fourth.
LOSES = """
import os, signal, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
from tf_gossip_pga.exchange import process
first_life = "TF_GOSSIP_PGA_JOIN" not in os.environ

class Fate(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        while epoch == 3 and len(process.active().joining()) < len(cluster.lost):
            time.sleep(0.1)
    def on_train_batch_end(self, batch, logs=None):
        if first_life and cluster.rank == int(sys.argv[2]) and gossip.step == 12:
            os.kill(os.getpid(), signal.SIGKILL)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((32, 4), "float32")
gossip = pga.GossipPGA(H=4, on_worker_lost="continue")
checkpoint = pga.Checkpoint(gossip, sys.argv[1] + "/checkpoints", every=10)
timeline = pga.Timeline(sys.argv[1] + "/trace.json", steps=(3, 38))
model.fit(x, x[:, :1], batch_size=4, epochs=5, verbose=0, callbacks=[Fate(), gossip, timeline],
          initial_epoch=checkpoint.restore(model))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])  # 0: the chief, which is the chief again when it returns
def test_a_lost_rank_ends_and_a_joining_one_appears(tmp_path, lost):
    said = []
    kept, second = sorted({0, 1, 2} - {lost})
    with nursery.forks():
        launch.launch(
            [sys.executable, "-c", LOSES, str(tmp_path), str(lost)],
            workers=3,
            min_workers=2,
            rejoins=1,
            deadline_s=deadlines.long(),
            write=said.append,
        )
    print("".join(said))
    events = _events(tmp_path / "trace.json")
    computed = {
        rank: [e["args"]["step"] for e in events if (e["pid"], e["name"]) == (rank, "compute")]
        for rank in range(3)
    }
    everything = list(range(3, 39))
    assert computed[kept] == computed[second] == everything
    # The rank had not shared its second epoch when it was lost. It may join at any later epoch.
    joined = computed[lost][6]
    assert joined in (17, 25)
    assert computed[lost] == [*range(3, 9), *range(joined, 39)]
    kinds = {rank: {e["name"] for e in events if e["pid"] == rank} for rank in range(3)}
    assert {"regrouping", "joining", "state transfer"} <= kinds[kept] & kinds[second]
    assert {"joining", "state transfer"} <= kinds[lost]
    assert "regrouping" not in kinds[lost]
    without = [e for e in events if e["name"] == "global average" and e["args"]["step"] == 16]
    assert {(e["pid"], *e["args"]["peers"]) for e in without} == {(kept, second), (second, kept)}
