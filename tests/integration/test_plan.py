"""A plan whose network and computation are measured where it runs."""

import json
import subprocess
import sys

import pytest

from tests.support import deadlines

pytestmark = pytest.mark.multiprocess


# ---- The command --------------------------------------------------------------------------------


# NumPy warns inside Keras, when a model is saved.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
def test_the_command_measures_where_it_runs(tmp_path):
    import keras

    model, output = tmp_path / "model.keras", tmp_path / "plan.json"
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(512), keras.layers.Dense(512)]).save(
        model
    )
    command = f"-m tf_gossip_pga.launch --workers=2 -m tf_gossip_pga.plan --measure --model={model}"
    done = subprocess.run(
        [sys.executable, *command.split(), "--nodes=16", "--latency_ms=2", f"--output={output}"],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(output.read_text())
    settings = content["settings"]
    assert settings["parameters"] == 9 * 512 + 513 * 512
    assert (settings["nodes"], settings["latency_ms"]) == (16, 2)  # given, not measured
    assert min(settings[name] for name in ("mbit", "compute_ms", "straggler_ms")) > 0
    assert done.stdout.count("Recommended:") == 1  # of rank 0
