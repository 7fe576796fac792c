"""The wheel and the sdist: what they contain, and that an installed wheel launches and trains."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest

import tf_gossip_pga as pga
from tests.support import deadlines
from tools import build

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="builds what git tracks"),
]

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


def _train_two_workers(python: pathlib.Path, site: str, folder: pathlib.Path):
    (folder / "train.py").write_text(SCRIPT)
    command = ("-m", "tf_gossip_pga.launch", "--workers=2", "train.py")
    said = _run(str(python), *command, cwd=folder)
    for rank in (0, 1):
        assert f"[{rank}] rank {rank} trained 4 {pathlib.Path(site, 'tf_gossip_pga')}" in said


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel and the sdist of this checkout."""
    return build.build(ROOT, tmp_path_factory.mktemp("dist"))


# ---- What is built ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_build_by_somebody_else_gives_the_same_files(dist, tmp_path):
    umask = os.umask(0o077)
    try:
        again = build.build(ROOT, tmp_path)
    finally:
        os.umask(umask)
    assert [path.suffix for path in dist] == [".whl", ".gz"]
    assert [path.name for path in again] == [path.name for path in dist]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in dist]


@pytest.mark.slow
def test_a_package_index_would_show_both_files(dist):
    said = _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist), cwd=ROOT)
    assert said.count("PASSED") == 2


@pytest.mark.slow
def test_the_sdist_has_all_files_of_the_project_and_the_wheel_only_the_package(dist):
    wheel, sdist = dist
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    added = {name for name in names if name.startswith("tf_gossip_pga.egg-info/")}
    assert set(names) - added - {"PKG-INFO", "setup.cfg"} == set(build.tracked(ROOT))

    with zipfile.ZipFile(wheel) as archive:
        info = f"tf_gossip_pga-{pga.__version__}.dist-info/"
        names = {name for name in archive.namelist() if not name.startswith(info)}
        metadata = archive.read(f"{info}METADATA").decode()
    package = {name for name in build.tracked(ROOT) if name.startswith("tf_gossip_pga/")}
    assert names == package and "tf_gossip_pga/py.typed" in package
    assert {"License-Expression: Apache-2.0", "License-File: LICENSE"} < set(metadata.splitlines())


# ---- What is installed --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_trains_two_workers_far_from_its_sources(dist, tmp_path):
    # What the wheel depends on comes from this environment, the wheel itself does not.
    venv.create(tmp_path / "new", symlinks=True)
    python = tmp_path / "new" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = pathlib.Path(_run(str(python), "-c", where, cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(_run(sys.executable, "-c", where, cwd=tmp_path))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "install", "--no-deps", "--target", str(site), str(dist[0]), cwd=tmp_path)
    assert (site / "bin" / "gossip-pga").exists()
    _train_two_workers(python, str(site), tmp_path)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text()))
OLDEST = {
    name: f"{limit}.*"
    for name, limit in re.findall(r"([\w-]+)>=([\d.]+)", " ".join(PROJECT["dependencies"]))
}
NEWEST = {name: PINS[name] for name in OLDEST}
# Private names of TensorFlow and Keras, in unit tests and in exchanges between processes.
PRIVATE = (
    "unit/test_callback_list.py",
    "unit/test_supported.py",
    "integration/test_collectives.py",
)


@functools.cache
def _python(version: str) -> str:
    """Return the command of an installed Python, or skip the test."""
    command = f"python{version}"
    found = shutil.which(command)  # may be a stand-in that knows of no such version
    if not found or subprocess.run([found, "-c", "import venv"], capture_output=True).returncode:
        pytest.skip(f"there is no {command}")
    return found


@pytest.mark.wheels
@pytest.mark.parametrize(
    ("python", "versions"),
    [
        pytest.param("3.11", OLDEST, id="3.11-oldest"),
        *(pytest.param(version, NEWEST, id=version) for version in ("3.11", "3.12", "3.13")),
    ],
)
def test_a_wheel_trains_two_workers_with_other_versions(dist, tmp_path, python, versions):
    _run(_python(python), "-m", "venv", str(tmp_path / "new"), cwd=tmp_path)
    new = tmp_path / "new" / "bin" / "python"
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    needed = [f"{name}=={PINS[name]}" for name in ("pytest", "hypothesis")]
    pip = (str(new), "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet")
    _run(*pip, "install", str(dist[0]), *wanted, *needed, cwd=tmp_path)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    _train_two_workers(new, _run(str(new), "-c", where, cwd=tmp_path).strip(), tmp_path)

    # The tests come from here, and the package from the wheel.
    for name in ("tests", "tools", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    tests = [f"tests/{name}" for name in PRIVATE]
    # Old versions warn of what newer ones have changed.
    _run(str(new), "-m", "pytest", "-o", "filterwarnings=default", *tests, cwd=tmp_path)
