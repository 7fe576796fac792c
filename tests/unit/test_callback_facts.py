"""What ranks make of one another's callbacks before the first step; tables."""

import json
import pathlib

import keras
import pytest

import tf_gossip_pga as pga
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.training import callback_facts
from tf_gossip_pga.training.callback_list import Siblings

callbacks = keras.callbacks
GOSSIP = keras.callbacks.Callback()  # stands for it


def _facts(*others):
    """The facts of a rank with these callbacks, among which `GOSSIP` is."""
    listed = list(others) if GOSSIP in others else [GOSSIP, *others]
    found = callback_facts.facts(Siblings(listed, listed.index(GOSSIP)))
    return json.loads(json.dumps(found))  # as it travels


def _check(*ranks):
    return callback_facts.check([_facts(*each) for each in ranks], tuple(range(len(ranks))))


def _plateau(**arguments):
    return callbacks.ReduceLROnPlateau("loss", patience=1, **arguments)


def _restoring(**arguments):
    return callbacks.EarlyStopping("val_loss", restore_best_weights=True, **arguments)


def test_ranks_with_the_same_callbacks_may_train():
    assert _check([_restoring(), _plateau()], [_restoring(), _plateau()]) == []
    # As usual: the chief logs.
    assert _check([_restoring(), callbacks.CSVLogger("log.csv")], [_restoring()]) == []
    assert _check([_restoring(verbose=1)], [_restoring(verbose=0)]) == []
    scheduler = [callbacks.LearningRateScheduler(lambda epoch: 0.1) for _ in range(2)]
    assert _check([scheduler[0]], [scheduler[1]]) == []


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            [_plateau()],
            [],
            "rank 0 has ReduceLROnPlateau(monitor='loss', factor=0.1, patience=1, cooldown=0, "
            "min_lr=0.0), rank 1 has no ReduceLROnPlateau",
        ),
        ([_plateau(factor=0.5)], [_plateau(factor=0.1)], "factor=0.1"),
        ([], [_restoring()], "rank 0 has no EarlyStopping, rank 1 has EarlyStopping(monitor='val_"),
        (
            [_restoring()],
            [callbacks.EarlyStopping("val_loss")],
            "restore_best_weights=True), rank 1 has EarlyStopping(monitor='val_loss', patience=0,",
        ),
        ([callbacks.LearningRateScheduler(float)], [], "rank 1 has no LearningRateScheduler"),
        ([callbacks.BackupAndRestore("a")], [], "rank 1 has no BackupAndRestore"),
    ],
)
def test_callbacks_that_decide_must_be_the_same_on_all_ranks(first, second, text):
    with pytest.raises(ValueError, match="The ranks differ in their callbacks: ") as error:
        _check(first, second)
    assert text in str(error.value)
    assert "Pass the same one on every rank" in str(error.value)


def test_an_early_stopping_on_one_rank_that_restores_nothing_is_a_warning():
    (text,) = _check([callbacks.EarlyStopping("loss")], [])
    assert "rank 1 has no EarlyStopping" in text
    assert "When this callback stops one rank, all ranks stop" in text


def test_callbacks_with_sync_points_must_be_on_all_ranks(tmp_path):
    report, timeline = pga.Report(tmp_path / "a"), pga.Timeline(tmp_path / "b", (1, 2))
    others = [pga.Report(tmp_path / "c"), pga.Timeline(tmp_path / "d", (1, 2))]
    assert _check([report, timeline], others) == []  # each rank may have its own files
    cases = {
        "rank 0 has Report(), rank 1 has no Report. On a rank": ([report], []),
        "rank 0 has no Timeline, rank 1 has Timeline(steps=(1, 2)).": ([], [timeline]),
        "rank 0 has Timeline(steps=(1, 2)), rank 1 has Timeline(steps=(1, 3))": (
            *([timeline], [pga.Timeline(tmp_path / "d", (1, 3))]),
        ),
    }
    for text, ranks in cases.items():
        with pytest.raises(ValueError, match="Pass it on every rank, with the same") as error:
            _check(*ranks)
        assert text in str(error.value)
    # A joining worker is compared too. TensorBoard has no sync points.
    assert callback_facts.strict(_facts(report)) != callback_facts.strict(_facts())
    assert _check([pga.TensorBoard(tmp_path / "logs")], []) == []


def test_callbacks_that_are_added_are_compared_too(tmp_path):
    listed = Siblings([GOSSIP], 0)
    (fact,) = callback_facts.facts(listed, [pga.Report(tmp_path / "a")])
    assert fact["decides"] == "Report()"


def test_subclasses_count_as_their_kind():
    class Custom(callbacks.ReduceLROnPlateau):
        pass

    with pytest.raises(ValueError, match=r"rank 0 has Custom\(monitor='loss'"):
        _check([Custom("loss")], [])


def test_a_joining_worker_must_have_what_decides_but_no_backup():
    def strict(*others):
        return callback_facts.strict(_facts(*others))

    assert strict(callbacks.CSVLogger("a"), callbacks.EarlyStopping("loss")) == strict() == []
    assert strict(callbacks.BackupAndRestore("a"), _restoring()) == strict(_restoring())
    assert strict(_restoring(), _plateau()) == strict(_plateau(), _restoring())
    different = [strict(), strict(_restoring()), strict(_restoring(patience=2)), strict(_plateau())]
    assert all(different.count(each) == 1 for each in different)
    assert callback_facts.strict(None) is None


@pytest.mark.parametrize(
    ("callback", "name", "monitor"),
    [
        (_restoring(), "EarlyStopping", "val_loss"),
        (_plateau(), "ReduceLROnPlateau", "loss"),
        (
            callbacks.ModelCheckpoint("best.keras", monitor="val_auc", save_best_only=True),
            "ModelCheckpoint",
            "val_auc",
        ),
    ],
)
def test_what_follows_logs_should_come_after_gossip(callback, name, monitor):
    (text,) = _check([callback, GOSSIP])
    assert f"{name} comes before GossipPGA" in text
    assert f"each rank's own '{monitor}' instead of the mean over ranks" in text
    assert _check([GOSSIP, callback]) == []


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda path: callbacks.CSVLogger(path / "log.csv"), "log.csv"),
        (lambda path: callbacks.TensorBoard(str(path / "logs")), "logs"),
        (lambda path: callbacks.ModelCheckpoint(path / "{epoch}.keras"), "{epoch}.keras"),
    ],
)
def test_a_path_of_several_ranks_is_a_warning(make, path, tmp_path):
    (text,) = _check([make(tmp_path)], [make(tmp_path)], [], [make(tmp_path)])
    name = type(make(tmp_path)).__name__
    assert f"{name} writes to the same path on ranks 0, 1, 3: {tmp_path / path}" in text
    assert f"if cluster.is_chief: callbacks.append({name}(…))" in text
    assert _check([make(tmp_path / "0")], [make(tmp_path / "1")]) == []
    assert _check([make(tmp_path)], []) == []


def test_backups_of_several_ranks_need_paths_of_their_own():
    (text,) = _check(*([callbacks.BackupAndRestore("backup")] for _ in range(2)))
    assert f"{pathlib.Path.cwd()}/backup" in text
    assert 'BackupAndRestore(f"backup/{cluster.rank}")' in text
    assert _check(*([callbacks.BackupAndRestore(f"backup/{rank}")] for rank in range(2))) == []


def test_the_path_of_a_callback_of_ones_own_counts_too(tmp_path):
    class Dumps(callbacks.Callback):
        def __init__(self, directory):
            super().__init__()
            self.directory = directory

    (text,) = _check([Dumps(tmp_path)], [Dumps(tmp_path)])
    assert f"Dumps writes to the same path on ranks 0, 1: {tmp_path}" in text
    assert "gs://bucket/x." in _check([Dumps("gs://bucket/x")], [Dumps("gs://bucket/x")])[0]


def test_swapping_weights_around_validation_is_refused():
    problem = callback_facts.problem_of_rank(_facts(callbacks.SwapEMAWeights()))
    assert "SwapEMAWeights replaces the weights during validation" in problem
    assert callback_facts.problem_of_rank(_facts(_restoring())) is None
    assert callback_facts.problem_of_rank(None) is None


def test_callbacks_that_cannot_be_seen_are_a_warning_and_no_difference():
    (text,) = callback_facts.check([None, _facts(_plateau())], (0, 1))
    assert "no keras.callbacks.CallbackList calls its hooks" in text


def test_learning_rates_that_callbacks_can_set_are_reported():
    rates = callback_facts.learning_rates
    assert rates(keras.optimizers.SGD(0.5)) == "0.5"
    assert rates(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25))) == "0.25"
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    assert rates(keras.optimizers.SGD(schedule)) == "a schedule"


def test_a_warning_comes_once_from_the_chief(capsys):
    for rank in (0, 1, 0):
        callback_facts.warn(Cluster(rank, 2), "Mind the step.")
    assert capsys.readouterr().err == "Mind the step.\n"
