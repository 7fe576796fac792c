"""Functions of modules, scripts and notebooks, which `pga.run` calls in worker processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import tf_gossip_pga as pga
from tests.support import deadlines, processes, product
from tf_gossip_pga.errors import LaunchError

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]


def _rank() -> int:
    return json.loads(os.environ["TF_CONFIG"])["task"]["index"]


# ---- Functions of a module, without TensorFlow --------------------------------------------------


def _place(*args, **kwargs):
    size = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
    print("called", args, kwargs)
    return _rank(), size, os.getpid(), os.getcwd(), "tensorflow" in sys.modules


def test_each_worker_calls_the_function_and_rank_0_returns(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = pga.run(_place, ["a"], {"key": 1}, workers=3)
    assert result[:2] == (0, 3)
    assert result[2] != os.getpid()
    assert result[3:] == (str(tmp_path), False)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"[{rank}] called ('a',) {{'key': 1}}" for rank in range(3)]
    assert "TF_CONFIG" not in os.environ


def _fails():
    if _rank() == 1:
        raise ValueError("the cause")
    time.sleep(600)


def test_an_exception_is_raised_with_the_end_of_the_output():
    with pytest.raises(LaunchError, match="Rank 1 failed first, with exit code 1") as caught:
        pga.run(_fails)
    assert '    raise ValueError("the cause")\n  ValueError: the cause' in str(caught.value)


def _outlives():
    rank = _rank()
    del os.environ["TF_CONFIG"]  # a function may change its environment
    if rank == 0:
        raise ValueError
    return rank


def test_without_rank_0_the_next_one_returns():
    assert pga.run(_outlives, workers=3, min_workers=2) == 1


def _unpicklable():
    return threading.Lock() if _rank() == 0 else 1


def test_a_result_that_cannot_be_pickled_is_an_error():
    with pytest.raises(LaunchError, match="The result of the function, a lock, cannot be sent"):
        pga.run(_unpicklable)


def test_what_cannot_be_pickled_is_an_error_before_anything_starts():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be sent to the workers .* inside the function"):
        pga.run(lambda: lock)
    with pytest.raises(TypeError, match="cannot be sent to the workers with its arguments"):
        pga.run(_place, [lock])
    with pytest.raises(TypeError, match="function must be callable, received 3"):
        pga.run(3)
    with pytest.raises(ValueError, match="workers must be a whole number >= 1, received 0"):
        pga.run(_place, workers=0)


def test_without_cloudpickle_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match=r"needs the package cloudpickle.*pip install"):
        pga.run(_place)


def test_one_of_several_workers_starts_no_others(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="This process is one of several"):
        pga.run(_rank)
    monkeypatch.setenv("TF_CONFIG", product.tf_config(["a:1", "b:1"], 0))
    with pytest.raises(RuntimeError, match=r"one of 2 workers \(found by TF_CONFIG\)"):
        pga.run(_rank)
    monkeypatch.setenv("TF_GOSSIP_PGA_CLUSTER", "none")
    assert pga.run(_rank) == 0


def _preempted():
    sys.exit(pga.PREEMPTED)


def test_a_preempted_function_ends_the_program_with_its_exit_code(capfd):
    with pytest.raises(SystemExit) as ended:
        pga.run(_preempted)
    assert ended.value.code == pga.PREEMPTED
    assert "The workers saved a checkpoint and stopped" in capfd.readouterr().err


def _asks_for_an_end():
    """Send SIGTERM to the process that has called `pga.run`, and return once it is forwarded."""
    forwarded = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: forwarded.set())
    if _rank() == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    while not forwarded.wait(0.05):
        pass
    return "saved"


def test_sigterm_is_forwarded_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    assert pga.run(_asks_for_an_end, workers=1) == "saved"
    assert signal.getsignal(signal.SIGTERM) == before


# ---- Functions of a script, and of a notebook ---------------------------------------------------

# As in a notebook, the function has no file, and the package is found by a change of `sys.path`.
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {folder!r}]
import helper
import tf_gossip_pga as pga

class Pair:
    def __init__(self, *values):
        self.values = values

step = 10

def train(first):
    import json, os
    return Pair(first, helper.add(step, json.loads(os.environ["TF_CONFIG"])["task"]["index"]))

result = pga.run(train, args=["a"], workers=2)
assert isinstance(result, Pair)
print(*result.values)
"""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_function_of_a_script_needs_no_file_and_no_guard(tmp_path):
    (tmp_path / "helper.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT.format(root=str(ROOT), folder=str(tmp_path)),
        cwd=tmp_path / "empty",
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert (done.stdout, done.stderr) == ("a 10\n", "")


KILLED = """
import pathlib, sys
sys.path.insert(0, {root!r})
import tf_gossip_pga as pga

def train():
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("started", os.getpid(), child.pid)
    time.sleep(600)

pga.run(train, workers=2)
"""


def test_workers_and_their_children_end_with_a_caller_that_is_killed(tmp_path):
    caller = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(root=str(ROOT))],
        env={**_environment(), "TMPDIR": str(tmp_path)},  # nobody removes its folder
        stdout=subprocess.PIPE,
        text=True,
    )
    with caller:
        try:
            said = [line.split() for line in processes.lines(caller, 2)]
        finally:
            caller.kill()
    pids = [int(pid) for _, _, *both in said for pid in both]
    assert len(pids) == 4
    processes.await_end(pids)


NOTEBOOK = """
import tf_gossip_pga as pga

def train(factor):
    print("in a worker")
    import json, os
    return factor * len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])

pga.run(train, args=[5], workers=2)
"""


@pytest.mark.clusters
def test_a_notebook_shows_the_output_and_the_result():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(NOTEBOOK)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    settings = {"timeout": int(deadlines.long()), "kernel_name": "python3"}
    resources = {"metadata": {"path": str(ROOT)}}  # the working directory
    nbclient.NotebookClient(notebook, resources=resources, **settings).execute()
    outputs = notebook.cells[0].outputs
    texts = "".join(each["text"] for each in outputs if each["output_type"] == "stream")
    assert sorted(texts.splitlines()) == ["[0] in a worker", "[1] in a worker"]
    (result,) = [each for each in outputs if each["output_type"] == "execute_result"]
    assert result["data"]["text/plain"] == "10"


# ---- A fit --------------------------------------------------------------------------------------


def _fit(epochs: int):
    cluster = pga.initialize()
    import keras
    import numpy as np

    keras.utils.set_random_seed(cluster.rank)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(cluster.rank).normal(size=(32, 2)).astype("float32")
    history = model.fit(
        x, x.sum(1), batch_size=8, epochs=epochs, callbacks=[pga.GossipPGA(H=4)], verbose=0
    )
    kernels = cluster.gather(model.get_weights()[0].tolist())
    return kernels, history.history["loss"]


@pytest.mark.slow  # functions without TensorFlow: the other tests
def test_a_function_trains_one_model(capsys):
    kernels, losses = pga.run(_fit, kwargs={"epochs": 3}, workers=2)
    assert len(kernels) == 2
    assert kernels[0] == kernels[1]
    assert losses[-1] < losses[0]
    assert "2 workers on 1 host are connected over gRPC" in capsys.readouterr().out
