"""Save a run and resume it: the `Checkpoint` callback.

A checkpoint is taken when all replicas are equal, right after a global average. The chief writes
one set of weights in Keras' own format. Every rank writes the variables that a global average does
not change: those of its optimizers, its random generators, its integers.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any, cast

import keras
import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.checkpoint import rank_file
from tf_gossip_pga.checkpoint.files import CheckpointFiles
from tf_gossip_pga.checkpoint.ownership import Ownership
from tf_gossip_pga.checkpoint.reader import Reader
from tf_gossip_pga.checkpoint.writer import Writer
from tf_gossip_pga.exchange import process
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import preemption, preflight
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.variables import Held


class Checkpoint(keras.callbacks.Callback):
    """Save the run of a `GossipPGA`, and resume it in new processes.

    All ranks save together at the end of every `every`-th epoch, at the end of the last epoch, and
    when training stops early. They first average globally, whatever `H` is, and training continues
    from that average. The weights of a run therefore depend on its checkpoints: it continues from
    the saved model, so that a resumed run takes the same path as an uninterrupted one. The
    optimizer's slots are treated as at every global average.

    **Resume.** Call `restore` before `fit`. On every rank it restores weights, optimizer variables,
    step count, period and random generators. On CPUs with
    `tf.config.experimental.enable_op_determinism()` a resumed run equals an uninterrupted one bit
    for bit. Not saved are the position in the dataset (a shuffled dataset starts its first order
    again) and the state of other callbacks.

    **Preemption.** When a rank receives SIGTERM, which schedulers send before they take a machine
    away, all ranks stop together: at the next global average of training, or at the end of the
    epoch (`H=None`). They save, `fit` returns, and the script continues. A resumed run starts an
    interrupted epoch from its beginning and so sees its first batches again. A second SIGTERM has
    its usual effect.

    **Files.** `directory` may be shared by all ranks or be on a separate disk of each. The chief is
    rank 0 or, once that is lost, the lowest surviving rank.

    =================================  ===========  =======================================
    in `directory/checkpoint-…/`       written by   content
    =================================  ===========  =======================================
    `model.weights.h5`                 the chief    weights; `model.load_weights` reads it
    `rank-….npz`                       every rank   what global averages do not make equal
    `manifest.json`, last              the chief    sizes and SHA-256 of all files
    =================================  ===========  =======================================

    Loading unpickles nothing. The number of workers may change from run to run. A rank without a
    file, because the rank or its disk is new, reports it and uses rank 0's optimizer variables.

    **Failures.** Training continues, and the chief reports the reason, if a model has weights that
    are not finite (it would displace the last good checkpoints), or if the directory cannot be
    listed, read or written.

    **Ownership.** While `fit` runs, the directory belongs to one job; a second job fails before its
    first step. A restarted job takes the directory over once the earlier one has ended; if that ran
    on other machines, once it has shown no sign of life for a minute. A worker that the others
    excluded can no longer write or remove files there (`tf_gossip_pga.checkpoint.ownership`).

    Args:
      gossip: the `GossipPGA` of the same `fit`. It must come before this callback in `callbacks`.
      directory: path of the directory for checkpoints; created if it does not exist.
      every: number of epochs from one checkpoint to the next, at least 1. Default 1.
      keep: number of complete checkpoints to keep, at least 1. Older ones are removed. Default 3.

    Attributes:
      preempted: whether the last `fit` stopped because a rank received SIGTERM; the same on all
        ranks.

    Raises:
      ValueError: an argument is out of its range, or the directory cannot be written; at
        construction. When training starts: `gossip` does not come before this callback.
      CheckpointError: when training starts, on every rank: another job writes to the directory. It
        is a `ValueError`.

    Example:
        >>> import tempfile
        >>> import keras
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()  # before the first model, tensor or dataset
        >>> x = np.random.rand(64, 4).astype("float32")
        >>> dataset = cluster.shard(tf.data.Dataset.from_tensor_slices((x, x.sum(1))))
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> gossip = pga.GossipPGA(H=6)
        >>> checkpoint = pga.Checkpoint(gossip, tempfile.mkdtemp())
        >>> history = model.fit(
        ...     dataset.batch(16 // cluster.size),
        ...     epochs=2,
        ...     initial_epoch=checkpoint.restore(model),  # on every rank; 0 without a checkpoint
        ...     shuffle=False,
        ...     verbose=0,
        ...     callbacks=[gossip, checkpoint],
        ... )
        >>> checkpoint.restore(model)
        2
    """

    def __init__(
        self, gossip: GossipPGA, directory: str | os.PathLike, every: int = 1, keep: int = 3
    ):
        """Check the arguments and create the directory; nothing is read or written yet."""
        super().__init__()
        if not isinstance(gossip, GossipPGA):
            raise ValueError(f"gossip must be a GossipPGA, received {gossip!r}.")
        self._gossip = gossip
        self._every = _validate.check_whole("every", every, 1, unit="epochs")
        keep = _validate.check_whole("keep", keep, 1, unit="checkpoints")
        try:
            self._ownership = Ownership(pathlib.Path(directory))
            self._files = CheckpointFiles(directory, keep, self._ownership.check)
        except (OSError, TypeError) as error:
            raise ValueError(
                f"directory must be writable for this process, received {directory!r}: {error}."
            ) from None
        self._session = process.active()
        rank = self._session.cluster.rank
        self.preempted = False
        self._reader = Reader(self._files, self._session, gossip)
        self._writer: Writer | None = None  # of the present fit
        self._fit: dict[str, Any] = {}  # Keras' params of it: "epochs", "steps"
        self._kept: list[tuple[Held, np.ndarray]] = []  # this rank's own, during the broadcast
        self._epoch = self._batches = 0  # the present epoch, and its completed batches
        self._sigterm = preemption.Sigterm(
            gossip.request_stop,
            f"Rank {rank} received SIGTERM. All ranks will stop and save a checkpoint.",
        )

    def restore(self, model: keras.Model) -> int:
        """Load the newest complete checkpoint; call it on every rank, before `fit`.

        The chief chooses the checkpoint. If a file of it is damaged on any rank, all ranks use the
        next older one, and the chief reports the reason. Only the chief's model has the weights
        until `fit` broadcasts them.

        A joining worker waits here until the others begin an epoch. It reads no file: `fit`
        transfers their state to it.

        Args:
          model: a built and compiled model, with the variables and optimizers that it had when the
            checkpoint was taken.

        Returns:
          The epoch to begin with, counted from 0, for `initial_epoch`; 0 if there is no checkpoint.

        Raises:
          ValueError: on every rank: there are checkpoints, but none can be used (the message gives
            the reason for each); or a rank called `fit` instead of `restore`.
          WorkerLost: another worker was lost; or this joining worker found no job to join.

        Example:
            See `Checkpoint`.
        """
        session = self._session
        if isinstance(session, ElasticSession) and session.is_joining:
            invitation = session.admission.await_invitation()
            self._gossip.state = invitation.state
            return invitation.epoch
        return self._reader.restore(model)

    # ---- Called by Keras ------------------------------------------------------------------------

    def set_model(self, model):
        """Copy the variables that `restore` read for this rank."""
        super().set_model(model)
        # fit broadcasts rank 0's optimizer variables; on_epoch_begin puts this rank's own back.
        several = self._session.cluster.size > 1
        self._kept = rank_file.copies(self._reader.restored) if several else []

    def on_train_begin(self, logs=None):
        """Take the directory, and handle SIGTERM until training ends."""
        if not self._gossip.in_fit or self._gossip.model is not self.model:
            raise ValueError(
                "The GossipPGA of a Checkpoint must come before it in the callbacks of the same "
                "fit: callbacks=[gossip, checkpoint]."
            )
        model = cast(keras.Model, self.model)  # Keras has set model and params
        self._fit = cast("dict[str, Any]", self.params)
        self._writer = Writer(
            self._files,
            self._ownership,
            self._session,
            self._gossip,
            self._sync,
            model,
            preflight.described(model),  # now: an optimizer built later may have other variables
        )
        self.preempted = False
        code = preemption.code_of_caller("on_train_begin")
        self._writer.begin(code)
        self._sigterm.begin(code)

    def on_epoch_begin(self, epoch, logs=None):
        """Put back the variables that `restore` read for this rank."""
        self._epoch, self._batches = epoch, 0
        for variable, value in self._kept:  # GossipPGA has finished its broadcasts
            variable.assign(value)
        self._kept, self._reader.restored = [], []

    def on_train_batch_end(self, batch, logs=None):
        """Save if all ranks stop before the end of the epoch."""
        self._batches = batch + 1
        if self._gossip.stopped and self._is_early():
            self._save(self._epoch, due=False)

    def on_epoch_end(self, epoch, logs=None):
        """Save if a checkpoint is due."""
        if self._is_early():
            return
        model = cast(keras.Model, self.model)
        last = epoch + 1 == self._fit["epochs"] or model.stop_training
        if last or (epoch + 1) % self._every == 0:
            self._save(epoch + 1, due=True)

    def on_train_end(self, logs=None):
        """Release the directory, and restore the previous handler of SIGTERM."""
        if self._writer is not None:
            self._writer.end()
        self._sigterm.end(heeded=self.preempted)

    def _save(self, epoch: int, due: bool):
        """Save on all ranks; if not `due`, only if a rank received SIGTERM."""
        if self._writer is not None:
            self._writer.save(epoch, lambda: due or self.preempted)

    def _sync(self, where: str, value) -> list:
        """Share a value with all ranks; also learn whether any rank received SIGTERM."""
        everyone = self._gossip.sync(where, [self._sigterm.received, value])
        self.preempted = self.preempted or any(signaled for signaled, _ in everyone)
        return [each for _, each in everyone]

    def _is_early(self) -> bool:
        """Return whether the epoch has batches that have not been trained on."""
        steps = self._fit["steps"]
        return self._gossip.stopped if steps is None else self._batches < steps
