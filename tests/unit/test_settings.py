"""The arguments of GossipPGA as it keeps them."""

import json

import numpy as np

from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.training.settings import Settings

DEFAULTS = {
    "H": 6,
    "topology": "ring",
    "gossip_every": 1,
    "optimizer_state": "local",
    "outer_optimizer": None,
    "overlap": False,
    "wire_dtype": "float32",
    "timeout_s": 300.0,
    "on_worker_lost": "raise",
    "min_workers": 1,
    "local": (),
}


def test_numpys_numbers_are_kept_as_plain_ones():
    settings = Settings(
        **DEFAULTS
        | {"timeout_s": np.float32(5), "min_workers": np.int64(2), "on_worker_lost": "continue"},
        size=3,
    )
    assert json.loads(json.dumps(settings.facts()))["min_workers"] == 2
    assert (type(settings.timeout_s), type(settings.min_workers)) == (float, int)


def test_min_workers_is_no_fact_where_a_loss_is_the_end():
    assert Settings(**DEFAULTS, size=3).facts()["min_workers"] is None


def test_ranks_wait_longer_where_they_come_from_different_work():
    patience = Settings(**DEFAULTS, size=3).patience(Timing(between_work_factor=10))
    assert (patience.exchange_s, patience.start_s) == (300.0, 3000.0)
