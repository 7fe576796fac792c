"""The harness first: a crash, a hang and an exception in one worker are reported and end all."""

import os
import pathlib
import signal
import time

import pytest

from tests.support import deadlines, workers
from tf_gossip_pga import launch

pytestmark = pytest.mark.multiprocess


def _rank_and_size(cluster, factor):
    return [cluster.rank * factor, cluster.size, cluster.is_chief]


def test_results_come_back_in_rank_order():
    assert workers.run(_rank_and_size, 3, factor=10) == [
        [0, 3, True],
        [10, 3, False],
        [20, 3, False],
    ]


def _fails(cluster, how, pids):
    with open(f"{pids}/{cluster.rank}", "w") as file:
        file.write(str(os.getpid()))
    if cluster.rank == 1:
        other = pathlib.Path(pids, "0")  # let it have written its own
        deadlines.Deadline(60).until(lambda: other.exists() and other.read_text())
        if how == "exception":
            raise ValueError("the second worker cannot continue")
        if how == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def _alive(folder) -> list[int]:
    alive = []
    for path in folder.iterdir():
        pid = int(path.read_text())
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        alive.append(pid)
    return alive


def test_an_exception_is_reported_with_its_rank_and_ends_all(tmp_path):
    with pytest.raises(launch.LaunchError, match="Rank 1 failed first, with exit code 1") as error:
        workers.run(_fails, 2, how="exception", pids=str(tmp_path))
    assert "ValueError: the second worker cannot continue" in str(error.value)
    assert [outcome.returncode for outcome in error.value.outcomes] == [None, 1]
    assert len(list(tmp_path.iterdir())) == 2
    assert _alive(tmp_path) == []


def test_a_crash_is_reported_with_its_rank_and_ends_all(tmp_path):
    with pytest.raises(launch.LaunchError, match="Rank 1 failed first, with signal SIGKILL"):
        workers.run(_fails, 2, how="crash", pids=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert _alive(tmp_path) == []


def test_a_hang_ends_at_the_deadline(tmp_path):
    with pytest.raises(launch.LaunchError, match=r"deadline of [\d.]+ s passed before rank 0, 1"):
        workers.run(_fails, 2, deadline_s=3, how="hang", pids=str(tmp_path))
    assert _alive(tmp_path) == []
