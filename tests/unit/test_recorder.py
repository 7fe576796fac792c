"""Spans reach listeners with the right times, and cost nothing without a listener."""

import contextlib
import itertools
import time
import types

import keras
import numpy as np
import pytest

from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.coordination.view import View
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training import recorder as recorder_lib
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.group import Group
from tf_gossip_pga.training.phase import StopVote
from tf_gossip_pga.training.recorder import Recorder, Span
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.settings import Settings


@pytest.fixture
def clock(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(recorder_lib.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(recorder_lib, "_EPOCH", 1000.0)
    return now


def _listened(progress):
    recorder, spans = Recorder(progress), []
    recorder.listeners.append(spans.append)
    return recorder, spans


def test_a_span_has_its_time_and_the_bytes_sent_meanwhile(clock):
    progress = [3, 100]
    recorder, spans = _listened(lambda: tuple(progress))
    with recorder.span("gossip", lambda: (1, 2), "somewhere"):
        clock[0] += 0.5
        progress[:] = [4, 160]
    assert spans == [Span("gossip", 3, 1010.0, 0.5, (1, 2), 60, "somewhere")]
    assert spans[0].end == 1010.5


def test_a_failed_span_is_recorded_and_so_are_spans_inside(clock):
    recorder, spans = _listened(lambda: (1, 0))
    with pytest.raises(ValueError, match="lost"), recorder.span("gossip"):
        clock[0] += 1.0
        with recorder.span("regrouping", counts_bytes=False):
            clock[0] += 2.0
            raise ValueError("lost")
    assert [(each.kind, each.begin, each.seconds) for each in spans] == [
        ("regrouping", 1011.0, 2.0),
        ("gossip", 1010.0, 3.0),
    ]


def test_a_span_may_begin_and_end_in_different_methods(clock):
    recorder, spans = _listened(lambda: (5, 0))
    recorder.end("compute")  # not begun
    recorder.begin("compute")
    clock[0] += 7.0
    recorder.begin("compute")  # again: what came before is left out
    clock[0] += 0.25
    recorder.end("compute")
    recorder.end("compute")
    assert spans == [Span("compute", 5, 1017.0, 0.25)]


def test_without_a_listener_nothing_is_called_measured_or_stored(monkeypatch):
    def never():
        raise AssertionError

    recorder = Recorder(never)
    monkeypatch.setattr(recorder_lib.time, "perf_counter", never)
    with recorder.span("gossip", never):
        recorder.begin("compute")
        recorder.end("compute")
    assert not recorder._begun


def test_times_are_seconds_since_1970():
    recorder, spans = _listened(lambda: (0, 0))
    before = time.time()
    with recorder.span("gossip"):
        pass
    assert before - 1 < spans[0].begin < time.time() + 1


def _settings(**changes) -> Settings:
    defaults = {
        "H": 6,
        "topology": "one_peer_exponential",
        "gossip_every": 1,
        "optimizer_state": "local",
        "outer_optimizer": None,
        "overlap": False,
        "wire_dtype": "float32",
        "timeout_s": 60.0,
        "on_worker_lost": "continue",
        "min_workers": 1,
        "local": (),
        "size": 3,
    }
    return Settings(**{**defaults, **changes})


class Survivor(SoloSession):
    """Rank 2 of 4, after rank 1 has been lost."""

    view = View(1, (0, 2, 3))
    size, place = 3, 1


def _group(**settings):
    session = Survivor(Cluster(rank=2, size=4))
    group = Group(session, RunState(_settings(**settings), session), None, StopVote())
    spans = []
    group._run.recorder.listeners.append(spans.append)
    return group, spans


def test_peers_of_a_gossip_are_ranks_not_places():
    group, spans = _group()
    group._run.averager = types.SimpleNamespace(gossip=lambda *arguments: None, bytes_sent=0)
    group.gossip(1, 0)  # place 1 receives from place 0 and sends to place 2
    assert [(each.kind, each.peers) for each in spans] == [("gossip", (0, 3))]
    assert group.others() == (0, 3)


def test_a_gossip_in_the_background_has_a_span_of_its_own():
    group, spans = _group(overlap=True)
    records = []

    def start(round, doing, step, record):
        records.append(record())
        group._run.averager.bytes_sent += 8

    group._run.averager = types.SimpleNamespace(
        start_gossip=start, finish_gossip=lambda: None, bytes_sent=0
    )
    group._run.step = 1
    group.gossip(1, 0)
    group._run.step = 2
    with records[0]:
        group._run.averager.bytes_sent += 4  # of other exchanges meanwhile
    assert [(each.kind, each.step, each.peers, each.bytes) for each in spans] == [
        ("gossip", 1, (0, 3), 8),
        ("gossip in the background", 1, (0, 3), 0),
    ]


def test_a_loss_is_recorded_as_a_regrouping():
    group, spans = _group()
    with contextlib.suppress(RuntimeError), group.loss_policy.recorded():
        raise RuntimeError
    assert [each.kind for each in spans] == ["regrouping"]


def test_a_single_worker_records_its_steps_and_validations():
    gossip, spans = GossipPGA(H=2), []
    gossip.run.recorder.listeners.append(spans.append)
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((6, 1))
    options = {"batch_size": 2, "verbose": 0, "callbacks": [gossip]}
    model.fit(x, x, epochs=2, validation_data=(x, x), **options)
    kinds = [(each.kind, each.step) for each in spans]
    epoch = [("compute", 1), ("compute", 2), ("compute", 3), ("validation", 3)]
    assert kinds == [*epoch, *((kind, step + 3) for kind, step in epoch)]
    assert all(a.end <= b.begin for a, b in itertools.pairwise(spans))
