"""Predict the time of a training step on your network, and recommend an algorithm.

    python -m tf_gossip_pga.plan --nodes=32 --parameters=25557032 --compute_ms=250 --mbit=1000
    python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure --model=FILE.keras

The second command runs on a cluster, and measures the cluster's network and the time of a step's
computation. In Python, without a cluster:

    >>> from tf_gossip_pga import plan
    >>> found = plan.predict(nodes=8, parameters=12_500_000, compute_ms=1700, mbit=250)
    >>> found["rows"][0]["name"], round(found["rows"][0]["step_ms"])
    ('Parallel SGD', 4501)
    >>> found["recommendation"]["name"]
    'Gossip SGD, one_peer_exponential'

A prediction compares Parallel SGD, Local SGD with each period, Gossip SGD on each topology, and
Gossip-PGA with each period on each topology. The prediction is a JSON-serializable dict:

    settings        the arguments of `predict` except `H` and `topology`; also `message_ms` and
                    `average_ms`, the times of one message and of one global average, and
                    `message_mb` and `average_mb`, what a worker sends in them, in MB
    rows            one dict per algorithm, Parallel SGD first:
      name, method, topology, H
      step_ms              mean time of a step
      mb_per_step          MB that a worker sends per step, without non-trainable variables
      speedup              over Parallel SGD
      beta                 b of the graph: the smaller, the faster ranks agree (see `plan.cost`).
                           None without gossip, and for a graph of more than 512 ranks that has
                           no formula for b, such as a grid
      transient_iid        order of magnitude of the transient stage for iid data: the steps until
                           the algorithm has caught up with Parallel SGD. None: infinite or unknown
      transient_non_iid    the same for non-iid data
    recommendation  `name` of a row; `code`, the line of Python that creates the callback for this
                    row; `reasons`, three sentences

In the network model, each worker has a host of its own, with one full-duplex link of `mbit` per
direction. In a gossip, each worker sends its parameters, encoded as `wire_dtype` says, to each rank
that receives from it. A global average is a ring all-reduce in float32: each of the n workers sends
2 (n-1)/n times the bytes of the parameters and waits for 2 (n-1) latencies. Parallel SGD averages
globally at every step.
`plan.cost` describes which workers wait for each other, and how reliable the orders of the
transient stage are.

A prediction ignores resources that hosts share (an oversubscribed switch, a common processor), the
slowdown of computation during an exchange, and non-trainable variables. All computation times are
drawn from one distribution, so a prediction cannot represent a worker that is always slower than
the others. For example, suppose that one of eight ranks always computes for 200 ms and the others
for 100 ms. For a step on a ring with 10 ms messages, `predict` returns 162 ms from the mean and
standard deviation of these times, but the step takes 220 ms.

Contents:
  predict: step time and transient stage of each algorithm, with a recommendation.
  measure: measurements of the network and of a step's computation on the running cluster.
  recommend: the recommended row of a prediction, with reasons.
  table, draw: a prediction as text or as a picture.
  TOPOLOGIES, PERIODS: the topologies and periods compared by default.
"""

from tf_gossip_pga.plan.prediction import PERIODS, TOPOLOGIES, predict
from tf_gossip_pga.plan.probe import measure
from tf_gossip_pga.plan.recommendation import recommend
from tf_gossip_pga.plan.report import draw, table

__all__ = ["PERIODS", "TOPOLOGIES", "draw", "measure", "predict", "recommend", "table"]
