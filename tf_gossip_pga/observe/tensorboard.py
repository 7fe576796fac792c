"""Write what `GossipPGA` measures for TensorBoard: the `TensorBoard` callback."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from tf_gossip_pga import _validate
from tf_gossip_pga.exchange import process
from tf_gossip_pga.observe import adjacent
from tf_gossip_pga.training import callback_facts
from tf_gossip_pga.training.callback import GossipPGA

_PREFIX = "gossip_pga/"


class _Moment(NamedTuple):
    """What is compared between two points of the curves."""

    step: int
    time_s: float
    communication_s: float
    global_steps: int


class TensorBoard(adjacent.Adjacent):
    """Write curves of what `GossipPGA` measures, for TensorBoard.

    Pass this callback on every rank, after `GossipPGA`. Only the chief writes. If the chief is
    lost, the new chief continues the curves. Use Keras' `TensorBoard` for losses and metrics; both
    can write to the same directory. The x-axis is the number of completed steps. The curves are:

    - `gossip_pga/consensus_distance`: see **Logs** of `GossipPGA`. Each global average has a point,
      which is written at the end of the epoch, when the ranks have shared what they measured.
    - `gossip_pga/communication_share`: the share of the time since the previous point that the
      chief spent in exchanges, including the wait for other workers. From 0 to 1.
    - `gossip_pga/bytes_sent`: number of payload bytes that the chief has sent so far.
    - `gossip_pga/members`: number of workers.
    - `gossip_pga/H`: the current period; not for `H=None`.

    The files are written with `tf.summary` alone, so training does not need the package
    `tensorboard`, which TensorFlow does not install. To display them, run `pip install tensorboard`
    and `tensorboard --logdir=logs`.

    Args:
      log_dir: the directory to write to. It is created if it does not exist. Default `"logs"`.
      every: number of steps between points, at least 1. Default None: a point at each global
        average. In both cases, there is also a point at the end of each epoch.

    Raises:
      ValueError: at construction, if `every` is out of range or, on the chief, if the directory
        cannot be written. When training begins, if no `GossipPGA` comes before this callback.

    Example:
        >>> import os, tempfile
        >>> import keras
        >>> import numpy as np
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()  # before the first model, tensor or dataset
        >>> folder = tempfile.mkdtemp()
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((64, 4))
        >>> callbacks = [pga.GossipPGA(H=6), pga.TensorBoard(folder)]
        >>> history = model.fit(x, x[:, 0], batch_size=8, verbose=0, callbacks=callbacks)
        >>> len(os.listdir(folder))
        1
    """

    def __init__(self, log_dir: str | os.PathLike = "logs", every: int | None = None):
        """Check the arguments, and create the directory on the chief."""
        super().__init__()
        self._every = None if every is None else _validate.check_whole("every", every, 1)
        self._log_dir = os.fspath(log_dir)
        self._cluster = process.active().cluster
        self._writer: tf.summary.SummaryWriter | None = None  # only on the chief
        self._previous = _Moment(0, 0.0, 0.0, 0)  # the previous point
        self._distances = 0  # number of distances that have been written, or are not to be
        if self._cluster.is_chief:
            try:
                self._open_writer()
            except (OSError, tf.errors.OpError) as error:
                raise ValueError(
                    "log_dir must be a directory that this process can write to, received "
                    f"{self._log_dir!r}: {error}. Choose another one."
                ) from None

    def on_train_begin(self, logs=None):
        """Find the `GossipPGA` of this fit."""
        super().on_train_begin(logs)
        self._previous = self._now(self._driver)
        self._distances = len(self._driver.distances)

    def on_train_batch_end(self, batch, logs=None):
        """Write a point if one is due."""
        gossip = self._driver
        if self._every is None:
            is_due = gossip.global_steps > self._previous.global_steps
        else:
            is_due = gossip.step % self._every == 0
        if is_due:
            self._write_point(gossip)

    def on_epoch_end(self, epoch, logs=None):
        """Write a point, and the consensus distances of the epoch."""
        gossip = self._driver
        if gossip.step > self._previous.step:
            self._write_point(gossip)
        self._write_distances(gossip)

    def on_train_end(self, logs=None):
        """Write the consensus distance at the end of training, and close the file."""
        self._write_distances(self._driver)
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._surviving():
                writer.close()

    def _now(self, gossip: GossipPGA) -> _Moment:
        return _Moment(
            gossip.step, time.perf_counter(), gossip.communication_seconds, gossip.global_steps
        )

    def _write_point(self, gossip: GossipPGA):
        """Write the curves that have a value at every step."""
        previous, self._previous = self._previous, self._now(gossip)
        elapsed = self._previous.time_s - previous.time_s
        communicated = self._previous.communication_s - previous.communication_s
        values: dict[str, float] = {
            "communication_share": communicated / elapsed,
            "bytes_sent": gossip.bytes_sent,
            "members": len(self._cluster.members),
        }
        period = gossip.run.schedule.H
        if period is not None:
            values["H"] = period
        self._write(values, gossip.step)

    def _write_distances(self, gossip: GossipPGA):
        new = gossip.distances[self._distances :]
        self._distances += len(new)
        for step, distance in new:
            self._write({"consensus_distance": distance}, step)
        if self._writer is not None:
            with self._surviving():
                self._writer.flush()

    # ---- The file -------------------------------------------------------------------------------

    def _open_writer(self) -> tf.summary.SummaryWriter:
        if self._writer is None:
            tf.io.gfile.makedirs(self._log_dir)
            self._writer = tf.summary.create_file_writer(self._log_dir)
        return self._writer

    def _write(self, values: dict[str, float], step: int):
        """Write a number for each name on the chief."""
        if not self._cluster.is_chief:
            return
        # A new chief opens a file here, and so does every fit after the first one.
        with self._surviving(), self._open_writer().as_default(step):
            for name, value in values.items():
                tf.summary.write(_PREFIX + name, tf.constant(value, tf.float32), None, _SCALAR)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Let training continue if what happens inside fails, such as on a full disk."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            text = f"TensorBoard cannot write to {self._log_dir!r}. Training continues. {error}."
            callback_facts.warn(self._cluster, text)


# What tf.summary.scalar of the package tensorboard adds, so that TensorBoard draws a curve.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
)
