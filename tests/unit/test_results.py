"""job/report.py: the table, the figure, and the file of a run."""

import pytest

from job import figure, report
from tests.support.fields import FIELDS


def test_a_run_that_diverged_says_so(tmp_path):
    nan = float("nan")
    run = dict.fromkeys(FIELDS, nan)
    run |= {"algorithm": "pga", "model": "mlp", "dataset": "digits", "topology": "ring", "H": 6}
    run |= {"workers": 2, "epochs": 1, "steps": 3, "gossip_steps": 3, "global_steps": 0}
    run |= {"gossip_every": 1, "overlap": False, "wire_dtype": "float32", "outer_optimizer": None}
    run |= {"unigram_cross_entropy": None, "seconds": 1.0, "communication_seconds": 0.5}
    run["history"] = {"loss": [nan], "val_loss": [nan], "val_accuracy": [0.1]}
    assert "diverged             the loss is no longer a number" in report.table(run)
    figure.draw(tmp_path / "curves.png", "it", run, [(3, nan)])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        report.write(path, fail)
    assert path.read_text() == "old"
