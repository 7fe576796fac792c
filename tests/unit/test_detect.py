"""Each starter's variables, complete, wrong and half set; 64 fake tasks of each agree."""

import itertools
import json
import pathlib
import socket

import pytest

from tf_gossip_pga.cluster import cluster_file, detect, kubernetes, node_list, ports
from tf_gossip_pga.cluster.place import Place, Rendezvous
from tf_gossip_pga.cluster.tf_config import from_tf_config, to_tf_config

A, B = "10.0.0.1:2222", "host-b:2222"
FIRST = "61440"
PORT = {"TF_GOSSIP_PGA_PORT": FIRST}
MPIRUN = "1450377216.0;tcp://10.0.0.1,192.168.1.1:53283"


def keras(rank, addresses=(A, B), **more):
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": ",".join(addresses),
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(addresses)),
        "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
        **more,
    }


def slurm(rank, nodes="n[1-2]", counts="2,1", size=3, **more):
    return {
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": counts,
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        **more,
    }


def sagemaker(rank, size=2, **more):
    hosts = [f"algo-{each + 1}" for each in range(size)]
    return {"SM_HOSTS": json.dumps(hosts), "SM_CURRENT_HOST": hosts[rank], **more}


def pod(rank, size=2, **more):
    return {"JOB_COMPLETION_INDEX": str(rank), "TF_GOSSIP_PGA_WORKERS": str(size), **more}


def mpi(rank, size=4, local=2, **more):
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % local),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local),
        "OMPI_MCA_orte_hnp_uri": MPIRUN,
        **more,
    }


def torch(rank, size=4, local=2, **more):
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local),
        "MASTER_ADDR": "host0",
        "MASTER_PORT": "29500",
        **more,
    }


def pet(rank, size=2, **more):
    return {
        "PET_NODE_RANK": str(rank),
        "PET_NNODES": str(size),
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "job-node-0-0.job",
        "PET_MASTER_PORT": "29500",
        **more,
    }


def without(variables, *names):
    return {name: text for name, text in variables.items() if name not in names}


@pytest.fixture
def in_pod(monkeypatch, tmp_path):
    """Return a function that sets the host name and the file of hosts of this machine."""

    def set_up(name, domain=".svc.default.svc.cluster.local"):
        hosts = tmp_path / "hosts"
        names = f"{name}{domain}\t{name}" if domain else name
        hosts.write_text(f"127.0.0.1\tlocalhost  # {name}.no\n10.1.0.7\t{names}\n")
        monkeypatch.setattr(kubernetes, "_HOSTS_FILE", hosts)
        monkeypatch.setattr(socket, "gethostname", lambda: name)

    return set_up


# ---- Complete variables -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "rank", "addresses"),
    [
        ({"TF_CONFIG": to_tf_config([A, B], 1)}, 1, [A, B]),
        (keras(1), 1, [A, B]),
        (without(keras(0), "KERAS_DISTRIBUTION_NUM_PROCESSES"), 0, [A, B]),
        (slurm(0) | PORT, 0, ["n1:61440", "n1:61442", "n2:61440"]),
        (slurm(1) | PORT, 1, ["n1:61440", "n1:61442", "n2:61440"]),
        (
            slurm(2, SLURM_NODEID="1", SLURM_LOCALID="0") | PORT,
            2,
            ["n1:61440", "n1:61442", "n2:61440"],
        ),
        (
            slurm(4, "a[08-10]", "2(x2),1", 5) | PORT,
            4,
            ["a08:61440", "a08:61442", "a09:61440", "a09:61442", "a10:61440"],
        ),
        # One task on each node: every distribution is the same.
        (
            slurm(1, "a,b", "1(x2)", 2, SLURM_DISTRIBUTION="cyclic") | PORT,
            1,
            ["a:61440", "b:61440"],
        ),
        (sagemaker(1) | PORT, 1, ["algo-1:61440", "algo-2:61440"]),
    ],
)
def test_the_addresses_follow_from_the_variables(variables, rank, addresses):
    place = detect.find(variables)
    assert (place.rank, place.addresses) == (rank, tuple(addresses))
    assert (place.size, place.rendezvous) == (len(addresses), None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (mpi(3), Rendezvous(MPIRUN, ("10.0.0.1", "192.168.1.1"), 61440, 61442)),
        (
            mpi(3, OMPI_MCA_orte_hnp_uri="1.0;tcp6://[fe80::1]:5"),
            Rendezvous("1.0;tcp6://[fe80::1]:5", ("fe80::1",), 61440, 61442),
        ),
        # All on one host: mpirun itself may run elsewhere.
        (mpi(3, local=4), Rendezvous(MPIRUN, ("localhost",), 61440, 61446)),
        (
            without(mpi(1, 2, 2, PMIX_NAMESPACE="prterun-a-1@1"), "OMPI_MCA_orte_hnp_uri"),
            Rendezvous("prterun-a-1@1", ("localhost",), 61440, 61442),
        ),
        (
            mpi(3, MASTER_ADDR="b", MASTER_PORT="29500"),
            Rendezvous("b:29500", ("b",), 61440, 61442),
        ),
        (torch(3), Rendezvous("host0:29500", ("host0",), 61440, 61442)),
        (
            torch(3, TORCHELASTIC_RUN_ID="17"),
            Rendezvous("host0:29500 17", ("host0",), 61440, 61442),
        ),
        (without(torch(3), "LOCAL_RANK"), Rendezvous("host0:29500", ("host0",), 61440, 61440)),
        (
            pet(3, 4),
            Rendezvous("job-node-0-0.job:29500", ("job-node-0-0.job",), 61440, 61440),
        ),
        (
            pet(3, "4:4"),
            Rendezvous("job-node-0-0.job:29500", ("job-node-0-0.job",), 61440, 61440),
        ),
    ],
)
def test_some_starters_report_only_the_host_of_rank_0(variables, expected):
    place = detect.find(variables | PORT)
    size = 2 if "PMIX_NAMESPACE" in variables else 4
    assert place == Place(size - 1, size, place.found_by, (), expected)


def test_pods_of_an_indexed_job(in_pod):
    in_pod("train-1")
    place = detect.find(pod(1, 3) | PORT)
    names = [f"train-{each}.svc.default.svc.cluster.local:61440" for each in range(3)]
    assert place == Place(1, 3, "the index of a Kubernetes Job", tuple(names))
    in_pod("train-1.svc", domain="")  # setHostnameAsFQDN
    assert detect.find(pod(1, 2) | PORT).addresses == ("train-0.svc:61440", "train-1.svc:61440")
    assert detect.find(pod(0, 1)) == Place(found_by="the index of a Kubernetes Job")


def test_the_starters_are_named():
    found = [
        detect.find(each).found_by
        for each in (
            {"TF_CONFIG": to_tf_config([A, B], 1)},
            *(keras(0), slurm(0), sagemaker(0), mpi(0), torch(0), pet(0)),
        )
    ]
    assert found == [
        "TF_CONFIG",
        "Keras' KERAS_DISTRIBUTION variables",
        "Slurm's step variables",
        "SageMaker's SM_HOSTS",
        "Open MPI's variables",
        "torchrun's variables RANK and WORLD_SIZE",
        "torchrun's PET variables",
    ]


# ---- Several starters at once -------------------------------------------------------------------


def test_the_order_of_precedence(in_pod):
    in_pod("train-1")
    config = {"TF_CONFIG": to_tf_config([A, B], 1)}
    ordered = [config, keras(0), mpi(0), torch(0, TORCHELASTIC_RUN_ID="1"), slurm(0), sagemaker(0)]
    ordered += [pod(1), torch(0), pet(0)]
    for first, second in itertools.combinations(ordered, 2):
        assert detect.find({**second, **first}).found_by == detect.find(first).found_by


def test_variables_of_the_outer_starter_do_not_count():
    # Open MPI and torchrun start their own agents with srun: the tasks of the step are the agents.
    assert detect.find(slurm(0) | mpi(3)).rank == 3
    assert detect.find(slurm(0) | torch(3, TORCHELASTIC_RUN_ID="1")).rank == 3
    # A batch script may set PyTorch's variables for all tasks of a step.
    assert detect.find(slurm(1) | without(torch(3), "RANK")).rank == 1
    # Kubeflow Trainer runs an Indexed Job, without a variable of this package.
    assert detect.find(pet(1) | {"JOB_COMPLETION_INDEX": "1"}).rank == 1


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TF_CONFIG": "  "},
        # A batch script outside srun.
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"},
        slurm(0, "n1", "1", 1),
        keras(0, [A]),
        sagemaker(0, 1),
        mpi(0, 1),
        torch(0, 1),
        pet(0, 1),
        pet(0, "1:1"),
        {"PMI_SIZE": "1"},
        {"TF_GOSSIP_PGA_WORKERS": "1"},
        # A pod of an Indexed Job whose starter reports one process.
        pet(0, 1) | {"JOB_COMPLETION_INDEX": "0"},
        torch(0, 1, TORCHELASTIC_RUN_ID="1") | {"JOB_COMPLETION_INDEX": "0"},
        slurm(0, "n1", "1", 1) | mpi(0, 1),
    ],
)
def test_one_process_is_a_single_worker(variables):
    assert detect.find(variables) == Place()


@pytest.mark.parametrize("odd", ["", "0", "-2", "two", "1.5", "[", "{}", "[" * 10000, ":", "2 "])
def test_variables_that_say_nothing_are_passed_over(odd):
    names = ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE", "PET_NNODES"]
    names += ["KERAS_DISTRIBUTION_NUM_PROCESSES", "SM_HOSTS", "TF_GOSSIP_PGA_WORKERS"]
    assert detect.find(dict.fromkeys(names, odd)) == Place()


def test_no_cluster_is_asked_for_by_one_word():
    with pytest.raises(
        ValueError, match=r"TF_GOSSIP_PGA_CLUSTER must be unset, .* 'None': No such"
    ):
        detect.find({"TF_GOSSIP_PGA_CLUSTER": "None"})
    for variables in ({"TF_CONFIG": to_tf_config([A, B], 1)}, slurm(0), {"SM_HOSTS": '["a", "b"]'}):
        assert detect.find({**variables, "TF_GOSSIP_PGA_CLUSTER": "none"}) == Place()


def test_by_default_this_processs_own_variables_are_read(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", to_tf_config([A, B], 1))
    assert detect.find().rank == 1


# ---- Wrong and half-set variables ---------------------------------------------------------------

WRONG = [
    ({"PMI_SIZE": "3"}, "PMI_SIZE=3", "too few variables are set. Start the processes with Open"),
    ({"WORLD_SIZE": "16"}, "WORLD_SIZE=16", "too few variables are set. Set RANK, MASTER_ADDR"),
    ({"PET_NNODES": "1:4"}, "PET_NNODES=1:4", "too few variables are set. Set PET_NODE_RANK"),
    ({"TF_GOSSIP_PGA_WORKERS": "2"}, "TF_GOSSIP_PGA_WORKERS=2", "sets JOB_COMPLETION_INDEX"),
    ({"HOROVOD_SIZE": "4", "HOROVOD_RANK": "2"}, "HOROVOD_SIZE=4", "srun or gossip-pga run"),
    ({"FLUX_JOB_SIZE": "2"}, "FLUX_JOB_SIZE=2", "Start the processes with"),
    ({"AWS_BATCH_JOB_NUM_NODES": "2"}, "NODES=2", "use the value of AWS_BATCH_JOB_NODE_INDEX"),
    ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX=0", "Set TF_GOSSIP_PGA_WORKERS too"),
    ({"TF_GOSSIP_PGA_RANK": "0"}, "TF_GOSSIP_PGA_RANK=0", "Set TF_GOSSIP_PGA_CLUSTER too"),
    # Keras
    ({"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}, "NUM_PROCESSES=2", "has 0 addresses for 2"),
    (keras(2), "PROCESS_ID=2", "PROCESS_ID must be a number from 0 to 1, received '2'"),
    (without(keras(0), "KERAS_DISTRIBUTION_PROCESS_ID"), A, "from 0 to 1, but it is not set"),
    (keras(0, [A, A]), A, f"has the address '{A}' twice"),
    (keras(0, [A, "b"]), A, "has the address 'b', which is not \"host:port\""),
    (keras(0, KERAS_DISTRIBUTION_NUM_PROCESSES="3"), A, "has 2 addresses for 3 processes"),
    # Slurm
    (
        {"SLURM_STEP_NUM_TASKS": "2"},
        "NUM_TASKS=2",
        "SLURM_PROCID must be a number from 0 to 1, but",
    ),
    (slurm(3), "SLURM_PROCID=3", "SLURM_PROCID must be a number from 0 to 2, received '3'"),
    (slurm("x"), "SLURM_PROCID=x", "received 'x'"),
    (without(slurm(0), "SLURM_STEP_NODELIST"), "PROCID=0", "the list of nodes '' has an unknown"),
    (slurm(0, "n[1-"), "n[1-", "the list of nodes 'n[1-' has an unknown form"),
    (slurm(0, "n[1-2"), "n[1-2", "has an unknown form"),
    (slurm(0, "n[2-x]"), "n[2-x]", "has an unknown form"),
    (slurm(0, "n[1--2]"), "n[1--2]", "the range '1--2' in a list of nodes"),
    (slurm(0, "n1,,n2"), "n1,,n2", "has an unknown form"),
    (slurm(0, "n[0-999999999]"), "n[0-9", "has too many nodes"),
    (
        slurm(0, "n[1-3]"),
        "n[1-3]",
        "SLURM_STEP_NODELIST has 3 nodes, but SLURM_STEP_TASKS_PER_NODE",
    ),
    (slurm(0, counts="2(x2"), "2(x2", "must have the form 2(x2),1, received '2(x2'"),
    (without(slurm(0), "SLURM_STEP_TASKS_PER_NODE"), "n[1-2]", "must have the form 2(x2),1"),
    (slurm(0, counts="2(x2)"), "2(x2)", "has 4 tasks in total, but SLURM_STEP_NUM_TASKS has 3"),
    (slurm(1, SLURM_LOCALID="0"), "SLURM_LOCALID=0", "SLURM_LOCALID would be 1 if tasks were"),
    (slurm(1, SLURM_NODEID="1"), "SLURM_NODEID=1", "SLURM_NODEID would be 0 if tasks were distr"),
    (slurm(1, SLURM_NODEID="x"), "SLURM_NODEID=x", "SLURM_NODEID must be a number from 0 to 2"),
    (
        slurm(0, SLURM_DISTRIBUTION="cyclic:block"),
        "DISTRIBUTION=cyclic",
        "srun --distribution=block",
    ),
    (slurm(0, "n[1,1]"), "n[1,1]", "SLURM_STEP_NODELIST has a node twice"),
    (
        slurm(0, SLURMD_NODENAME="n2"),
        "NODENAME=n2",
        "this task would be on n1, but SLURMD_NODENAME is n2",
    ),
    (slurm(0, PMI_SIZE="8"), "PMI_SIZE=8", "PMI_SIZE differs from SLURM_STEP_NUM_TASKS"),
    # A starter inside another one
    (slurm(0) | mpi(0, 1), "step variables: 3 processes", "OMPI_COMM_WORLD_SIZE=1 says that this"),
    (
        sagemaker(1) | torch(0, 1, TORCHELASTIC_RUN_ID="1"),
        "SM_HOSTS: 2 processes",
        "WORLD_SIZE=1 says that this process is alone. Start the script with one starter only",
    ),
    # SageMaker
    ({"SM_HOSTS": '["a", "b"]'}, 'SM_HOSTS=["a", "b"]', "SM_CURRENT_HOST must be one of the"),
    (sagemaker(0, SM_CURRENT_HOST="c"), "SM_CURRENT_HOST=c", "must be one of the host names"),
    (sagemaker(0, SM_HOSTS='["algo-1", "a b"]'), "a b", "must be one of the host names"),
    # Open MPI
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK must be a number from"),
    (without(mpi(1), "OMPI_COMM_WORLD_LOCAL_RANK"), "RANK=1", "LOCAL_RANK must be a number"),
    (without(mpi(1), "OMPI_MCA_orte_hnp_uri"), "RANK=1", "does not report rank 0's host. Start"),
    (
        without(mpi(1, 2, 2), "OMPI_MCA_orte_hnp_uri"),
        "RANK=1",
        "neither OMPI_MCA_orte_hnp_uri nor PMIX_NAMESPACE identifies the job",
    ),
    (mpi(1, OMPI_MCA_orte_hnp_uri="1.0;usock"), "1.0;usock", "does not report rank 0's host"),
    (mpi(1, MASTER_ADDR="a"), "RANK=1", "MASTER_PORT must be a number from 0 to 65535, but"),
    # torchrun
    (torch(4), "RANK=4", "RANK must be a number from 0 to 3, received '4'"),
    (torch(1, LOCAL_RANK="-1"), "LOCAL_RANK=-1", "LOCAL_RANK must be a number from 0 to 3"),
    (without(torch(1), "MASTER_ADDR"), "MASTER_PORT=29500", "MASTER_ADDR is not set. Set RANK"),
    (without(torch(1), "MASTER_PORT"), "MASTER_ADDR=host0", "MASTER_PORT must be a number"),
    (pet(1, "1:4"), "PET_NNODES=1:4", "PET_NNODES is a range"),
    (pet(2), "PET_NODE_RANK=2", "PET_NODE_RANK must be a number from 0 to 1"),
    (without(pet(1), "PET_MASTER_ADDR"), "PET_NODE_RANK=1", "PET_MASTER_ADDR is not set"),
]


@pytest.mark.parametrize(("variables", "seen", "problem"), WRONG)
def test_a_process_that_cannot_know_its_cluster_does_not_train(variables, seen, problem):
    with pytest.raises(ValueError) as caught:
        detect.find(variables)
    text = str(caught.value)
    assert text.startswith("This process is one of several (")
    assert seen in text.partition("), but the addresses")[0]
    assert problem in text
    assert "set TF_GOSSIP_PGA_CLUSTER=none" in text
    example = text.partition("TF_CONFIG='")[2].partition("'")[0]
    assert from_tf_config(example).size == 2
    assert detect.find({**variables, "TF_GOSSIP_PGA_CLUSTER": "none"}) == Place()
    assert detect.find({**variables, "TF_CONFIG": to_tf_config([A, B], 1)}).size == 2


@pytest.mark.parametrize(
    ("name", "domain", "variables", "problem"),
    [
        ("train-1", "", pod(1), "the host name 'train-1' does not have the form NAME-1.SUBDOMAIN"),
        ("train-2", ".svc", pod(1), "'train-2.svc' does not have the form NAME-1.SUBDOMAIN"),
        ("node7", ".svc", pod(1), "'node7.svc' does not have the form"),  # hostNetwork
        ("train-2", ".svc", pod(2), "JOB_COMPLETION_INDEX must be a number from 0 to 1"),
        ("train-0", ".svc", pod(0, 0), "TF_GOSSIP_PGA_WORKERS must be a whole number >= 1"),
        ("train-0", ".svc", pod(0, "two"), "TF_GOSSIP_PGA_WORKERS must be a whole number >= 1"),
        ("train-0", ".svc", pod("x"), "JOB_COMPLETION_INDEX must be a number from 0 to 1"),
    ],
)
def test_a_pod_without_a_stable_name_is_refused(name, domain, variables, problem, in_pod):
    in_pod(name, domain)
    with pytest.raises(ValueError, match="set `subdomain` to the name of a headless") as caught:
        detect.find(variables)
    assert problem in str(caught.value)


def test_without_a_file_of_hosts_the_host_name_counts(in_pod, monkeypatch, tmp_path):
    in_pod("train-0.svc")
    monkeypatch.setattr(kubernetes, "_HOSTS_FILE", tmp_path / "none")
    assert detect.find(pod(0)).size == 2


def test_long_values_are_quoted_in_part():
    with pytest.raises(ValueError) as caught:
        detect.find(slurm(0, "n" * 10000 + "["))
    assert len(str(caught.value)) < 1500


# ---- A file with the addresses ------------------------------------------------------------------


@pytest.fixture
def in_file(tmp_path):
    """A function that writes a file, and returns variables that name it."""

    def variables(text, **more):
        path = tmp_path / "cluster.json"
        path.write_text(text)
        return {"TF_GOSSIP_PGA_CLUSTER": str(path), **more}

    return variables


def test_a_file_gives_the_addresses_and_a_variable_the_rank(in_file):
    for rank in (0, 1):
        variables = in_file(cluster_file.text_of([A, B]), TF_GOSSIP_PGA_RANK=str(rank))
        found_by = f"the file {variables['TF_GOSSIP_PGA_CLUSTER']}"
        place = Place(rank, 2, found_by, (A, B))
        assert detect.find(variables) == place
        # A process that was started alone, or even as another rank.
        for misleading in ({"TF_CONFIG": to_tf_config([A, B], 1 - rank)}, slurm(0), mpi(3)):
            assert detect.find({**misleading, **variables}) == place


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is not JSON (Expecting value"),
        ("[" * 100_000, "it is not JSON ("),
        ("\x00", "it is not JSON ("),
        ("[]", 'it must have the form {"addresses": ["host0:2222", "host1:2222"]}'),
        ("{}", "it must have the form"),
        ('{"addresses": []}', "it must have the form"),
        ('{"addresses": "a:1"}', "it must have the form"),
        ('{"addresses": ["a"]}', "it has the address 'a', which is not \"host:port\""),
        ('{"addresses": [1, 2]}', 'it has the address 1, which is not "host:port"'),
        ('{"addresses": ["a:1", "a:1"]}', "it has the address 'a:1' twice"),
    ],
)
def test_a_file_without_addresses_is_refused(in_file, text, problem):
    with pytest.raises(ValueError, match="TF_GOSSIP_PGA_CLUSTER must be unset, or ") as caught:
        detect.find(in_file(text, TF_GOSSIP_PGA_RANK="0"))
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path, problem in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=rf"Received '{path}': {problem}"):
            detect.find({"TF_GOSSIP_PGA_CLUSTER": str(path), "TF_GOSSIP_PGA_RANK": "0"})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({}, "from 0 to 1, but it is not set"),
        ({"TF_GOSSIP_PGA_RANK": "2"}, "from 0 to 1, received '2'"),
        ({"TF_GOSSIP_PGA_RANK": ""}, "from 0 to 1, received ''"),
    ],
)
def test_the_rank_must_be_one_of_the_file(in_file, more, problem):
    with pytest.raises(ValueError, match=r"lists 2 workers\. TF_GOSSIP_PGA_RANK must be") as caught:
        detect.find(in_file(cluster_file.text_of([A, B]), **more))
    assert problem in str(caught.value)
    assert "Set TF_GOSSIP_PGA_RANK to the rank of this worker." in str(caught.value)


# ---- Lists of nodes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", ["n1"]),
        ("n1,n2", ["n1", "n2"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1,3-4]", ["n1", "n3", "n4"]),
        ("n[001-003,007],login5", ["n001", "n002", "n003", "n007", "login5"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[99-101]", ["n99", "n100", "n101"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("a[1-2]-ib,b-[3].x", ["a1-ib", "a2-ib", "b-3.x"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_lists_of_nodes(text, nodes):
    assert node_list.expanded(text) == nodes


# ---- Ports --------------------------------------------------------------------------------------


def test_jobs_with_consecutive_ids_have_separate_ports():
    # 100 jobs with 16 tasks on one host, two ports each: all ports differ.
    taken = [
        ports.of_task(ports.first({}, job), task) for job in range(5000, 5100) for task in range(16)
    ]
    assert len(set(taken)) == len(taken)
    assert min(taken) >= 61440 and max(taken) < 65535
    assert not any(port % 2 for port in taken)


def test_two_steps_of_a_job_have_separate_ports():
    first, second = (detect.find(slurm(0, SLURM_STEP_ID=step)).addresses for step in "01")
    assert not set(first) & set(second)


def test_two_jobs_with_the_same_ports_differ_in_their_ids():
    first, second = (detect.find(slurm(0) | {"SLURM_JOB_ID": str(job)}) for job in (5000, 5112))
    assert first.addresses == second.addresses and first.job != second.job
    again = detect.find(slurm(0) | {"SLURM_JOB_ID": "5000", "SLURM_RESTART_COUNT": "1"})
    assert again.job not in (first.job, second.job)


@pytest.mark.parametrize("job", [0, 2**31, "a", "host0:29500 17"])
@pytest.mark.parametrize("task", [0, 255])
def test_ports_are_above_the_ephemeral_range(job, task):
    assert 61440 <= ports.of_task(ports.first({}, job), task) < 65535


def test_large_hosts_have_enough_ports():
    place = detect.find(slurm(0, "n1", "1500", 1500))
    assert len(set(place.addresses)) == 1500


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "x", "1.5"])
@pytest.mark.parametrize("name", ["TF_GOSSIP_PGA_PORT", "TF_GOSSIP_PGA_CHANNEL_PORT"])
def test_a_port_must_be_one(name, text):
    read = {"TF_GOSSIP_PGA_CHANNEL_PORT": ports.channel}.get(
        name, lambda each: ports.first(each, 1)
    )
    with pytest.raises(ValueError, match=f"{name} must be a port from 1 to 65535, received"):
        read({name: text})
    assert ports.channel({}) is None
    assert read({name: "2222"}) == 2222


def test_too_few_ports_are_an_error_on_every_rank():
    for rank in range(3):
        with pytest.raises(
            ValueError, match="2 workers on one host need 4 ports, but there are only 2"
        ):
            detect.find(slurm(rank, TF_GOSSIP_PGA_PORT="65534"))
    for variables in (torch(1), mpi(1)):
        with pytest.raises(ValueError, match="TF_GOSSIP_PGA_PORT to a lower port"):
            detect.find({**variables, "TF_GOSSIP_PGA_PORT": "65534"})


# ---- Many tasks ---------------------------------------------------------------------------------

MANY = [f"h{each // 4}:{61440 + 2 * (each % 4)}" for each in range(64)]


@pytest.mark.parametrize(
    "variables",
    [
        lambda rank: {"TF_CONFIG": to_tf_config(MANY, rank)},
        lambda rank: keras(rank, MANY),
        lambda rank: slurm(
            rank, "h[0-15]", "4(x16)", 64, SLURM_NODEID=str(rank // 4), SLURM_LOCALID=str(rank % 4)
        ),
        lambda rank: sagemaker(rank, 64),
        lambda rank: mpi(rank, 64, 4),
        lambda rank: torch(rank, 64, 4),
        lambda rank: pet(rank, 64),
    ],
    ids=["TF_CONFIG", "Keras", "Slurm", "SageMaker", "Open MPI", "torchrun", "PET"],
)
def test_64_tasks_agree(variables):
    places = [detect.find(variables(rank)) for rank in range(64)]
    assert [place.rank for place in places] == list(range(64))
    assert {place.size for place in places} == {64}
    if places[0].addresses:
        (addresses,) = {place.addresses for place in places}
        assert len(set(addresses)) == 64
    else:
        points = [place.rendezvous for place in places]
        assert len({(each.job, each.hosts, each.port) for each in points}) == 1
        assert points[0].own_port == points[0].port


def test_64_pods_agree(in_pod):
    found = set()
    for rank in range(64):
        in_pod(f"train-{rank}")
        place = detect.find(pod(rank, 64))
        assert place.rank == rank
        found.add(place.addresses)
    assert len(found) == 1 and len(set(*found)) == 64


def test_detecting_opens_no_sockets_and_looks_nothing_up(monkeypatch, in_pod):
    in_pod("train-1")

    def refuse(*_, **__):
        raise AssertionError("a detector has used the network")

    for name in ("socket", "create_server", "create_connection", "getaddrinfo", "getfqdn"):
        monkeypatch.setattr(socket, name, refuse)
    for variables in (keras(0), slurm(0), sagemaker(0), pod(1), mpi(0), torch(0), pet(0)):
        assert detect.find(variables).size > 1


def test_detectors_are_short():
    folder = pathlib.Path(detect.__file__).parent
    for name in (
        "keras_job",
        "slurm",
        "sagemaker",
        "kubernetes",
        "open_mpi",
        "torchrun",
        "cluster_file",
    ):
        assert len((folder / f"{name}.py").read_text().splitlines()) < 130
