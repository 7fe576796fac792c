"""The trace of a single worker, and its content for several."""

import json

import keras
import numpy as np
import pytest

import tf_gossip_pga as pga
from tf_gossip_pga.observe import launched, trace, waits
from tf_gossip_pga.observe import timeline as timeline_lib
from tf_gossip_pga.tools import report_request, timeline_request
from tf_gossip_pga.training import callback_list
from tf_gossip_pga.training.recorder import Span

SPANS = {
    0: [
        Span("compute", 3, 50.0, 1.0),
        Span("gossip", 3, 51.0, 2.0, (1,), 80),
        Span("gossip in the background", 3, 53.0, 0.5, (1,)),
        Span("sync point", 3, 54.0, 0.25, (1,), where="the end of epoch 1"),
    ],
    1: [Span("compute", 3, 50.0, 2.5), Span("gossip", 3, 52.5, 0.5, (0,), 80)],
}


def test_each_rank_is_a_process_with_names():
    events = trace.document(SPANS, [])["traceEvents"]
    names = [(e["name"], e["pid"], e.get("tid"), e["args"]) for e in events if e["ph"] == "M"]
    assert names == [
        ("process_name", 0, None, {"name": "rank 0"}),
        ("process_sort_index", 0, None, {"sort_index": 0}),
        ("thread_name", 0, 0, {"name": "training"}),
        ("thread_name", 0, 1, {"name": "in the background"}),
        ("process_name", 1, None, {"name": "rank 1"}),
        ("process_sort_index", 1, None, {"sort_index": 1}),
        ("thread_name", 1, 0, {"name": "training"}),
    ]


def test_spans_are_complete_events_in_microseconds_with_waits_inside():
    spans = {0: SPANS[0][:2], 1: SPANS[1]}
    events = trace.document(spans, waits.waits(spans))["traceEvents"]
    found = [(e["pid"], e["name"], e["ts"], e["dur"], e["args"]) for e in events if e["ph"] == "X"]
    assert found == [
        (0, "compute", 0.0, 1e6, {"step": 3}),
        (
            *(0, "gossip", 1e6, 2e6),
            {"step": 3, "peers": [1], "bytes": 80, "waited for rank 1": "1500.000 ms"},
        ),
        (0, "waiting for rank 1", 1e6, 1.5e6, {"step": 3, "rank": 1}),
        (1, "compute", 0.0, 2.5e6, {"step": 3}),
        (1, "gossip", 2.5e6, 5e5, {"step": 3, "peers": [0], "bytes": 80}),
    ]
    events = trace.document(SPANS, [])["traceEvents"]
    assert [e["tid"] for e in events if e["name"] == "gossip in the background"] == [1]
    assert [e["args"]["where"] for e in events if e["name"] == "sync point"] == [
        "the end of epoch 1"
    ]


def test_an_outer_span_precedes_those_inside_it():
    spans = {0: [Span("regrouping", 1, 1.0, 2.0), Span("gossip", 1, 1.0, 5.0)]}
    events = trace.document(spans, [])["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X"] == ["gossip", "regrouping"]


# ---- One worker ---------------------------------------------------------------------------------


def _fit(callbacks, epochs=3, steps=4, **arguments):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((2 * steps, 1))
    return model.fit(x, x, batch_size=2, epochs=epochs, verbose=0, callbacks=callbacks, **arguments)


def _spans(path):
    events = json.loads(path.read_text())["traceEvents"]
    return [(e["name"], e["args"]["step"]) for e in events if e["ph"] == "X"]


@pytest.fixture
def warned(monkeypatch):
    found = []
    monkeypatch.setattr(timeline_lib.logger, "warning", found.append)
    return found


def test_the_steps_between_first_and_last_are_written(tmp_path, warned):
    path = tmp_path / "trace.json"
    gossip = pga.GossipPGA(H=2)
    timeline = pga.Timeline(path, steps=(3, 6))
    x = np.zeros((2, 1))
    _fit([gossip, timeline], validation_data=(x, x))
    first, second = [("compute", 3), ("compute", 4), ("validation", 4)], [("compute", 5)]
    assert _spans(path) == [*first, *second, ("compute", 6)]
    assert gossip.run.recorder.listeners == []
    assert list(tmp_path.iterdir()) == [path]  # no temporary file
    assert not warned


@pytest.mark.parametrize("steps", [(1, 1), (4, 4), (5, 5)])
def test_a_single_step_at_the_edge_of_an_epoch(tmp_path, steps):
    path = tmp_path / "trace.json"
    _fit([pga.GossipPGA(), pga.Timeline(path, steps=steps)])
    assert _spans(path) == [("compute", steps[0])]


def test_a_fit_that_ends_too_early_is_reported(tmp_path, warned):
    path = tmp_path / "trace.json"
    _fit([pga.GossipPGA(), pga.Timeline(path, steps=(100, 120))])
    assert warned.pop() == (
        "The timeline was to record steps 100 to 120, but this fit ended with step 12: "
        f"{path} was not written. Choose steps that this fit trains, or call fit again with the "
        "same GossipPGA."
    )
    assert not path.exists()
    _fit([pga.GossipPGA(), pga.Timeline(path, steps=(11, 120))])
    assert f"{path} contains only steps 11 to 12" in warned.pop()
    assert _spans(path) == [("compute", 11), ("compute", 12)]


def test_a_fit_that_begins_too_late_is_reported(tmp_path, warned):
    path, gossip = tmp_path / "trace.json", pga.GossipPGA()
    _fit([gossip])
    _fit([gossip, pga.Timeline(path, steps=(3, 6))])
    assert "steps 3 to 6, but this fit ended with step 24" in warned.pop()
    assert not path.exists()


def test_a_later_fit_does_not_report_steps_that_an_earlier_one_has_written(tmp_path, warned):
    path, gossip = tmp_path / "trace.json", pga.GossipPGA()
    timeline = pga.Timeline(path, steps=(3, 6))
    _fit([gossip, timeline])
    written = path.read_bytes()
    _fit([gossip, timeline])  # steps 13 to 24
    for steps in (2, 5):  # too few: none or some of them
        _fit([pga.GossipPGA(), pga.Timeline(path, steps=(3, 6))], epochs=1, steps=steps)
        _fit([pga.GossipPGA(), timeline], epochs=1, steps=steps)
    assert not warned
    assert path.read_bytes() == written


def test_the_steps_may_span_several_fits(tmp_path, warned):
    path, gossip = tmp_path / "trace.json", pga.GossipPGA()
    timeline = pga.Timeline(path, steps=(11, 14))
    _fit([gossip, timeline])
    assert "ended with step 12" in warned.pop()
    _fit([gossip, timeline])
    assert [step for _, step in _spans(path)] == [11, 12, 13, 14]
    assert not warned


def test_steps_that_are_trained_again_are_recorded_once(tmp_path):
    path, gossip = tmp_path / "trace.json", pga.GossipPGA()
    timeline = pga.Timeline(path, steps=(3, 14))
    _fit([gossip, timeline])
    gossip.state = gossip.state | {"step": 8}  # as after a return to a checkpoint
    _fit([gossip, timeline])
    steps = [step for kind, step in _spans(path) if kind == "compute"]
    assert len(steps) == len(set(steps))
    assert set(range(3, 9)) < set(steps) <= set(range(3, 15))


def test_a_later_fit_that_counts_from_1_writes_again(tmp_path):
    path = tmp_path / "trace.json"
    timeline = pga.Timeline(path, steps=(3, 4))
    _fit([pga.GossipPGA(), timeline])
    path.unlink()
    _fit([pga.GossipPGA(), timeline])
    assert _spans(path) == [("compute", 3), ("compute", 4)]


def test_a_file_that_cannot_be_written_does_not_end_training(tmp_path, warned):
    folder = tmp_path / "folder"
    folder.mkdir()
    timeline = pga.Timeline(folder / "trace.json", steps=(1, 2))
    folder.rmdir()
    assert len(_fit([pga.GossipPGA(), timeline]).epoch) == 3
    assert warned[0].startswith("The timeline was not written. Training continues. [Errno 2]")


def test_a_fit_that_an_exception_interrupted_leaves_no_second_listener(tmp_path):
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    gossip, timeline = pga.GossipPGA(), pga.Timeline(tmp_path / "trace.json", steps=(1, 12))
    with pytest.raises(KeyboardInterrupt):
        _fit([gossip, timeline, Stops()])
    assert len(gossip.run.recorder.listeners) == 1
    _fit([gossip, timeline])
    assert _spans(tmp_path / "trace.json")[:2] == [("compute", 2), ("compute", 3)]
    assert gossip.run.recorder.listeners == []


@pytest.mark.parametrize("place", [0, None])
def test_a_gossip_must_come_first(tmp_path, place):
    timeline = pga.Timeline(tmp_path / "trace.json")
    callbacks = [timeline] if place is None else [timeline, pga.GossipPGA()]
    with pytest.raises(ValueError, match="Timeline must come after a GossipPGA in the callbacks"):
        _fit(callbacks)


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"steps must be .*; received \(9, 1\)\. Steps"):
        pga.Timeline(tmp_path / "trace.json", steps=(9, 1))
    with pytest.raises(ValueError, match="path must be a file in an existing folder"):
        pga.Timeline(tmp_path / "missing" / "trace.json")


# ---- Requested by the launcher ------------------------------------------------------------------


@pytest.fixture
def connected(monkeypatch):
    """Connect as at the first use of `pga.GossipPGA` in a new process."""
    monkeypatch.setattr(callback_list, "companions", [])

    def connect(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        launched.connect.cache_clear()
        return pga.GossipPGA

    yield connect
    launched.connect.cache_clear()


def test_the_launchers_variables_add_a_timeline(tmp_path, connected):
    path = tmp_path / "trace.json"
    gossip = connected(**timeline_request.variables(str(path), (2, 3)))
    assert len(callback_list.companions) == 1
    for _ in range(2):
        _fit([gossip()])
        assert _spans(path) == [("compute", 2), ("compute", 3)]
        path.unlink()
    assert pga.GossipPGA is gossip
    assert len(callback_list.companions) == 1


def test_a_fit_inside_a_fit_has_a_timeline_and_a_report_of_its_own(tmp_path, connected):
    path, page = tmp_path / "trace.json", tmp_path / "report.html"
    requests = timeline_request.variables(str(path), (2, 9)) | report_request.variables(str(page))
    gossip = connected(**requests)

    class Nests(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            _fit([gossip()], epochs=1)

    _fit([gossip(), Nests()])
    steps = [step for kind, step in _spans(path) if kind == "compute"]
    assert steps == list(range(2, 10))  # of the outer fit, which ended last
    assert "Training finished after 3 epochs." in page.read_text("utf-8")


def test_a_request_that_cannot_be_met_is_an_error_before_training(tmp_path, connected):
    gossip = connected(**timeline_request.variables(str(tmp_path / "missing" / "a"), (2, 3)))()
    message = "A callback that the launcher requests cannot be created: path must be a file"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            _fit([gossip])
    assert not gossip.in_fit
    (tmp_path / "missing").mkdir()
    _fit([gossip])
    assert (tmp_path / "missing" / "a").exists()


def test_without_the_variables_no_timeline_is_added(connected, monkeypatch):
    monkeypatch.delenv(timeline_request.FILE, raising=False)
    connected()
    assert callback_list.companions == []


def test_invalid_variables_are_an_error(tmp_path, connected):
    with pytest.raises(ValueError, match="TF_GOSSIP_PGA_TIMELINE_STEPS must be FIRST:LAST"):
        connected(TF_GOSSIP_PGA_TIMELINE=str(tmp_path), TF_GOSSIP_PGA_TIMELINE_STEPS="x")
