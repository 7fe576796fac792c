"""What ranks make of one another's reports at a sync point; tables worked by hand."""

import math

import numpy as np
import pytest

from tf_gossip_pga.training import sync_point
from tf_gossip_pga.training.sync_point import Report


def _report(rank: int, **fields) -> Report:
    fields = {
        "where": "the end of epoch 1",
        "step": 6,
        "stop": False,
        "measured": [],
        "logs": {},
        "value": None,
        **fields,
    }
    return Report(rank=rank, **fields)


def test_the_same_point_is_accepted():
    sync_point.check_same_point([_report(0), _report(1), _report(2)])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            {"where": "the validation after step 6"},
            "rank 1 is at the validation after step 6, step",
        ),
        ({"step": 7}, "rank 1 is at the end of epoch 1, step 7"),
    ],
)
def test_ranks_at_different_points_are_named(other, text):
    with pytest.raises(RuntimeError, match="at different points of training") as error:
        sync_point.check_same_point([_report(0), _report(1, **other)])
    assert "rank 0 is at the end of epoch 1, step 6" in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("is_stopped", "cause", "advice"),
    [
        (
            True,
            "that runs after GossipPGA set model.stop_training",
            "call those of a keras.callbacks.CallbackList",
        ),
        (False, "ran out of data", "use cluster.shard or dataset.repeat()"),
    ],
)
def test_a_rank_that_leaves_an_epoch_early_is_reported_with_the_cause(is_stopped, cause, advice):
    sync_point.check_whole_epoch(1, 2, 6, 6, is_stopped)
    with pytest.raises(RuntimeError, match=r"Rank 1 left epoch 2 after 5 of 6 batches") as error:
        sync_point.check_whole_epoch(1, 2, 5, 6, is_stopped)
    assert cause in str(error.value)
    assert advice in str(error.value)


def test_distances_put_the_ranks_parts_together():
    # Two averages, at steps 4 and 6. Replicas 1 and 3 around 2 (norm 2): sqrt(1) / 2; then equal.
    reports = [
        _report(0, measured=[[4, [1.0, 4.0]], [6, [0.0, 4.0]]]),
        _report(1, measured=[[4, [1.0, 0.0]], [6, [0.0, 0.0]]]),
    ]
    assert sync_point.distances(reports) == [(4, 0.5), (6, 0.0)]


def test_ranks_that_resume_at_different_epochs_learn_which_backup_to_replace():
    wheres = {
        0: "the beginning of epoch 4",
        1: "the beginning of epoch 4",
        3: "the beginning of epoch 3",
    }
    reports = [_report(rank, where=where) for rank, where in wheres.items()]
    with pytest.raises(RuntimeError, match="begin at different epochs: rank 0 is at") as error:
        sync_point.check_same_point(reports)
    assert "replace the backup of rank 3 with a copy of rank 0's" in str(error.value)


def test_ranks_that_measured_a_different_number_of_averages_are_an_error():
    reports = [_report(0, measured=[[4, [1.0, 4.0]]]), _report(1)]
    with pytest.raises(ValueError, match="zip"):
        sync_point.distances(reports)


def test_logs_become_means_where_all_ranks_have_them():
    reports = [_report(0, logs={"loss": 1.0, "own": 5.0}), _report(1, logs={"loss": 2.0})]
    assert sync_point.mean_logs(reports, ["loss", "own"]) == {"loss": 1.5}


def test_arrays_become_means_where_their_shapes_agree():
    reports = [
        _report(0, logs={"f1": [1.0, 2.0, 3.0], "other": [1.0]}),
        _report(1, logs={"f1": [3.0, 2.0, 5.0], "other": [1.0, 2.0]}),
    ]
    means = sync_point.mean_logs(reports, ["f1", "other"])
    assert list(means) == ["f1"]
    assert means["f1"].tolist() == [2.0, 2.0, 4.0]


def test_scalars_and_arrays_are_numbers():
    logs = {
        "loss": np.float32(0.5),
        "count": 3,
        "zero_d": np.array(2.0),
        "vector": np.array([1.0, 2.0], np.float32),
        "matrix": [[1, 2], [3, 4]],
        "text": "abc",
        "texts": np.array(["a", "b"]),
        "complex": np.array(1j),
        "ragged": [[1.0], [2.0, 3.0]],
        "large": np.zeros(100_001),
        "none": None,
    }
    assert sync_point.numbers_in(logs) == {
        "loss": 0.5,
        "count": 3.0,
        "zero_d": 2.0,
        "vector": [1.0, 2.0],
        "matrix": [[1.0, 2.0], [3.0, 4.0]],
    }
    assert sync_point.numbers_in(None) == {}
    assert math.isnan(sync_point.numbers_in({"loss": math.nan})["loss"])
