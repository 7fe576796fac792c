"""Save a run and resume it: the `Checkpoint` callback.

A checkpoint is taken where all replicas are equal, right after a global average. There is one set
of weights, which the chief writes in Keras' own format. Every rank writes what a global average
leaves alone: its optimizer's variables, its random generators, its integers.
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
    """Save the run of a `GossipPGA`, and continue where an earlier process stopped.

    At the end of every `every`-th epoch, of the last one, and where training stops early, all ranks
    average globally, whatever `H` says, continue from that average, and save it. (The saved model
    is the averaged one, and a resumed run must take the same path as an uninterrupted one, so the
    latter continues from the average too. Its weights therefore differ from those of a run that
    takes no checkpoints, or others.) The optimizer's slots are treated as at any global average.

    Call `restore` before `fit` to continue from the newest complete checkpoint, with the same
    weights, optimizer variables, step count, period and random generators on every rank. On CPUs
    with `tf.config.experimental.enable_op_determinism()` a resumed run equals an uninterrupted one
    bit for bit. What the callback cannot know is not saved: the position in the dataset (a shuffled
    one starts its orders again), and what other callbacks remember.

    On SIGTERM, which schedulers send before they take a machine away, all ranks stop together: at
    the next global average of training, or at the end of the epoch (`H=None`). They save, `fit`
    returns as if it had ended, and the script continues. An epoch that stopped early starts again
    in the resumed run, which sees its first batches once more. A second SIGTERM has its usual
    effect.

    Files: the chief (rank 0 or, once that is lost, the lowest surviving rank) writes
    `checkpoint-…/model.weights.h5`, which `model.load_weights` reads too. Every rank writes
    `rank-….npz` next to it, and the chief at last `manifest.json`
    (`tf_gossip_pga.checkpoint.files`). The directory may be shared by all ranks, or lie on a disk
    of each. A rank without its file (because it is new, or its disk is) takes rank 0's optimizer
    state and reports it; the number of workers may change. Nothing is unpickled.

    A model with weights that are not finite is not saved: it would push out the last good
    checkpoints. If the directory cannot be listed, read or written, or vanishes, training continues
    and the chief reports it.

    The directory belongs to one job while `fit` runs (`tf_gossip_pga.checkpoint.ownership`): a
    second one is refused before its first step. One that is started again takes over where the
    first one has ended, in whatever way. A worker that the others train without writes and removes
    nothing there any more.

    Args:
      gossip: the `GossipPGA` of the same `fit`, which comes before this in `callbacks`.
      directory: where the checkpoints lie; made if it does not exist.
      every: epochs from one checkpoint to the next, >= 1. Default 1.
      keep: how many complete checkpoints to keep, the newest, >= 1. Default 3.

    Attributes:
      preempted: whether the last `fit` stopped because a rank had received SIGTERM; the same on all
        ranks.

    Raises:
      ValueError: at construction for a bad argument; when training starts, if `gossip` does not
        come before this in `callbacks`, or if another job writes to the directory.

    Example:

        gossip = pga.GossipPGA(H=6)
        checkpoint = pga.Checkpoint(gossip, "checkpoints")
        model.fit(
            dataset,
            epochs=5,
            initial_epoch=checkpoint.restore(model),  # on every rank; 0 without a checkpoint
            callbacks=[gossip, checkpoint],
        )
    """

    def __init__(
        self, gossip: GossipPGA, directory: str | os.PathLike, every: int = 1, keep: int = 3
    ):
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
                f"directory must be one that this process may write to, received {directory!r}: "
                f"{error}."
            ) from None
        self._session = process.active()
        rank = self._session.cluster.rank
        self.preempted = False
        self._reader = Reader(self._files, self._session, gossip)
        self._writer: Writer | None = None  # of the present fit
        self._fit: dict[str, Any] = {}  # what Keras tells of it: "epochs", "steps"
        self._kept: list[tuple[Held, np.ndarray]] = []  # while rank 0's are broadcast
        self._epoch = self._batches = 0  # of this fit; those of this epoch
        self._sigterm = preemption.Sigterm(
            gossip.request_stop,
            f"Rank {rank} has received SIGTERM: all ranks are asked to stop and save.",
        )

    def restore(self, model: keras.Model) -> int:
        """Load the newest complete checkpoint that fits; call it on every rank, before `fit`.

        The chief looks for it. If a file is damaged, on any rank, all ranks take the checkpoint
        before, and the chief reports why. Until `fit` begins only the chief's model has the
        weights.

        A joining worker waits here for an epoch of the others to begin. It reads no file, since
        `fit` gives it what they have.

        Args:
          model: built and compiled, as when the checkpoint was taken.

        Returns:
          The epoch to begin with, for `initial_epoch`; 0 without a checkpoint.

        Raises:
          ValueError: on every rank, if there are checkpoints but none can be used; the message
            names each with the reason. Also if a rank begins to train instead.

        Example:

            epoch = checkpoint.restore(model)
        """
        session = self._session
        if isinstance(session, ElasticSession) and session.is_joining:  # its state is the others'
            invitation = session.admission.await_invitation()
            self._gossip.state = invitation.state
            return invitation.epoch
        return self._reader.restore(model)

    # ---- Keras calls these ----------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        # When fit begins, rank 0's optimizer goes to all; this rank's own is put back afterwards.
        several = self._session.cluster.size > 1
        self._kept = rank_file.copies(self._reader.restored) if several else []

    def on_train_begin(self, logs=None):
        if not self._gossip.in_fit or self._gossip.model is not self.model:
            raise ValueError(
                "The GossipPGA of a Checkpoint must come before it: callbacks=[gossip, checkpoint]."
            )
        model = cast(keras.Model, self.model)  # Keras has set it, and params
        self._fit = cast("dict[str, Any]", self.params)
        self._writer = Writer(
            self._files,
            self._ownership,
            self._session,
            self._gossip,
            self._sync,
            model,
            preflight.described(model),  # an optimizer built elsewhere has other variables
        )
        self.preempted = False
        code = preemption.code_of_caller("on_train_begin")
        self._writer.begin(code)
        self._sigterm.begin(code)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batches = epoch, 0
        for variable, value in self._kept:  # GossipPGA has just broadcast for the last time
            variable.assign(value)
        self._kept, self._reader.restored = [], []

    def on_train_batch_end(self, batch, logs=None):
        self._batches = batch + 1
        if self._gossip.stopped and self._is_early():
            self._save(self._epoch, due=False)

    def on_epoch_end(self, epoch, logs=None):
        if self._is_early():
            return
        model = cast(keras.Model, self.model)
        last = epoch + 1 == self._fit["epochs"] or model.stop_training
        if last or (epoch + 1) % self._every == 0:
            self._save(epoch + 1, due=True)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.end()
        self._sigterm.end(heeded=self.preempted)

    def _save(self, epoch: int, due: bool):
        """Save, on all ranks; `due`: also where no rank has received SIGTERM."""
        if self._writer is not None:
            self._writer.save(epoch, lambda: due or self.preempted)

    def _sync(self, where: str, value) -> list:
        """Return what all ranks passed; note whether one of them is to end."""
        everyone = self._gossip.sync(where, [self._sigterm.received, value])
        self.preempted = self.preempted or any(signaled for signaled, _ in everyone)
        return [each for _, each in everyone]

    def _is_early(self) -> bool:
        """Return whether the epoch has batches that were not trained on."""
        steps = self._fit["steps"]
        return self._gossip.stopped if steps is None else self._batches < steps
