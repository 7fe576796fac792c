"""Predict the time of a training step on your network, and recommend an algorithm.

    python -m tf_gossip_pga.plan --nodes=32 --parameters=25557032 --compute_ms=250 --mbit=1000
    python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure --model=FILE.keras

The second command runs on a cluster, and measures the network and the computation there. In Python,
without a cluster:

    >>> from tf_gossip_pga import plan
    >>> found = plan.predict(nodes=8, parameters=12_500_000, compute_ms=1700, mbit=250)
    >>> found["rows"][0]["name"], round(found["rows"][0]["step_ms"])
    ('Parallel SGD', 4501)
    >>> found["recommendation"]["name"]
    'Gossip SGD, one_peer_exponential'

A prediction compares Parallel SGD, Local SGD with each period, Gossip SGD on each topology, and
Gossip-PGA with each period on each topology. It is a dict that can be written as JSON:

    settings        the arguments of `predict` except `H` and `topology`; `message_ms` and
                    `average_ms`, the times of one message and of one global average
    rows            one dict for each algorithm, Parallel SGD first:
      name, method, topology, H
      step_ms              mean time of a step
      speedup              over Parallel SGD
      beta                 b of the graph, see `plan.cost`; None without gossip, and above 512 ranks
                           for graphs without a formula, such as a grid
      transient_iid        order of the transient stage with iid data; None: infinite or unknown
      transient_non_iid    the same with non-iid data
    recommendation  `name` of a row; `code`, the line that sets it up; `reasons`, three sentences

The model of the network: each host has one full-duplex link of `mbit` in each direction. A gossip
sends the parameters in their wire format to each neighbor. A global average is a ring all-reduce in
float32: each of the n workers sends 2 (n-1)/n times the bytes of the parameters and waits for
2 (n-1) latencies. Parallel SGD averages globally in each step. `plan.cost` describes which worker
waits for which, and how reliable the orders of the transient stage are.

The model leaves out resources that hosts share (a switch without full bandwidth, one processor),
computation that an exchange slows down, and variables that are not trained. It draws all
computation times from one distribution, and so knows no worker that is always slower than others.
If one of eight ranks takes 200 ms and the others 100 ms, the prediction for a step on a ring
(messages of 10 ms) is 162 ms, from mean and deviation; the step takes 220 ms.

Contents:
  predict: the step time and the transient stage of each algorithm, and a recommendation.
  measure: the network and a computation, timed on the running cluster.
  recommend: the choice among predicted rows, with reasons.
  table, draw: a prediction as text, and as a picture.
  TOPOLOGIES, PERIODS: the topologies and periods compared by default.
"""

from tf_gossip_pga.plan.prediction import PERIODS, TOPOLOGIES, predict
from tf_gossip_pga.plan.probe import measure
from tf_gossip_pga.plan.recommendation import recommend
from tf_gossip_pga.plan.report import draw, table

__all__ = ["PERIODS", "TOPOLOGIES", "draw", "measure", "predict", "recommend", "table"]
