"""Save a run and resume it: the `Checkpoint` callback.

A checkpoint is taken right after a global average, when all replicas are equal. The chief writes
one set of weights in Keras' own format. Every rank writes the variables that a global average does
not make equal: optimizer variables, random generator states, and integers.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any, cast

import keras
import numpy as np

from tf_gossip_pga import _validate
from tf_gossip_pga.checkpoint import rank_file
from tf_gossip_pga.checkpoint.files import CheckpointFiles
from tf_gossip_pga.checkpoint.ownership import Ownership
from tf_gossip_pga.checkpoint.reader import Reader
from tf_gossip_pga.checkpoint.writer import Writer
from tf_gossip_pga.errors import PREEMPTED
from tf_gossip_pga.exchange import process
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import preemption, preflight, recorder
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.variables import Held


class Checkpoint(keras.callbacks.Callback):
    """Save a `GossipPGA` run, and resume it in new processes.

    All ranks save together every `every` epochs and at the end of the last epoch. An epoch counts
    as the last if a callback stops training at its end. If training stops within an epoch, the
    ranks save only if a SIGTERM has stopped it (see **Preemption**). Before saving, they average
    globally, regardless of `H`, and training continues from that average. Checkpoints therefore
    affect the weights of a run, but a resumed run follows the same path as an uninterrupted run
    with the same checkpoints. Optimizer slots are handled as in any global average.

    **Resume.** Call `restore` on every rank before `fit`. It restores weights, optimizer variables,
    step count, period and random generators. On CPUs with
    `tf.config.experimental.enable_op_determinism()`, a resumed run matches an uninterrupted one bit
    for bit. The state of other callbacks and the position in the dataset are not saved. A shuffled
    dataset therefore starts over with its first order.

    **Preemption.** Schedulers send SIGTERM before they reclaim a machine. When any rank receives
    SIGTERM, all ranks stop together at the next global average, or at the end of the epoch if
    `H=None`. They save a checkpoint, `fit` returns, and the script continues. Call
    `exit_if_preempted` after `fit`, so that the scheduler learns from the exit code that the job is
    not finished. A resumed run restarts an interrupted epoch from the beginning, so it sees that
    epoch's first batches again. A second SIGTERM has its usual effect.

    **Files.** `directory` may be shared by all ranks or be on a separate disk for each. The chief
    is rank 0 or, if rank 0 is lost, the lowest surviving rank.

    =================================  ===========  =======================================
    in `directory/checkpoint-…/`       written by   content
    =================================  ===========  =======================================
    `model.weights.h5`                 the chief    weights; `model.load_weights` reads it
    `rank-….npz`                       every rank   variables that differ between ranks
    `outer.npz`                        the chief    state of an outer optimizer, if there is one
    `manifest.json`, written last      the chief    sizes and SHA-256 of all files
    =================================  ===========  =======================================

    With several workers, rank 0 also writes `directory/cluster.json` when training begins: the
    addresses of all workers, with which a lost worker can join again (`TF_GOSSIP_PGA_CLUSTER`).

    Loading never unpickles data. The number of workers may change between runs. A rank that has no
    `rank-….npz`, because the rank or its disk is new, reports this and uses the chief's optimizer
    variables.

    **Failures.** A model with non-finite weights is not saved, because it would displace the last
    good checkpoints. In that case, or if the directory cannot be listed, read or written, the chief
    reports the reason and training continues.

    **Ownership.** While `fit` runs, the directory belongs to one job. A second job fails before its
    first step. A restarted job takes over the directory once the earlier job has ended or, if that
    job ran on other machines, has shown no sign of life for a minute. A worker that the others have
    excluded can no longer write or remove files there; see `tf_gossip_pga.checkpoint.ownership`.

    Args:
      gossip: the `GossipPGA` of the same `fit`. It must come before this callback in `callbacks`.
      directory: path of the checkpoint directory. It is created if it does not exist.
      every: number of epochs between checkpoints, at least 1. Default 1.
      keep: number of complete checkpoints to keep, at least 1. Older ones are removed. Default 3.

    Attributes:
      preempted: whether the last `fit` stopped because a rank received SIGTERM. The value is the
        same on all ranks.

    Raises:
      ValueError: at construction, an argument is out of range or the directory is not writable.
        When training starts, `gossip` does not come before this callback.
      CheckpointError: when training starts, on every rank, if another job owns the directory. This
        is a subclass of `ValueError`.

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
        """Check the arguments and create the directory. Does not read or write any file yet."""
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
        self._writer: Writer | None = None  # of the current fit
        self._fit: dict[str, Any] = {}  # the current fit's params from Keras: "epochs", "steps"
        self._kept: list[tuple[Held, np.ndarray]] = []  # own values, which fit overwrites
        self._epoch = self._batches = 0  # the current epoch, and its completed batches
        self._sigterm = preemption.Sigterm(
            gossip.request_stop,
            f"Rank {rank} received SIGTERM. All ranks will stop and save a checkpoint.",
        )

    def restore(self, model: keras.Model) -> int:
        """Load the newest complete checkpoint. Call this on every rank, before `fit`.

        The chief chooses the checkpoint. If one of its files is damaged on any rank, all ranks fall
        back to the next older checkpoint, and the chief reports the reason. Until `fit` broadcasts
        the weights, only the chief's model has them.

        A joining worker waits here until the others begin an epoch. It does not read any file,
        because `fit` transfers their state to it.

        Args:
          model: a built and compiled model, with the same variables and optimizers as when the
            checkpoint was taken.

        Returns:
          The value for `initial_epoch`: the epoch to start from, counted from 0, or 0 if there is
          no checkpoint.

        Raises:
          ValueError: on every rank, if there are checkpoints but none can be used (the message
            gives the reason for each), or if a rank called `fit` instead of `restore`. Also if
            this worker is joining, but cannot use the transport of the others.
          WorkerLost: another worker was lost, or this joining worker found no job to join.

        Example:
            See `Checkpoint`.
        """
        session = self._session
        if isinstance(session, ElasticSession) and session.is_joining:
            invitation = session.admission.await_invitation()
            session.use_transport(invitation.transport)
            self._gossip.state = invitation.state
            return invitation.epoch
        return self._reader.restore(model)

    def exit_if_preempted(self) -> None:
        """End this process with the exit code `pga.PREEMPTED` (75) if `preempted` is true.

        Call this on every rank, right after `fit`. Slurm, Kubernetes and other schedulers can then
        start the job again, and the launcher exits with the same code.

        Raises:
          SystemExit: `preempted` is true.

        Example:
            >>> import tempfile
            >>> import tf_gossip_pga as pga
            >>> checkpoint = pga.Checkpoint(pga.GossipPGA(H=6), tempfile.mkdtemp())
            >>> checkpoint.exit_if_preempted()  # after fit; no rank has received SIGTERM
        """
        if self.preempted:
            sys.exit(PREEMPTED)

    # ---- Called by Keras ------------------------------------------------------------------------

    def set_model(self, model):
        """Copy the variables that `restore` read for this rank. `on_epoch_begin` puts them back."""
        super().set_model(model)
        # fit broadcasts rank 0's optimizer variables; on_epoch_begin restores this rank's own.
        several = self._session.cluster.size > 1
        self._kept = rank_file.copies(self._reader.restored) if several else []

    def on_train_begin(self, logs=None):
        """Claim the directory, and handle SIGTERM until training ends."""
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
            preflight.described(model),  # now, because an optimizer built later may differ
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
        """Save if a SIGTERM makes all ranks stop before the end of the epoch."""
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
        """Release the directory, and restore the previous SIGTERM handler."""
        if self._writer is not None:
            self._writer.end()
        self._sigterm.end(heeded=self.preempted)

    def _save(self, epoch: int, due: bool):
        """Save on all ranks. If not `due`, save only if a rank received SIGTERM."""
        if self._writer is not None:
            with self._gossip.run.recorder.span(recorder.CHECKPOINT):
                self._writer.save(epoch, lambda: due or self.preempted)

    def _sync(self, where: str, value) -> list:
        """Share a value with all ranks. Also learn whether any rank received SIGTERM."""
        everyone = self._gossip.sync(where, [self._sigterm.received, value])
        self.preempted = self.preempted or any(signaled for signaled, _ in everyone)
        return [each for _, each in everyone]

    def _is_early(self) -> bool:
        """Return whether the epoch still has batches left to train on."""
        steps = self._fit["steps"]
        return self._gossip.stopped if steps is None else self._batches < steps
