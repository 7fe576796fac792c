"""The report of real workers: a slow one, one that is lost and returns, one by the launcher."""

import pathlib
import re
import sys

import pytest

from tests.support import deadlines, nursery
from tests.unit.test_report_page import Parsed
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess


def _slow_fit(cluster, path, slow, settings):
    """Train two epochs while a rank is always the last; return what the page is made of."""
    import keras
    import numpy as np

    import tf_gossip_pga as pga
    from tests.support.last import BeginsLast

    keras.utils.set_random_seed(cluster.rank)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    x = np.random.default_rng(cluster.rank).normal(size=(24, 4)).astype("float32")
    gossip, report = pga.GossipPGA(H=4, **settings), pga.Report(path)
    arrivals = pathlib.Path(path).parent / "arrivals"
    arrivals.mkdir(exist_ok=True)
    callbacks = [BeginsLast(cluster, slow, arrivals, seconds=0.2), gossip, report]
    fit = {"batch_size": 4, "epochs": 2, "verbose": 0, "validation_split": 0.25}
    # Compile first, because the ranks take different times for that.
    model.fit(x, x.sum(1), callbacks=[gossip], **fit)
    history = model.fit(x, x.sum(1), callbacks=callbacks, **fit)
    return report._record.as_json(), history.history, len(gossip.run.recorder.listeners)


@pytest.mark.parametrize("settings", [{}, {"overlap": True, "topology": "ring"}])
def test_the_page_says_that_the_others_waited_for_the_slow_rank(pools, tmp_path, settings):
    path = tmp_path / "report.html"
    found = pools.run(_slow_fit, 3, path=str(path), slow=2, settings=settings)
    assert {listeners for *_, listeners in found} == {0}
    records = [record for record, *_ in found]
    assert records[0]["waiting"] == records[1]["waiting"] == records[2]["waiting"]
    waiting = records[0]["waiting"]
    for_slow = waiting[0][2], waiting[1][2]
    assert min(for_slow) > sum(map(sum, waiting)) - sum(for_slow)
    text = Parsed(path.read_text("utf-8")).text
    assert re.search(r"Rank 2 kept the others waiting longest: [\d.]+ s in all", text)
    assert "Training finished after 2 epochs." in text
    assert "No worker was lost." in text
    history = found[0][1]
    assert [each["logs"]["loss"] for each in records[0]["epochs"]] == history["loss"]
    assert [each["logs"]["val_mae"] for each in records[0]["epochs"]] == history["val_mae"]
    assert f"val_loss {history['val_loss'][-1]:.4g} last epoch" in text
    # The second fit begins with step 11. After step 20, the replicas are equal already.
    assert [step for step, _ in records[0]["distances"]] == [12, 15, 16, 20]


# Rank 0, the chief, kills itself in the second epoch. The others wait for its return before the
# fourth; then it is the chief again, and writes the page.
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
        if first_life and cluster.rank == 0 and gossip.step == 12:
            os.kill(os.getpid(), signal.SIGKILL)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((32, 4), "float32")
gossip = pga.GossipPGA(H=4, on_worker_lost="continue")
checkpoint = pga.Checkpoint(gossip, sys.argv[1] + "/checkpoints", every=10)
report = pga.Report(sys.argv[1] + "/report.html")
model.fit(x, x[:, :1], batch_size=4, epochs=5, verbose=0, callbacks=[Fate(), gossip, report],
          initial_epoch=checkpoint.restore(model))
print("epochs on rank", cluster.rank, [each.number for each in report._record.epochs])
"""


@pytest.mark.slow
def test_a_lost_worker_and_its_return_are_on_the_page(tmp_path):
    said = []
    with nursery.forks():
        launch.launch(
            [sys.executable, "-c", LOSES, str(tmp_path)],
            workers=3,
            min_workers=2,
            rejoins=1,
            deadline_s=deadlines.long(),
            write=said.append,
        )
    output = "".join(said)
    for rank in range(3):
        assert f"epochs on rank {rank} [1, 2, 3, 4, 5]" in output, output
    text = Parsed((tmp_path / "report.html").read_text("utf-8")).text
    lost = re.search(r"Rank 0 was lost at step (\d+); 2 workers trained on\.", text)
    assert lost, text
    assert int(lost[1]) in {12, 13}  # the others notice it in the next exchange
    # It may join at the third epoch already.
    assert re.search("Rank 0 joined at step (16|24); 3 workers trained on.", text), text
    assert "Training finished after 5 epochs." in text
