"""Shared workers first: what fails or hangs in one is reported, and the next test gets another."""

import os
import signal
import sys
import time

import pytest

from tests.support import pool

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def own_pools():
    """Pools that may be broken."""
    pools = pool.Pools()
    yield pools
    pools.close()


def _works(cluster, factor):
    print(f"rank {cluster.rank} works")
    return [cluster.rank * factor, cluster.size, os.getpid()]


def _fails(cluster, how):
    if cluster.rank == 1:
        if how == "exception":
            print("before the end")
            raise ValueError("the second worker cannot continue")
        if how == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            sys.exit("the cause")
        if how == "a handler":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "hang":
        time.sleep(3600)


def _pids(pools) -> list[int]:
    return [pid for _, _, pid in pools.run(_works, 2, factor=1)]


def test_processes_stay_and_results_come_back_in_rank_order(own_pools, capfd):
    first = own_pools.run(_works, 3, factor=10)
    assert [each[:2] for each in first] == [[0, 3], [10, 3], [20, 3]]
    assert "[1] rank 1 works\n" in capfd.readouterr().out
    assert own_pools.run(_works, 3, factor=10) == first
    assert capfd.readouterr().out.count("rank 1 works") == 1


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "exception",
            r"(?s)Rank 1 failed first, with\nTraceback.*cannot continue.*\[1\] before the",
        ),
        ("crash", "Rank 1 failed first, with exit code -9"),
        ("exit", r"(?s)Rank 1 failed first, with\nTraceback.*SystemExit: the cause"),
        ("a handler", "has left a handler of SIGTERM"),
        ("hang", "rank 0, 1 had not answered in time"),
    ],
)
def test_a_failure_names_the_rank_and_ends_the_pool_alone(own_pools, how, message):
    before = _pids(own_pools)
    with pytest.raises(pool.PoolError, match=message):
        own_pools.run(_fails, 2, deadline_s=2 if how == "hang" else 240, how=how)
    assert not any(map(_alive, before))
    assert not set(before) & set(_pids(own_pools))


def _leaves_its_settings(cluster):
    import keras
    from absl import flags

    found = [keras.config.dtype_policy().name, keras.layers.Dense(1).name, list(sys.argv)]
    keras.config.set_dtype_policy("float64")
    sys.argv.append("--more")
    flags.FLAGS.logger_levels = {"all": "ERROR"}
    return found


def test_a_function_finds_no_settings_of_the_one_before(own_pools):
    first = own_pools.run(_leaves_its_settings, 1)
    assert first[0][:2] == ["float32", "dense"]
    assert own_pools.run(_leaves_its_settings, 1) == first
