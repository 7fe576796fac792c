"""Exchanges in real processes: order, deadlines, types, and each private use of TensorFlow."""

import dataclasses
import pathlib
import re
import threading
import time

import pytest

from tests.support import deadlines, kinds, nursery, product, workers
from tf_gossip_pga.algorithm import topology as topology_lib

pytestmark = pytest.mark.multiprocess


def _exchange(cluster, values, colors, in_flight, chunk: int = 3):
    """What this rank receives when each rank sends chunks of its own value."""
    import tensorflow as tf

    from tf_gossip_pga.exchange import group_ops
    from tf_gossip_pga.exchange.transport import RING

    session = product.active()
    transport = dataclasses.replace(RING, messages_in_flight=in_flight)
    ops = group_ops.GroupOps(session.view, cluster.rank, cluster.size, transport)
    key = session.reserve_keys(9, "the test", deadlines.scaled(60))

    @tf.function(autograph=False)
    def exchange():
        chunks = [tf.fill([chunk], values[cluster.rank] + index) for index in range(3)]
        results = []
        for _, received, sent in ops.exchange(chunks, colors, key):
            with tf.control_dependencies(sent):
                results.append({str(rank): tf.identity(each) for rank, each in received.items()})
        return results

    with session.waiting("the test", deadlines.scaled(60)):
        return [
            {sender: tensor.numpy().tolist() for sender, tensor in arrived.items()}
            for arrived in exchange()
        ]


def _orders(cluster):
    """Every graph in which a careless order deadlocks, with one message in flight and with many."""
    results = {}
    for name in ("ring", "complete", "one_peer_exponential", "static_exponential"):
        topology = topology_lib.BY_NAME[name](cluster.size)
        for in_flight in (1, 2, 64):
            results[f"{name} {in_flight}"] = [
                _exchange(cluster, [10.0, 20.0, 30.0], topology.colors(round), in_flight)
                for round in range(topology.rounds)
            ]
    return results


def test_no_order_deadlocks_and_each_chunk_comes_from_its_sender(pools):
    ranks = pools.run(_orders, 3)
    for rank, results in enumerate(ranks):
        assert len(results) == 12
        for label, rounds in results.items():
            topology = topology_lib.BY_NAME[label.split()[0]](3)
            for round, received in enumerate(rounds):
                senders, _ = topology.neighbors(round, rank)
                assert senders
                # Rank s sends chunks full of 10 (s + 1), that plus 1, and that plus 2.
                assert received == [
                    {str(s): [10.0 * (s + 1) + index] * 3 for s in senders} for index in range(3)
                ], label


CHIEF = """
import json, os
config = json.loads(os.environ["TF_CONFIG"])
hosts, index = config["cluster"]["worker"], config["task"]["index"]
task = {"type": "worker", "index": index - 1} if index else {"type": "chief", "index": 0}
cluster = {"chief": hosts[:1], "worker": hosts[1:]}
os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
import tf_gossip_pga as pga
from tests.support import deadlines
cluster = pga.initialize()
from tf_gossip_pga.exchange import process
everyone = process.active().gather([cluster.rank, task], "the test", deadlines.long())
assert everyone[cluster.rank] == [cluster.rank, task]
assert [rank for rank, _ in everyone] == [0, 1, 2]
print("rank", cluster.rank, task["type"])
"""


def test_a_chief_is_rank_0_of_chief_and_workers():
    import sys

    from tf_gossip_pga import launch

    output = []
    command = [sys.executable, "-c", CHIEF]
    with nursery.forks():
        launch.launch(command, 3, write=output.append, deadline_s=deadlines.long())
    lines = sorted(line for line in "".join(output).splitlines() if "] rank" in line)
    assert lines == ["[0] rank 0 chief", "[1] rank 1 worker", "[2] rank 2 worker"]


def _types(cluster):
    import tensorflow as tf

    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import averager as averager_lib

    names = ["float16", "bfloat16", "float32", "float64", "complex64"]
    names += ["int32", "int64", "uint32", "int8", "uint8"]
    start = [1, 2, 3] if cluster.is_chief else [5, 6, 7]
    variables = [tf.Variable(tf.cast(start, name)) for name in names]
    averager = averager_lib.Averager(
        product.active(),
        topology.from_matrix([[0.75, 0.25], [0.25, 0.75]]),
        averager_lib.Variables(variables[:5], others=variables[5:]),
        averager_lib.Patience(deadlines.scaled(60), deadlines.scaled(60)),
    )

    def values():
        return [variable.numpy().astype(complex).real.tolist() for variable in variables]

    averager.gossip(0, "the test")
    gossip, sent = values(), [averager.bytes_sent]
    distance = averager.global_average("the test").squares
    mean = values()
    sent.append(averager.bytes_sent)
    for variable in variables:
        variable.assign(tf.cast(start, variable.dtype))
    averager.broadcast("the test")
    sent.append(averager.bytes_sent)
    return {
        "gossip": gossip,
        "mean": mean,
        "distance": distance,
        "broadcast": values(),
        "sent": sent,
    }


def test_every_type_travels(pools):
    first, second = pools.run(_types, 2)
    # 0.75 * 1 + 0.25 * 5 = 2 and 0.25 * 1 + 0.75 * 5 = 4; integers stay.
    assert first["gossip"] == [[2, 3, 4]] * 5 + [[1, 2, 3]] * 5
    assert second["gossip"] == [[4, 5, 6]] * 5 + [[5, 6, 7]] * 5
    assert first["mean"] == [[3, 4, 5]] * 5 + [[1, 2, 3]] * 5
    assert second["mean"] == [[3, 4, 5]] * 5 + [[5, 6, 7]] * 5
    # Each of 15 parameters is 1 from its mean; the means are 3, 4, 5, five times over.
    assert first["distance"] == [15, 5 * 50]
    assert second["distance"] == [15, 0]
    assert first["broadcast"] == second["broadcast"] == [[1, 2, 3]] * 10
    # 3 * (2 + 2 + 4 + 8 + 8) bytes of parameters; in a ring of two an all-reduce sends them once,
    # with how often either rank's were not finite: 2 * 4 bytes.
    # Rank 0's broadcast is all of that and 3 * (4 + 8 + 4 + 1 + 1) bytes of integers.
    assert first["sent"] == [72, 152, 278]
    assert second["sent"] == [72, 152, 152]


def _gathered(cluster):
    value = {"rank": cluster.rank, "text": "ä" * (1 + 100 * cluster.rank)}
    return product.active().gather(value, "the test", deadlines.scaled(60))


def test_gather_brings_everybodys_value_in_rank_order(pools):
    expected = [{"rank": rank, "text": "ä" * (1 + 100 * rank)} for rank in range(3)]
    assert pools.run(_gathered, 3) == [expected] * 3


def _one_stays_away(cluster, folder):
    """Rank 1 skips an exchange: two live processes that TensorFlow would let wait for ever."""
    import tf_gossip_pga as pga

    session, rank_0_has_given_up = product.active(), pathlib.Path(folder, "given up")
    session.gather("both are here", "the start", deadlines.scaled(60))
    if cluster.rank == 1:
        deadlines.Deadline(60).until(rank_0_has_given_up.exists)
        return "stayed away"
    try:
        session.gather("only rank 0 is here", "the test exchange", 3)
    except pga.WorkerLost as error:
        return str(error)
    finally:
        rank_0_has_given_up.touch()
    return "answered"


def test_waiting_ends_at_the_deadline(tmp_path):
    first, second = workers.run(_one_stays_away, 2, folder=str(tmp_path))
    assert second == "stayed away"
    assert "Rank 0 of 2 lost rank 1 at the test exchange: no answer within 3 s; rank 1 " in first
    # On a busy machine its answer, which would have said this, may be late.
    late = "does not answer (its process is stopped, or the network to it is cut)"
    assert re.search(rf"rank 1 (has not called fit|{re.escape(late)})", first), first


def _one_dies(cluster):
    import os
    import signal

    session = product.active()
    session.gather("both are here", "the start", deadlines.scaled(60))
    if cluster.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    session.gather("only rank 0 is here", "the test exchange", deadlines.scaled(200))


def test_a_dead_worker_ends_the_others_and_is_named():
    from tf_gossip_pga import launch

    with pytest.raises(launch.LaunchError, match="Rank 1 failed first, with signal SIGKILL"):
        workers.run(_one_dies, 2)


def _terminated(cluster):
    """SIGTERM in the middle of waiting, as `kill` and schedulers send it."""
    import os
    import signal

    # Rank 0 waits in an exchange, rank 1 outside of one.
    if cluster.rank == 1:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(3600)
    product.active().gather("only rank 0 is here", "the test exchange", deadlines.scaled(200))


def test_sigterm_ends_a_worker():
    from tf_gossip_pga import launch

    with pytest.raises(launch.LaunchError, match="Rank 1 failed first, with signal SIGTERM"):
        workers.run(_terminated, 2)


def _many_steps(cluster):
    """Threads before and after many gossips: a timeout of TensorFlow's would leave two for each."""
    import tensorflow as tf

    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import averager as averager_lib

    traced_before = product.traced()
    averager = averager_lib.Averager(
        product.active(),
        topology.ring(cluster.size),
        averager_lib.Variables([tf.Variable(tf.zeros([100]))]),
        averager_lib.Patience(deadlines.scaled(60), deadlines.scaled(60)),
    )
    threads = []
    for _ in range(2):
        for _ in range(150):
            averager.gossip(0, "the test")
            averager.global_average("the test")
        with open("/proc/self/status") as status:
            threads += [int(line.split()[1]) for line in status if line.startswith("Threads:")]
    return [threads, product.traced() - traced_before]


def test_exchanges_leave_no_threads_behind_and_are_traced_once():
    for (early, late), traced in workers.run(_many_steps, 2):
        assert late <= early + 50  # two threads for each of 300 exchanges would be 600
        assert traced == 2


def _as_over_nccl(cluster, encoding):
    """Exchange in pairs and whole models, as over NCCL, but over gRPC."""
    from tf_gossip_pga.exchange import group_ops
    from tf_gossip_pga.exchange.transport import RING

    session = product.active()
    before = session.ops
    transport = dataclasses.replace(RING, pairs=True, packs_means=True)
    session.ops = group_ops.GroupOps(session.view, cluster.rank, cluster.size, transport)
    try:
        return kinds.exchange(cluster, encoding)
    finally:
        session.ops = before


# With two workers, a pair is the group of all, in which broadcasts and global averages run too.
@pytest.mark.parametrize(
    ("n", "encoding", "tolerance"),
    [(2, "float32", 1e-6), (3, "float32", 1e-6), (3, "bfloat16", 0.05), (2, "int8", 0.05)],
)
def test_what_travels_over_nccl_gives_the_same_numbers_over_grpc(pools, n, encoding, tolerance):
    kinds.check(pools.run(_as_over_nccl, n, encoding=encoding), tolerance)
