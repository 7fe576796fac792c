"""600 generated inputs: an error of ours, or what was meant; never a silent single worker."""

import copy
import json
import pathlib
import re
import traceback

import hypothesis
import pytest
from hypothesis import strategies

import tf_gossip_pga as pga
from tf_gossip_pga.cluster import tf_config as cluster_lib

MANY = hypothesis.settings(max_examples=200)

VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-2, 70000)
    | strategies.floats()
    | strategies.text(max_size=12)
    | strategies.sampled_from(["worker", "chief", "ps", "a:1", "b:2", "[::1]:3", "a:99999", ":1"]),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(
            strategies.sampled_from(["worker", "chief", "ps", "type", "index", "cluster", "task"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
GOOD = {
    "cluster": {"chief": ["h:1"], "worker": ["h:2", "h:3"]},
    "task": {"type": "worker", "index": 1},
}
PLACES = [
    *([], ["cluster"], ["task"], ["cluster", "chief"], ["cluster", "worker"]),
    *(["cluster", "worker", 0], ["cluster", "ps"], ["task", "type"], ["task", "index"]),
]


@strategies.composite
def configs(draw) -> str:
    """A `TF_CONFIG` with up to two places changed or removed, or cut short."""
    config = copy.deepcopy(GOOD)
    for place in draw(strategies.lists(strategies.sampled_from(PLACES), max_size=2)):
        if not place:
            config = draw(VALUES)
            continue
        parent = config
        try:
            for key in place[:-1]:
                parent = parent[key]
            if draw(strategies.booleans()):
                parent[place[-1]] = draw(VALUES)
            else:
                del parent[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue
    text = json.dumps(config)
    return text[: draw(strategies.integers(1, len(text)))] if draw(strategies.booleans()) else text


@MANY
@hypothesis.given(configs())
def test_a_tf_config_is_understood_or_answered(text):
    try:
        found = cluster_lib.from_tf_config(text)
    except ValueError as error:
        assert str(error).startswith("TF_CONFIG ")
        assert "example: " in str(error)
        return
    config = json.loads(text)
    task, hosts = config["task"], config["cluster"]
    assert found.addresses == (*hosts.get("chief", []), *hosts.get("worker", []))
    assert found.size == len(found.addresses) == len(set(found.addresses))
    assert found.addresses[found.rank] == hosts[task["type"]][task["index"]]


ARGUMENTS = {
    "H": VALUES | strategies.just(pga.AdaptivePeriod()),
    "topology": VALUES | strategies.sampled_from(["ring", "hypercube", pga.topology.ring(3)]),
    "optimizer_state": VALUES | strategies.sampled_from(["local", "average", "reset"]),
    "outer_optimizer": VALUES | strategies.just(pga.Outer()),
    "wire_dtype": VALUES | strategies.sampled_from(["float32", "bfloat16", "int8"]),
    "timeout_s": VALUES,
    "on_worker_lost": VALUES | strategies.sampled_from(["raise", "continue"]),
    "min_workers": VALUES,
}


@MANY
@hypothesis.given(strategies.fixed_dictionaries({}, optional=ARGUMENTS))
def test_arguments_are_taken_or_answered(arguments):
    names = "|".join(ARGUMENTS)
    try:
        gossip = pga.GossipPGA(**arguments)
    except (TypeError, ValueError) as error:
        assert re.search(rf"{names}|[Tt]opology", str(error)), error
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        assert pathlib.Path(raised_in).is_relative_to(pathlib.Path(pga.__file__).parent)
        return
    assert gossip.step == 0


@MANY
@hypothesis.given(VALUES)
def test_a_state_is_taken_or_answered(state):
    gossip = pga.GossipPGA(H=pga.AdaptivePeriod())
    with pytest.raises(ValueError, match="state must be the state of a GossipPGA"):
        gossip.state = state
