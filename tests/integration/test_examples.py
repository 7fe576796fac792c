"""Every example runs on two workers, and reaches the accuracy that its docstring promises.

Ray's example runs where Ray is installed, and the notebook runs in a kernel where there is one.
"""

import ast
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest

from tests.support import deadlines, processes
from tf_gossip_pga import PREEMPTED

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

QUICK = ["custom_train_step.py"]
SLOW = ["gan.py", "image_classification.py", "mixed_precision.py", "py_dataset.py"]
SLOW += ["text_classification.py", "transfer_learning.py"]
OTHERS = ["checkpoint_and_resume.py", "digits.py", "ray_train.py", "survive_a_loss.py"]


def _start(
    name: str, folder: pathlib.Path, *arguments: str, options: tuple[str, ...] = ("--workers=2",)
) -> subprocess.Popen:
    """Start an example with the launcher, in a folder to which it writes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tf_gossip_pga.launch", *options, EXAMPLES / name, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output_until(job: subprocess.Popen, text: str) -> str:
    """Return a job's output up to the first line with this text. Kill the job at the deadline."""
    timer = threading.Timer(deadlines.long(), job.kill)
    timer.start()
    try:
        lines = []
        for line in job.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
    finally:
        timer.cancel()
    raise AssertionError(f"The job has ended without {text!r}:\n{''.join(lines)}")


def _output(job: subprocess.Popen, returncode: int = 0) -> str:
    """Wait until a job has ended with this exit code, and return the rest of its output."""
    try:
        output, _ = job.communicate(timeout=deadlines.long())
    finally:
        job.kill()
    assert job.returncode == returncode, output
    return output


def _check(promise: str, output: str) -> None:
    """Check that the last line of an output is an accuracy above the promised one."""
    promised = re.search(r"above (0\.\d+)", promise)
    printed = re.fullmatch(r"(?:\[\d\] )?accuracy: (\d\.\d+)", output.splitlines()[-1])
    assert printed, output
    assert float(printed[1]) > float(promised[1]), output


def _check_script(name: str, output: str) -> None:
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    _check(" ".join(docstring.split()), output)


def test_every_script_has_a_test():
    assert sorted([*QUICK, *SLOW, *OTHERS]) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_a_script_reaches_the_accuracy_that_it_promises(name, tmp_path):
    with _start(name, tmp_path) as job:
        _check_script(name, _output(job))


@pytest.mark.slow  # workers that are killed, and checkpoints: test_survival and test_checkpoint
def test_the_same_command_continues_a_killed_job(tmp_path):
    name = "checkpoint_and_resume.py"
    with _start(name, tmp_path) as job:
        assert "Training begins in epoch 1." in _output_until(job, "Epoch 4/")
        for pid, command in processes.marked().items():
            if name in command and pid != job.pid:
                os.kill(pid, signal.SIGKILL)
        _output(job, returncode=1)
    with _start(name, tmp_path) as job:
        output = _output(job)
    (first,) = re.findall(r"Training begins in epoch (\d+)\.", output)
    assert 4 <= int(first) <= 40  # after the checkpoint of epoch 3, and before the end
    _check_script(name, output)


@pytest.mark.slow  # workers that are killed: test_survival
def test_the_others_survive_the_chief(tmp_path):
    name = "survive_a_loss.py"
    with _start(name, tmp_path, options=("--workers=3", "--min-workers=2")) as job:
        pid = re.search(r"kill rank 0: kill -9 (\d+)", _output_until(job, "Epoch 3/"))[1]
        os.kill(int(pid), signal.SIGKILL)
        output = _output(job)
    assert "Rank 1 continues without rank 0: 2 of 3 workers remain." in output
    assert "Ranks 1, 2 have finished." in output
    _check_script(name, output)


@pytest.mark.slow  # the launcher with a script without TensorFlow: test_launch
def test_the_script_stops_after_sigterm_and_continues(tmp_path):
    with _start("digits.py", tmp_path, "--epochs=100000") as job:
        _output_until(job, "Epoch 2/")
        job.terminate()
        _output(job, returncode=PREEMPTED)
    folder = tmp_path / "digits"
    assert not (folder / "digits.keras").exists()
    newest = max(folder.glob("checkpoint-*/manifest.json"))
    epoch = json.loads(newest.read_text())["epoch"]
    with _start("digits.py", tmp_path, f"--epochs={epoch + 1}") as job:
        output = _output(job)
    assert f"Epoch {epoch + 1}/{epoch + 1}" in output
    assert (folder / "digits.keras").exists()
    _, *rows = (folder / "log.csv").read_text().splitlines()
    assert len(rows) >= 2


def test_ray_starts_the_workers(tmp_path):
    pytest.importorskip("ray")
    subprocess.run(
        [sys.executable, EXAMPLES / "ray_train.py", tmp_path],
        timeout=deadlines.long(),
        check=True,
    )
    assert (tmp_path / "model.keras").exists()


# ---- The notebook -------------------------------------------------------------------------------

NOTEBOOK = EXAMPLES / "notebook.ipynb"
PROMISE = "".join(json.loads(NOTEBOOK.read_text())["cells"][0]["source"])


@pytest.mark.slow  # functions without TensorFlow: test_function
def test_the_cells_of_the_notebook_run_one_after_another(tmp_path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-"],
        input="\n\n".join(codes),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stdout
    _check(PROMISE, done.stdout)


@pytest.mark.clusters
def test_the_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    settings = {"timeout": int(deadlines.long()), "kernel_name": "python3"}
    resources = {"metadata": {"path": str(tmp_path)}}  # the working directory
    nbclient.NotebookClient(notebook, resources=resources, **settings).execute()
    outputs = notebook.cells[-1].outputs
    _check(PROMISE, "".join(each["text"] for each in outputs))
