"""The examples are short and use public names. The recipes agree with the package and others."""

import ast
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

import tf_gossip_pga as pga
from tf_gossip_pga.cluster import detect, kubernetes

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
GUIDES = "\n".join(page.read_text() for page in (EXAMPLES.parent / "docs/guides").glob("*.md"))


SIZES = ("completions", "parallelism")


def _manifests(name: str) -> list[dict]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((EXAMPLES / name).read_text()))


def _job() -> tuple[dict, dict]:
    """Return the Service and the Job."""
    service, job = _manifests("kubernetes.yaml")
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job


def _code(path: pathlib.Path) -> str:
    """Return the text of a file, or of a notebook's cells of code."""
    text = path.read_text()
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


FILES = sorted(each.name for each in EXAMPLES.iterdir() if each.is_file())
PROGRAMS = [name for name in FILES if name.endswith((".py", ".ipynb"))]


@pytest.mark.parametrize("name", FILES)
def test_every_example_is_short_and_in_a_guide(name):
    assert len(_code(EXAMPLES / name).splitlines()) < 80
    assert f"../../examples/{name}" in GUIDES


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_every_example_is_in_the_table(name):
    assert f"\n| [{name}]({name}) |" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.endswith(".py")])
def test_every_script_says_how_to_start_it(name):
    assert f" examples/{name}" in ast.get_docstring(ast.parse(_code(EXAMPLES / name)))


# ---- Public names -------------------------------------------------------------------------------

LIBRARIES = {"keras", "numpy", "ray", "sklearn", "tensorflow", "tf_gossip_pga"}
PRIVATE = ("keras.src", "tensorflow.python", "tf_gossip_pga.")


def not_public(code: str):
    """Yield the names that a program uses and that are not for users."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            root = name.partition(".")[0]
            is_known = root in LIBRARIES or root in sys.stdlib_module_names
            if not is_known or name.startswith(PRIVATE) or "._" in name:
                yield name
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_inner = node.attr.startswith("_") and not node.attr.endswith("__")
            if (is_inner and owner != "self") or (owner == "pga" and node.attr not in pga.__all__):
                yield f"{owner}.{node.attr}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_use_only_public_names(name):
    assert not list(not_public(_code(EXAMPLES / name)))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import models.text", "models.text"),
        ("from job import flags", "job.flags"),
        ("from tf_gossip_pga import launch", "tf_gossip_pga.launch"),
        ("import tensorflow.python.eager", "tensorflow.python.eager"),
        ("from numpy import _core", "numpy._core"),
        ("pga.errors", "pga.errors"),
        ("gossip._run", "gossip._run"),
    ],
)
def test_names_that_are_not_public_are_found(code, name):
    assert list(not_public(code)) == [name]


# ---- Recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mpi.sh", "slurm.sbatch"])
def test_shells_accept_the_scripts(name):
    done = subprocess.run(["bash", "-n", EXAMPLES / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_batch_script_runs_again_after_a_preemption():
    text = (EXAMPLES / "slurm.sbatch").read_text()
    assert f'if [ "$code" -eq {pga.PREEMPTED} ]; then' in text


def test_the_pods_of_the_job_find_each_other():
    service, job = _job()
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    sizes = {given[kubernetes.WORKERS], *(str(job["spec"][name]) for name in SIZES)}
    assert sizes == {"2"}
    name = f"{job['metadata']['name']}-1.{pod['subdomain']}"
    place = kubernetes.place_of({**given, kubernetes.INDEX: "1"}, name)
    assert (place.rank, place.size) == (1, 2)
    assert place.addresses[0].startswith("digits-0.digits:")


def test_the_job_does_not_count_preempted_pods():
    _, job = _job()
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore"
    assert rule["onExitCodes"] == {"operator": "In", "values": [pga.PREEMPTED]}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # the policy requires it


@pytest.mark.clusters
def test_kubernetes_accepts_the_manifests():
    validate = pytest.importorskip("kubernetes_validate")
    for manifest in _job():
        validate.validate(manifest, validate.latest_version(), strict=True)


def test_the_trainers_variables_describe_the_pods():
    (job,) = _manifests("trainjob.yaml")
    # As the runtime sets them in the second pod.
    given = {
        "JOB_COMPLETION_INDEX": "1",
        "PET_NNODES": str(job["spec"]["trainer"]["numNodes"]),
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "auto",
        "PET_MASTER_ADDR": "digits-node-0-0.digits",
        "PET_MASTER_PORT": "29500",
    }
    place = detect.find(given)
    assert (place.rank, place.size) == (1, 2)


@pytest.mark.clusters
def test_kubeflow_accepts_the_manifest():
    pytest.importorskip("kubeflow_trainer_api")
    models = importlib.import_module("kubeflow_trainer_api.models")
    (job,) = _manifests("trainjob.yaml")
    model = models.TrainerV1alpha1TrainJob
    assert model.from_dict(job).to_dict() == job
