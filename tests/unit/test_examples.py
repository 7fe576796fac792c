"""The recipes in `examples`: they parse, agree with the package, and fit the schemas of others."""

import importlib
import pathlib
import subprocess

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


@pytest.mark.parametrize("name", [each.name for each in EXAMPLES.iterdir() if each.is_file()])
def test_every_example_is_short_and_in_a_guide(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
    assert f"../../examples/{name}" in GUIDES


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
