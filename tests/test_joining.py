"""Workers that are lost and started again, in real processes: the others take them in."""

import json
import sys

import numpy as np
import pytest

from tests import nursery, workers
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess

# Some ranks kill themselves in the third epoch of their first life. In the fourth the others wait
# until these have come back, so that what follows does not hang on how fast they are.
PROGRAM = """
import json, os, pathlib, signal, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
from tf_gossip_pga import collectives
folder = pathlib.Path(sys.argv[1])
settings, dying = map(json.loads, sys.argv[2:])
first_life = "TF_GOSSIP_PGA_JOIN" not in os.environ
second = settings.pop("second", None)
if first_life:
    second = None

class Fate(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):  # invited, but not yet a member
        if second == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    def on_epoch_begin(self, epoch, logs=None):
        while epoch == 3 and len(collectives.active().guests()) < len(cluster.lost):
            time.sleep(0.1)
    def on_train_batch_end(self, batch, logs=None):
        if first_life and cluster.rank in dying and gossip.step == 19:
            os.kill(os.getpid(), signal.SIGKILL)

keras.utils.set_random_seed(cluster.rank)
width = 17 if second == "differs" else 16
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(width, "relu"),
                          keras.layers.BatchNormalization(), keras.layers.Dense(1)])
model.compile(keras.optimizers.Adam(0.01), "mse")
random = np.random.default_rng(cluster.rank)
x = random.normal(size=(64, 8)).astype("float32")
y = x.sum(1, keepdims=True)
H = settings.pop("H")
if H == "adaptive":
    H = pga.AdaptivePeriod(initial=2, warmup_steps=4, maximum=8)
gossip = pga.GossipPGA(H=H, on_worker_lost="continue", **settings)
checkpoint = pga.Checkpoint(gossip, folder / "checkpoints")
history = model.fit(x, y, batch_size=8, epochs=8, verbose=0, validation_data=(x, y),
                    initial_epoch=checkpoint.restore(model),
                    callbacks=[Fate(), gossip, checkpoint])
result = {
    "weights": [float(v) for w in model.get_weights() for v in np.ravel(w)],
    "step": gossip.step, "state": gossip.state, "members": cluster.members,
    "iterations": int(model.optimizer.iterations), "logs": history.history,
    "epochs": history.epoch, "period": gossip.state["period"],
}
(folder / f"{cluster.rank}.json").write_text(json.dumps(result))
"""


def _run(
    folder, settings: dict, dying: list[int], min_workers: int = 3
) -> tuple[dict[int, dict], str]:
    """What those that have ended well have left behind, and what all have said."""
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(settings), json.dumps(dying)]
    said = []
    with nursery.forks():
        launch.launch(
            command,
            workers=3,
            min_workers=min_workers,
            rejoins=len(dying),
            deadline_s=workers.DEADLINE_S,
            write=said.append,
        )
    results = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("[0-9].json")}
    print("".join(said))
    return results, "".join(said)


@pytest.mark.parametrize(
    ("settings", "dying"),
    [
        ({"H": 5, "optimizer_state": "average"}, [2]),
        ({"H": 3, "overlap": True, "wire_dtype": "int8", "topology": "ring"}, [0]),
        ({"H": "adaptive"}, [0, 1]),
    ],
)
def test_who_comes_back_is_taken_in_and_ends_like_all(tmp_path, settings, dying):
    results, said = _run(tmp_path, settings, dying)
    assert sorted(results) == [0, 1, 2]
    for each in results.values():
        assert each["members"] == [0, 1, 2]
        assert (each["step"], each["iterations"]) == (64, 64)
        assert each["state"] == results[0]["state"]
        np.testing.assert_array_equal(each["weights"], results[0]["weights"])
    came_back = results[dying[0]]
    others = [each for rank, each in results.items() if rank not in dying]
    for rank in dying:
        assert f"Rank {rank} failed, with signal SIGKILL. It is started again, to join" in said
    epochs = came_back["epochs"]
    assert epochs == list(range(3, 8))
    for other in others:
        assert other["epochs"] == list(range(8))
        for name in ("loss", "val_loss", "consensus_distance"):
            np.testing.assert_array_equal(other["logs"][name][3:], came_back["logs"][name])
    assert came_back["logs"]["loss"][-1] < others[0]["logs"]["loss"][0]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("differs", "Rank 1 cannot join the others again: it differs from them in the model"),
        ("dies", "goes on without rank 1: 2 of 3 workers are left. It was at taking in rank 1."),
    ],
)
def test_the_others_go_on_without_one_that_cannot_be_taken_in(tmp_path, second, why):
    results, said = _run(tmp_path, {"H": 5, "second": second}, dying=[1], min_workers=2)
    assert sorted(results) == [0, 2]
    for each in results.values():
        assert (each["members"], each["step"]) == ([0, 2], 64)
        np.testing.assert_array_equal(each["weights"], results[0]["weights"])
    assert why in said
