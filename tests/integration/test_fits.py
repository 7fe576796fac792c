"""A worker dies between the fits of one script, as `python tests/fits.py` has it; here one kill."""

import re
import sys

import pytest

from tests import fits
from tests.support import deadlines, nursery
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize(
    ("victim", "after_s"), [(0, 0.3), pytest.param(2, 0.8, marks=pytest.mark.slow)]
)
def test_the_survivors_of_a_kill_complete_all_fits(victim, after_s):
    with nursery.forks():
        results, exit_codes, said = fits.run(victim, after_s, fits=12)
    assert fits.problem(victim, 12, results, exit_codes) is None, said


CATCHES = """
import os, pathlib, sys, time
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.zeros((20, 4), "float32")
gossip = pga.GossipPGA(H=2, on_worker_lost="continue")

def fit():
    model.fit(x, x[:, :1], batch_size=10, callbacks=[gossip], verbose=0)

fit()
folder = pathlib.Path(sys.argv[1])
if cluster.rank == 2:
    while len(list(folder.iterdir())) < 2:  # until the others have left fit
        time.sleep(0.1)
    os._exit(0)
(folder / str(cluster.rank)).touch()
try:
    cluster.barrier()
except pga.WorkerLost as error:
    print("caught:", error)
fit()
print("members", cluster.members, "gathered", cluster.gather(cluster.rank), "step", gossip.step)
"""


def test_a_loss_that_a_script_catches_between_fits_does_not_end_the_next(tmp_path):
    output = []
    with nursery.forks():
        command = [sys.executable, "-c", CATCHES, str(tmp_path)]
        launch.launch(command, 3, write=output.append, deadline_s=deadlines.long())
    said = "".join(output)
    assert len(re.findall("caught: .* lost rank 2 at cluster.barrier: ", said)) == 2, said
    assert said.count("members (0, 1) gathered [0, 1] step ") == 2, said
