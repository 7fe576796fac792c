"""How workers start, in real processes: every rank reports each mistake with its cause."""

import signal
import sys

import pytest

from tests.support import deadlines, nursery, starts
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess

NAMES = [start.name for start in starts.wrong_starts()]


@pytest.fixture(scope="module")
def tried():
    """All wrong ways, tried at once."""
    found = starts.wrong_starts()
    starts.run(found)  # each worker has said what it should
    return {start.name: start for start in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_start_is_reported_on_every_rank_and_ends(tried, name):
    workers = tried[name].workers
    assert workers
    print("\n".join(starts.lines(tried[name])))
    for worker in workers:
        assert "started" not in worker.output.split()
        if "DIES" in worker.environment:
            assert worker.returncode == -signal.SIGKILL
        elif worker.ends or "RuntimeError" in worker.output:
            assert worker.returncode == 1
        else:
            assert worker.returncode == -signal.SIGTERM  # at once, while it waits


PROGRAM = """
import json, os, sys
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
if rank == 1 and "TF_GOSSIP_PGA_JOIN" not in os.environ:
    sys.exit("it dies before it has begun")
import tf_gossip_pga as pga
cluster = pga.initialize()
print(rank, cluster.gather(rank), os.environ["no_grpc_proxy"], flush=True)
"""


NEVER_AVERAGES = "import tf_gossip_pga as pga; pga.initialize().barrier()"


def _launch(workers: int, program: str = PROGRAM, **settings) -> str:
    said = []
    with nursery.forks():
        launch.launch(
            [sys.executable, "-c", program],
            workers,
            deadline_s=deadlines.long(),
            write=said.append,
            **settings,
        )
    return "".join(said)


def test_one_that_dies_before_the_start_is_restarted_into_it_whatever_the_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "example.com")
    said = _launch(2, rejoins=1)
    assert "Rank 1 failed with exit code 1. The launcher restarts it" in said
    for rank in range(2):
        assert f"[{rank}] {rank} [0, 1] example.com,127.0.0.1\n" in said
    assert (
        said.count(
            "[0] 2 workers on 1 host are connected over gRPC between CPUs. Found by TF_CONFIG.\n"
        )
        == 1
    )
    # Nothing else: no line of TensorFlow's import, and none of its strategy.
    # (How long a rank has waited depends on the machine.)
    assert len([line for line in said.splitlines() if "has waited" not in line]) == 5, said


def test_workers_that_never_average_are_told_so_when_they_end_once():
    said = _launch(2, NEVER_AVERAGES)
    assert said.count("2 workers were connected, but nothing was averaged") == 1, said
    assert "[0] 2 workers were connected, but" in said


SHARING = """
import tf_gossip_pga as pga
from tf_gossip_pga.cluster import gpus
gpus.own_gpu = lambda: "0000:3b:00.0"
pga.initialize()
"""


def test_workers_that_share_a_gpu_start_over_grpc_and_rank_0_says_why():
    assert (
        "[0] 2 workers on 1 host are connected over gRPC between CPUs: NCCL cannot be used, "
        "because rank 0 and rank 1 share GPU 0000:3b:00.0 of "
    ) in _launch(2, SHARING)


def test_a_death_before_the_start_ends_a_job_that_would_survive_it_later():
    with pytest.raises(launch.LaunchError) as caught:
        _launch(3, min_workers=2)
    text = str(caught.value)
    assert "Before the job had started, rank 1 ended with exit code 1. The other workers" in text
    assert "  it dies before it has begun" in text
    assert [each.returncode for each in caught.value.outcomes] == [None, 1, None]
