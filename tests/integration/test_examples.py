"""The examples run: the script is preempted, and continues; Ray's where it is installed."""

import json
import pathlib
import subprocess
import sys
import threading

import pytest

from tests.support import deadlines
from tf_gossip_pga import PREEMPTED

pytestmark = pytest.mark.multiprocess

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def _start(folder: pathlib.Path, epochs: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tf_gossip_pga.launch", "--workers=2"]
    script = [str(EXAMPLES / "digits.py"), f"--directory={folder}", f"--epochs={epochs}"]
    return subprocess.Popen(
        [*command, *script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow  # the launcher with a script without TensorFlow: test_launch
def test_the_script_stops_after_sigterm_and_continues(tmp_path):
    with _start(tmp_path, epochs=100_000) as job:
        timer = threading.Timer(deadlines.long(), job.terminate)
        timer.start()
        try:
            next(line for line in job.stdout if "Epoch 2/" in line)
        finally:
            timer.cancel()
            job.terminate()
        said, _ = job.communicate(timeout=deadlines.long())
    assert job.returncode == PREEMPTED, said
    assert not (tmp_path / "digits.keras").exists()
    newest = max(tmp_path.glob("checkpoint-*/manifest.json"))
    epoch = json.loads(newest.read_text())["epoch"]
    with _start(tmp_path, epochs=epoch + 1) as job:
        said, _ = job.communicate(timeout=deadlines.long())
    assert job.returncode == 0, said
    assert f"Epoch {epoch + 1}/{epoch + 1}" in said
    assert (tmp_path / "digits.keras").exists()
    _, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) >= 2


def test_ray_starts_the_workers(tmp_path):
    pytest.importorskip("ray")
    subprocess.run(
        [sys.executable, EXAMPLES / "ray_train.py", tmp_path],
        timeout=deadlines.long(),
        check=True,
    )
    assert (tmp_path / "model.keras").exists()
