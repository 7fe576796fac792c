"""The curves of a single worker, read back from the event file with TensorFlow alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_gossip_pga as pga
from tests.support.curves import curves


def _fit(callbacks, epochs=2, steps=5):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((2 * steps, 1))
    model.fit(x, x, batch_size=2, epochs=epochs, verbose=0, callbacks=callbacks)


def test_each_global_average_and_each_epochs_end_is_a_point(tmp_path):
    _fit([pga.GossipPGA(H=3), pga.TensorBoard(tmp_path)])
    found = curves(tmp_path)
    steps = [3, 5, 6, 9, 10]
    assert found.pop("H") == [(step, 3.0) for step in steps]
    assert found.pop("members") == [(step, 1.0) for step in steps]
    assert found.pop("bytes_sent") == [(step, 0.0) for step in steps]
    assert found.pop("communication_share") == [(step, 0.0) for step in steps]
    assert not found  # a single worker has no distance


def test_every_states_the_number_of_steps(tmp_path):
    _fit([pga.GossipPGA(H=None), pga.TensorBoard(str(tmp_path), every=4)])
    found = curves(tmp_path)
    assert [step for step, _ in found["members"]] == [4, 5, 8, 10]
    assert "H" not in found


def test_distances_and_shares_are_those_of_gossip(tmp_path, monkeypatch):
    gossip, board = pga.GossipPGA(H=3), pga.TensorBoard(tmp_path)
    gossip.run.distances.append((0, 9.0))  # of an earlier fit

    class Stands(keras.callbacks.Callback):
        """For other ranks."""

        def on_train_batch_end(self, batch, logs=None):
            gossip.run.communication_seconds += 1e9  # far more than has passed, to see it
            gossip.run.distances.append((gossip.step, gossip.step / 4))

        def on_train_end(self, logs=None):
            gossip.run.distances.append((10, 7.0))

    _fit([gossip, Stands(), board])
    found = curves(tmp_path)
    assert found["consensus_distance"] == [*((k, k / 4) for k in range(1, 11)), (10, 7.0)]
    assert all(share > 1 for _, share in found["communication_share"])


@pytest.mark.parametrize("operation", ["flush", "close", "as_default"])
def test_training_continues_if_writing_fails(tmp_path, monkeypatch, said, operation):
    class Full:
        """A writer to a disk that is full for one operation."""

        def __init__(self, writer):
            self._writer = writer

        def __getattr__(self, name):
            return self._fail if name == operation else getattr(self._writer, name)

        def _fail(self, *arguments):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    create = tf.summary.create_file_writer
    monkeypatch.setattr(tf.summary, "create_file_writer", lambda path: Full(create(path)))
    gossip = pga.GossipPGA(H=3)
    folder = tmp_path / operation  # a warning is logged only once
    _fit([gossip, pga.TensorBoard(folder)])
    assert gossip.step == 10
    assert f"TensorBoard cannot write to {str(folder)!r}. Training continues. No sp" in said.text


def test_the_file_is_closed_when_training_ends_and_the_next_fit_has_its_own(tmp_path):
    board, gossip = pga.TensorBoard(tmp_path), pga.GossipPGA(H=5)
    for files in (1, 2):
        _fit([gossip, board])
        assert board._writer is None
        assert len(list(tmp_path.iterdir())) == files
    assert [step for step, _ in curves(tmp_path)["members"]] == [5, 10, 15, 20]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="every must be a whole number >= 1, received 0"):
        pga.TensorBoard(tmp_path, every=0)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="log_dir must be a directory that this process can wr"):
        pga.TensorBoard(file)
    with pytest.raises(ValueError, match="TensorBoard must come after a GossipPGA in the callba"):
        _fit([pga.TensorBoard(tmp_path / "logs")])
