"""The paper's two workloads at full size, on generated data of the real sets' shapes."""

import pytest
import tensorflow_datasets as tfds

import train
from job import results
from job.flags import FLAGS
from job.spec import find_job
from tests.support import prepared, workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


# Graphs of some hundred variables take minutes to build where other work shares the cores.
DEADLINE_S = 900


def _three_steps(cluster, model, folder, examples, flags):
    FLAGS(["train.py", f"--model={model}", f"--data_dir={folder}", *flags])
    FLAGS(["train.py", "--epochs=1", "--steps_per_epoch=3", "--H=2"])
    with tfds.testing.mock_data(num_examples=examples, data_dir=folder):
        job = find_job(cluster.size)
        train.check_vocabularies(cluster, job.data)
        gossip = train.gossip_callback(job)
        run = train.train(cluster, job, [gossip])
        written = results.collect(cluster, job, run, gossip, DEADLINE_S)  # on rank 0
        measured = results.evaluate(job, run.model)
    inputs = [list(each.shape[1:]) for each in run.model.inputs]
    return {**written, "measured": measured, "history": run.history, "input": inputs}


def test_resnet50_takes_three_steps_on_images_like_imagenets(tmp_path):
    prepared.as_if_prepared("imagenet2012", tmp_path, train=32, validation=8)
    run = {"model": "resnet50", "folder": str(tmp_path), "examples": 16}
    first, second = workers.run(_three_steps, 2, DEADLINE_S, **run, flags=["--batch_size=4"])
    assert first["parameters"] == 25_557_032
    assert first["input"] == [[224, 224, 3]]
    _check(first, second)


def test_bert_base_takes_three_steps_on_text_like_wikipedias(tmp_path):
    prepared.as_if_prepared("wikipedia", tmp_path, train=200)
    run = {"model": "bert_base", "folder": str(tmp_path), "examples": 100}  # a few words each
    flags = ["--batch_size=2", "--sequence_length=128"]
    first, second = workers.run(_three_steps, 2, DEADLINE_S, **run, flags=flags)
    assert first["parameters"] > 80_000_000  # a vocabulary of noise is smaller than the real one
    assert first["unigram_cross_entropy"] > 0
    _check(first, second)


def _check(first: dict, second: dict):
    assert first["measured"] == second["measured"]  # one model on both
    assert first["measured"]["loss"] == first["val_loss"]
    assert (first["steps"], first["gossip_steps"], first["global_steps"]) == (3, 2, 1)
    assert first["history"]["loss"] == second["history"]["loss"]
    assert 0 < first["train_loss"] < 20
    # Three exchanges and the one at the end, each of at least all parameters in float32.
    assert first["bytes_sent_per_worker"] >= 4 * 4 * first["parameters"]
