"""Predict the time of a training step on your network, and recommend an algorithm.

    python -m tf_gossip_pga.plan --nodes=32 --parameters=25557032 --compute_ms=250 --mbit=1000
    python -m tf_gossip_pga.launch --workers=4 -m tf_gossip_pga.plan --measure --model=FILE.keras

The second command measures what it needs on the cluster that it runs on. In Python, without one:

    >>> from tf_gossip_pga import plan
    >>> found = plan.predict(nodes=8, parameters=12_500_000, compute_ms=1700, mbit=250)
    >>> found["rows"][0]["name"], round(found["rows"][0]["step_ms"])
    ('Parallel SGD', 4501)
    >>> found["recommendation"]["name"]
    'Gossip SGD, one_peer_exponential'

The network: each host has a link of its own, `mbit` in each direction at the same time. A gossip
sends the parameters in their wire format to each neighbor. A global average is a ring all-reduce in
float32: 2 (n-1)/n times the bytes of the parameters, and 2 (n-1) latencies. Parallel SGD averages
globally in each step. `plan.cost` says who waits for whom, and how sure the orders of the transient
stage are.

Not modeled: what several hosts share (a switch without full bandwidth, the processor of one
machine), computation that an exchange slows down, variables that are not trained, and workers that
are always slower than others, since computations are drawn from one distribution for all. Where one
of eight ranks takes 200 ms and the others 100, a step on a ring (messages of 10 ms) is predicted at
162 ms, from mean and deviation, and takes 220.

Contents:
  predict: the time of a step and the transient stage of each algorithm, and a recommendation.
  measure: the network and a computation, timed on the running cluster.
  recommend: the choice among predicted rows, with reasons.
  table, draw: a prediction as text, and as a picture.
  TOPOLOGIES, PERIODS: what is compared by default.
"""

from tf_gossip_pga.plan.prediction import PERIODS, TOPOLOGIES, predict
from tf_gossip_pga.plan.probe import measure
from tf_gossip_pga.plan.recommendation import recommend
from tf_gossip_pga.plan.report import draw, table

__all__ = ["PERIODS", "TOPOLOGIES", "draw", "measure", "predict", "recommend", "table"]
