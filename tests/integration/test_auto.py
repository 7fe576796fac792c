"""H="auto" in real processes: all ranks choose the same."""

import pytest

pytestmark = pytest.mark.multiprocess


def train(cluster, folder, overlap):
    import keras
    import numpy as np

    import tf_gossip_pga as pga

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x = np.random.default_rng(cluster.rank).normal(size=(60, 4)).astype("float32")
    gossip = pga.GossipPGA(H="auto", overlap=overlap)
    checkpoint = pga.Checkpoint(gossip, folder, every=2)
    callbacks = [gossip, checkpoint]
    fit = {"batch_size": 1, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    history = model.fit(x, x[:, :3], epochs=3, **fit).history
    first = {"state": gossip.state, "H": history["H"], "averages": gossip.global_steps}
    # A new callback that resumes has the same schedule.
    resumed = pga.GossipPGA(H="auto", overlap=overlap)
    again = pga.Checkpoint(resumed, folder)
    epoch = again.restore(model)
    saved = resumed.state
    fit["callbacks"] = [resumed, again]
    model.fit(x, x[:, :3], epochs=epoch + 2, initial_epoch=epoch, **fit)
    return {**first, "saved": saved, "resumed": resumed.state, "weights": _weights(model)}


def _weights(model):
    return [weight.tolist() for weight in model.get_weights()]


@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_ranks_choose_the_same_from_their_times_and_distances(pools, tmp_path, overlap):
    ranks = pools.run(train, 2, folder=str(tmp_path), overlap=overlap)
    assert ranks[0] == ranks[1]
    state = ranks[0]["state"]["period"]
    # Two ranks that gossip are equal after each step, and exchanges of so small a model take most
    # of the time: H grows at least once.
    assert {*state["times"]} >= {"compute_s", "average_s"}
    assert state["reference"] > 0
    assert ranks[0]["averages"] < 3 * 60 / 6
    assert max(ranks[0]["H"]) >= 12
    assert ranks[0]["saved"]["period"]["periods"] == state["periods"]
    assert ranks[0]["resumed"]["period"]["periods"] > state["periods"]
