"""Exchanges in real processes: order, deadlines, types, and each private use of TensorFlow."""

import re
import time

import pytest

from tests import workers
from tf_gossip_pga import topology as topology_lib

pytestmark = pytest.mark.multiprocess


def _exchange(cluster, values, colours, in_flight, chunk: int = 3):
    """What this rank receives when each rank sends chunks of its own value."""
    import tensorflow as tf

    from tf_gossip_pga import collectives

    mine = collectives.active()
    mine._messages_in_flight = in_flight
    key = mine.reserve_instance_keys(3, "the test", 60)

    @tf.function(autograph=False)
    def exchange():
        chunks = [tf.fill([chunk], values[cluster.rank] + index) for index in range(3)]
        received, done = mine.exchange(chunks, colours, key)
        with tf.control_dependencies(done):
            return [
                {str(sender): tf.identity(tensor) for sender, tensor in arrived.items()}
                for arrived in received
            ]

    with mine.waiting("the test", 60):
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
                _exchange(cluster, [10.0, 20.0, 30.0], topology.colours(round), in_flight)
                for round in range(topology.rounds)
            ]
    return results


def test_no_order_deadlocks_and_each_chunk_comes_from_its_sender():
    ranks = workers.run(_orders, 3)
    for rank, results in enumerate(ranks):
        assert len(results) == 12
        for label, rounds in results.items():
            topology = topology_lib.BY_NAME[label.split()[0]](3)
            for round, received in enumerate(rounds):
                senders, _ = topology.neighbours(round, rank)
                assert senders
                # Rank s sends chunks full of 10 (s + 1), that plus 1, and that plus 2.
                assert received == [
                    {str(s): [10.0 * (s + 1) + index] * 3 for s in senders} for index in range(3)
                ], label


def _types(cluster):
    import tensorflow as tf

    from tf_gossip_pga import averaging, collectives, topology

    names = ["float16", "bfloat16", "float32", "float64", "int32", "int64", "uint32"]
    start = [1, 2, 3] if cluster.is_chief else [5, 6, 7]
    variables = [tf.Variable(tf.cast(start, name)) for name in names]
    averager = averaging.Averager(
        collectives.active(),
        topology.from_matrix([[0.75, 0.25], [0.25, 0.75]]),
        parameters=variables[:4],
        statistics=[],
        others=variables[4:],
        timeout_s=60,
        start_timeout_s=60,
    )

    def values():
        return [tf.cast(variable, tf.float64).numpy().tolist() for variable in variables]

    averager.gossip(0, "the test")
    gossip = values()
    distance = averager.global_average("the test")
    mean = values()
    for variable in variables:
        variable.assign(tf.cast(start, variable.dtype))
    averager.broadcast("the test")
    return {"gossip": gossip, "mean": mean, "distance": distance, "broadcast": values()}


def test_every_type_travels():
    first, second = workers.run(_types, 2)
    # 0.75 * 1 + 0.25 * 5 = 2 and 0.25 * 1 + 0.75 * 5 = 4; integers stay.
    assert first["gossip"] == [[2, 3, 4]] * 4 + [[1, 2, 3]] * 3
    assert second["gossip"] == [[4, 5, 6]] * 4 + [[5, 6, 7]] * 3
    assert first["mean"] == [[3, 4, 5]] * 4 + [[1, 2, 3]] * 3
    assert second["mean"] == [[3, 4, 5]] * 4 + [[5, 6, 7]] * 3
    # Each of 12 parameters is 1 from its mean; the means are 3, 4, 5, four times over.
    assert first["distance"] == second["distance"] == [12, 4 * 50]
    assert first["broadcast"] == second["broadcast"] == [[1, 2, 3]] * 7


def _gathered(cluster):
    from tf_gossip_pga import collectives

    value = {"rank": cluster.rank, "text": "ä" * (1 + 100 * cluster.rank)}
    return collectives.active().gather(value, "the test", 60)


def test_gather_brings_everybodys_value_in_rank_order():
    expected = [{"rank": rank, "text": "ä" * (1 + 100 * rank)} for rank in range(3)]
    assert workers.run(_gathered, 3) == [expected] * 3


def _one_stays_away(cluster):
    """Rank 1 skips an exchange: two live processes that TensorFlow would let wait for ever."""
    from tf_gossip_pga import collectives

    mine = collectives.active()
    mine.gather("both are here", "the start", 60)
    if cluster.rank == 1:
        time.sleep(10)
        return "slept"
    try:
        mine.gather("only rank 0 is here", "the meeting", 3)
    except collectives.WorkerLost as error:
        return str(error)
    return "answered"


def test_waiting_ends_at_the_deadline():
    first, second = workers.run(_one_stays_away, 2)
    assert second == "slept"
    assert re.search(
        r"Rank 0 of 2 lost another worker at the meeting: .*no answer within 3 s", first
    ), first


def _one_dies(cluster):
    import os
    import signal

    from tf_gossip_pga import collectives

    mine = collectives.active()
    mine.gather("both are here", "the start", 60)
    if cluster.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    mine.gather("only rank 0 is here", "the meeting", 200)


def test_a_dead_worker_ends_the_others_and_is_named():
    from tf_gossip_pga import launch

    with pytest.raises(launch.LaunchError, match="Rank 1 failed first, with signal SIGKILL"):
        workers.run(_one_dies, 2)


def _many_steps(cluster):
    """Threads before and after many gossips: a timeout of TensorFlow's would leave two for each."""
    import tensorflow as tf

    from tf_gossip_pga import averaging, collectives, topology

    averager = averaging.Averager(
        collectives.active(),
        topology.ring(cluster.size),
        parameters=[tf.Variable(tf.zeros([100]))],
        statistics=[],
        others=[],
        timeout_s=60,
        start_timeout_s=60,
    )
    threads = []
    for _ in range(2):
        for _ in range(150):
            averager.gossip(0, "the test")
            averager.global_average("the test")
        with open("/proc/self/status") as status:
            threads += [int(line.split()[1]) for line in status if line.startswith("Threads:")]
    traces = [averager.gossip_functions[0], averager.global_function]
    return [threads, [each.function.experimental_get_tracing_count() for each in traces]]


def test_exchanges_leave_no_threads_behind_and_are_traced_once():
    for (early, late), traces in workers.run(_many_steps, 2):
        assert late <= early + 8
        assert traces == [1, 1]
