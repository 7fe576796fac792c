"""The wheel in an environment of its own, far from the sources: it imports, launches and trains."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv

import pytest

from tests.support import deadlines

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((16, 4), "float32")
gossip = pga.GossipPGA(H=2)
checkpoint = pga.Checkpoint(gossip, "checkpoints")
model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[gossip, checkpoint])
print("rank", cluster.rank, "trained", gossip.step, pga.__file__)
pga.plan.predict(nodes=4, parameters=100, compute_ms=1, mbit=100)
pga.simulate.quadratic(2, samples=4)
"""


def _run(*command, cwd, **env) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _sources(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "tf_gossip_pga").rglob("*.py")}


def test_a_wheel_has_every_package_and_trains_two_workers(tmp_path):
    # Without build isolation nothing is downloaded; from a copy, since a build writes next to it.
    unbuilt = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tf_gossip_pga", tmp_path / "sources" / "tf_gossip_pga", ignore=unbuilt)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "sources")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    _run(*pip, *build, str(tmp_path / "sources"), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")

    # What the wheel depends on comes from this environment, the wheel itself does not.
    venv.create(tmp_path / "new", symlinks=True)
    python = tmp_path / "new" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = pathlib.Path(_run(str(python), "-c", where, cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(_run(sys.executable, "-c", where, cwd=tmp_path))
    _run(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    assert _sources(site) == _sources(tmp_path / "sources")
    assert (site / "bin" / "gossip-pga").exists()

    (tmp_path / "train.py").write_text(SCRIPT)
    command = ("-m", "tf_gossip_pga.launch", "--workers=2", "train.py")
    said = _run(str(python), *command, cwd=tmp_path)
    for rank in (0, 1):
        assert f"[{rank}] rank {rank} trained 4 {site / 'tf_gossip_pga'}" in said
