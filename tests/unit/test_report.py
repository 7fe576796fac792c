"""The callback `Report` with a single worker, and its errors."""

import importlib.util
import re

import keras
import numpy as np
import pytest

import tf_gossip_pga as pga
from tests.unit.test_report_page import Parsed
from tf_gossip_pga.observe import rendering
from tf_gossip_pga.observe import report as report_lib
from tf_gossip_pga.training.recorder import Span


def fit(*callbacks, epochs=2, first=1, gossip=True, **compiled):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="line")
    model.compile("sgd", "mse", **compiled)
    x = np.ones((24, 4), "float32")
    callbacks = [pga.GossipPGA(H=2)] * gossip + list(callbacks)
    fit = {"batch_size": 4, "epochs": epochs, "verbose": 0, "validation_split": 0.5}
    fit["initial_epoch"] = first - 1
    return model.fit(x, x[:, 0], callbacks=callbacks, **fit)


class Sees(keras.callbacks.Callback):
    """Parse the page at the end of each epoch, and interrupt training."""

    def __init__(self, path, after=100):
        super().__init__()
        self.path, self.after, self.states = path, after, []

    def on_epoch_end(self, epoch, logs=None):
        text = Parsed(self.path.read_text("utf-8")).text
        self.states += re.findall(r"Epoch \d of \d had ended", text)
        if epoch + 1 == self.after:
            raise KeyboardInterrupt


def test_the_page_of_one_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(report_lib, "_WRITING", 1e9)  # after every epoch
    path = tmp_path / "report.html"
    sees = Sees(path)
    history = fit(pga.Report(path), sees, metrics=["mae"]).history
    assert sees.states == ["Epoch 1 of 2 had ended", "Epoch 2 of 2 had ended"]
    text = Parsed(path.read_text("utf-8")).text
    for expected in (
        "line finished Training finished after 2 epochs.",
        f"val_loss {history['val_loss'][-1]:.4g} last epoch",
        "There is only one worker, so there is nobody to wait for.",
        "No worker was lost.",
        f"tf_gossip_pga {pga.__version__}",
        f"Keras {keras.__version__}",
        "trainable parameters 5",
        "H 2",
        "6 steps",
    ):
        assert expected in text
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_run_leaves_a_page_and_the_next_fit_writes_it_again(tmp_path):
    path = tmp_path / "report.html"
    report = pga.Report(path)
    with pytest.raises(KeyboardInterrupt):
        fit(report, Sees(path, after=1), epochs=3)
    text = Parsed(path.read_text("utf-8")).text
    assert "Epoch 1 of 3 had ended when this page was written" in text
    assert "line unfinished" in text
    fit(report, epochs=1)
    assert "Training finished after 1 epoch." in Parsed(path.read_text("utf-8")).text


def test_a_resumed_fit_keeps_the_page_of_the_killed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report_lib, "_WRITING", 1e9)  # after every epoch
    path = tmp_path / "report.html"
    with pytest.raises(KeyboardInterrupt):
        fit(pga.Report(path), Sees(path, after=2), epochs=5)
    fit(pga.Report(path), epochs=4, first=3)
    fit(pga.Report(path), epochs=5, first=5)
    texts = {each.name: Parsed(each.read_text("utf-8")).text for each in tmp_path.iterdir()}
    assert sorted(texts) == ["report-1.html", "report-2.html", "report.html"]
    assert "Epoch 2 of 5 had ended when this page was written" in texts["report-1.html"]
    assert "This page begins with" not in texts["report-1.html"]
    for name, end, begin in (("report-2.html", 4, 3), ("report.html", 5, 5)):
        expected = f"Training finished after {end} epochs. This page begins with epoch {begin},"
        assert expected in texts[name]


def test_a_fit_without_epochs_leaves_the_page_of_the_finished_run(tmp_path):
    path = tmp_path / "report.html"
    fit(pga.Report(path), epochs=2)
    before = path.read_text("utf-8")
    fit(pga.Report(path), epochs=2, first=3)
    assert path.read_text("utf-8") == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_time_in_exchanges_contains_the_sync_points_of_a_checkpoint(tmp_path):
    """The heat map contains them too, although they do not count as `communication_seconds`."""

    class Saves(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for listen in gossip.run.recorder.listeners:
                listen(Span("sync point", batch + 1, 0.0, 1000.0, (1,), where="a save point"))

    gossip, report = pga.GossipPGA(H=2), pga.Report(tmp_path / "report.html")
    fit(gossip, report, Saves(), gossip=False, epochs=1)
    assert report._record.exchanging == 1.0


def test_writing_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(rendering, "render", lambda record: drawn.append(record.steps) or "…")
    monkeypatch.setattr(report_lib, "_WRITING", 1e-9)
    fit(pga.Report(tmp_path / "report.html"), epochs=5)
    assert drawn == [3, 15]  # after the first epoch, and at the end


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("cannot draw")])
def test_training_continues_if_the_page_cannot_be_written(tmp_path, monkeypatch, said, error):
    def fail(record):
        raise error

    monkeypatch.setattr(rendering, "render", fail)
    history = fit(pga.Report(tmp_path / "report.html")).history
    assert len(history["loss"]) == 2
    expected = f"The report was not written. Training continues. {type(error).__name__}: {error}."
    assert expected in said.text


def test_logs_that_are_not_numbers_are_left_out(tmp_path):
    path = tmp_path / "report.html"
    adds = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(note="text", many=np.ones(3), one=np.int64(7))
    )
    fit(adds, pga.Report(path))
    text = Parsed(path.read_text("utf-8")).text
    assert " one " in text
    assert "note" not in text
    assert "many" not in text


def test_it_must_come_after_a_gossip_pga(tmp_path):
    report = pga.Report(tmp_path / "report.html")
    with pytest.raises(ValueError, match="Report must come after a GossipPGA in the callbacks"):
        fit(report, gossip=False)


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(ValueError, match=r"path must be a file in an existing folder, received '"):
        pga.Report(tmp_path / "nowhere" / "report.html")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        r'matplotlib, which is not installed\. Install it: pip install "tf_gossip_pga\[plot\]"'
    )
    with pytest.raises(ImportError, match=message):
        pga.Report(tmp_path / "report.html")
