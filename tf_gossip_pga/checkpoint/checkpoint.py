"""WHAT a run needs to go on where it was, after a crash or a preemption.

A checkpoint is taken where all replicas are equal, right after a global average. So there is one
set of weights, which rank 0 writes in Keras' own format, and every rank writes what a global
average leaves alone: its optimizer's variables, its random generators, its integers. The store
knows how files become a checkpoint; `GossipPGA` brings the ranks together.
"""

import contextlib
import functools
import operator

import keras
import numpy as np

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import own, store
from tf_gossip_pga.exchange import collectives
from tf_gossip_pga.training import agreement, callback, preemption

_WEIGHTS = "model.weights.h5"

# How long ranks wait for one another while checkpoints are read.
_PATIENCE_S = 3000.0


class Checkpoint(keras.callbacks.Callback):
    """Saves the run of a `GossipPGA`, and goes on where an earlier process left it.

    At the end of every `every`-th epoch, of the last one, and where training stops early, all ranks
    average globally, whatever `H` says, go on from that average, and write it down. (What is saved
    is the averaged model, and a resumed run must take the same way as one without interruption;
    so the latter goes on from the average too. Its weights differ from those of a run that takes no
    checkpoints, or other ones.) The optimizer's slots fare there as at any global average.

    Whoever calls `restore` before `fit` goes on from the newest complete checkpoint: with the same
    weights, optimizer variables, step count, period and random generators on every rank, so that
    on CPUs, with `tf.config.experimental.enable_op_determinism()`, a resumed run equals one without
    interruption bit for bit. What the callback cannot know is not saved: where the dataset stands
    (one that is shuffled begins its orders anew), and what other callbacks remember.

    On SIGTERM, which a machine gets that is about to be taken away, all ranks stop together: at the
    next global average of training, or at the end of the epoch (`H=None`). They save, `fit` returns
    as if it had ended, and the script goes on. An epoch that was left early begins anew in the
    resumed run, which sees its first batches once more. A second SIGTERM has its usual effect.

    Files: the chief, which is rank 0 or, once that is lost, the lowest rank that is left, writes
    `checkpoint-…/model.weights.h5`, which `model.load_weights` reads too, every rank `rank-….npz`
    beside it, and the chief at last `manifest.json` (`tf_gossip_pga.checkpoint.store`).
    The directory may be one that all ranks share, or one on a disk of each. A rank without its file
    (it is new, or its disk is) takes rank 0's optimizer state and says so; the number of workers
    may change. Nothing is unpickled.

    A model with weights that are no finite numbers is not saved: it would push out the last good
    ones. Where a file cannot be written training goes on, and rank 0 says so.

    Args:
      gossip: the `GossipPGA` of the same `fit`, which comes before this in `callbacks`.
      directory: where the checkpoints lie; made if it is not there.
      every: epochs from one checkpoint to the next, >= 1. Default 1.
      keep: how many complete checkpoints stay, the newest, >= 1. Default 3.

    Attributes:
      preempted: whether the last `fit` stopped because a rank had received SIGTERM; the same on all
        ranks.

    Raises:
      ValueError: at construction for a bad argument; when training starts, if `gossip` does not
        come before this in `callbacks`.

    Example:

        gossip = pga.GossipPGA(H=6)
        checkpoint = pga.Checkpoint(gossip, "checkpoints")
        model.fit(
            dataset,
            epochs=5,
            initial_epoch=checkpoint.restore(model),  # on every rank; 0 where there is none
            callbacks=[gossip, checkpoint],
        )
    """

    def __init__(self, gossip: callback.GossipPGA, directory, every: int = 1, keep: int = 3):
        super().__init__()
        if not isinstance(gossip, callback.GossipPGA):
            raise ValueError(f"gossip must be a GossipPGA, received {gossip!r}.")
        self._gossip = gossip
        self._every = _at_least_1("every", every, "epochs")
        try:
            self._store = store.Store(directory, _at_least_1("keep", keep, "checkpoints"))
        except (OSError, TypeError) as error:
            raise ValueError(
                f"directory must be one that this process may write to, received {directory!r}: "
                f"{error}."
            ) from None
        self._collectives = collectives.active()
        self._rank = self._collectives.cluster.rank
        self._own_name = f"rank-{self._rank}.npz"
        self.preempted = False
        self._variables: list[str] = []  # names and shapes, for the manifest
        self._restored: list[keras.Variable] = []  # those that this rank has read for itself
        self._kept: list[tuple[keras.Variable, np.ndarray]] = []  # while rank 0's are broadcast
        self._epoch = self._batches = 0  # of this fit; those of this epoch
        self._sigterm = preemption.Sigterm(
            gossip.request_stop,
            f"Rank {self._rank} has received SIGTERM: all ranks are asked to stop and save.",
        )

    @property
    def _is_chief(self) -> bool:
        """Whether this rank writes what is common, and is heard where one must decide."""
        return self._collectives.cluster.is_chief

    # ---- Reading --------------------------------------------------------------------------------

    def restore(self, model) -> int:
        """Loads the newest complete checkpoint that fits; to be called on every rank, before `fit`.

        Rank 0 looks for it. A file that is damaged, on any rank, makes all take the one before, and
        rank 0 says why. Until `fit` begins the weights are rank 0's alone.

        A worker that joins the others again waits here for an epoch of theirs to begin; it reads no
        file, since `fit` gives it what they have.

        Args:
          model: built and compiled, as when the checkpoint was taken.

        Returns:
          The epoch to begin with, for `initial_epoch`; 0 where there is no checkpoint.

        Raises:
          ValueError: on every rank, where there are checkpoints but none can be used; the message
            names each with the reason. Also where a rank begins to train instead.

        Example:

            epoch = checkpoint.restore(model)
        """
        if self._collectives.is_guest:  # all come from the others
            invitation = self._collectives.await_invitation()
            self._gossip.state = invitation.state
            return invitation.epoch
        unfit = agreement.problem_of_model(model)
        everyone = self._share([self._store.complete(), self._store.numbers()], unfit)
        self._say_if_lost(everyone)
        reasons = []
        for number in everyone[0][0]:
            # Rank 0's manifest counts: others may have a disk of their own.
            manifest, problem = self._load(number, model) if self._is_chief else (None, None)
            manifest, problem = self._share([manifest, problem])[0]
            if not problem and not self._is_chief:
                problem = self._problem_of_own(number, manifest, model)
            problems = self._share(problem)
            if not any(problems):
                self._report(number, manifest, reasons)
                return manifest["epoch"]
            found = zip(self._collectives.members, problems, strict=True)
            reasons.append(next(f"Rank {rank}: {each}" for rank, each in found if each))
        if reasons:
            raise ValueError(
                f"None of the checkpoints in {self._store.directory} can be used:\n  "
                + "\n  ".join(reasons)
                + "\nRemove them to begin anew, or restore them from a copy."
            )
        return 0

    def _load(self, number: int, model) -> tuple[dict | None, str | None]:
        """On rank 0, sets the model to a checkpoint: its manifest, or why it cannot be used."""
        try:
            manifest = self._store.read(number)
            path = self._store.checked(number, _WEIGHTS, manifest.get("files"))
            self._take(number, manifest, model, lambda: model.load_weights(path))
        except store.CheckpointError as error:
            return None, str(error)
        return manifest, None

    def _problem_of_own(self, number: int, manifest: dict, model) -> str | None:
        """On the others, sets what is their own: None, or why that cannot be used."""
        try:
            self._take(number, manifest, model)
        except store.CheckpointError as error:
            return str(error)
        return None

    def _take(self, number: int, manifest: dict, model, load_weights=lambda: None):
        """Sets weights, the schedule and what this rank has of its own.

        Raises:
          CheckpointError: a file is damaged, or the run was another.
        """
        folder = self._store.folder(number)
        self._check_run(folder, manifest, model)
        with own.explained(folder / _WEIGHTS):
            load_weights()
        self._restored = []
        listed, name = manifest["files"], self._own_name
        if self._is_chief and name not in listed:  # it was lost before; another was the chief
            name = next((each for each in sorted(listed) if each.startswith("rank-")), name)
        if self._is_chief or (name in listed and (folder / name).exists()):
            path = self._store.checked(number, name, listed)
            loaded = own.load(path, model)
            for variable, value in loaded:
                variable.assign(value)
            self._restored = [variable for variable, _ in loaded]

    def _check_run(self, folder, manifest: dict, model):
        """Raises where the checkpoint is not one of this model, optimizer and kind of period."""
        epoch, variables = manifest.get("epoch"), manifest.get("variables")
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(variables, list):
            raise store.CheckpointError(f"{folder / 'manifest.json'} is not of a Checkpoint")
        name, values = agreement.first_difference([variables, agreement.described(model)])
        if values:
            raise store.CheckpointError(
                f"{folder} is of another model or optimizer: {name} is {values[0]} there, "
                f"{values[1]} here"
            )
        try:
            self._gossip.state = manifest.get("state")
        except ValueError as error:
            raise store.CheckpointError(f"{folder} is of a run with another H: {error}") from None

    def _report(self, number: int, manifest: dict, reasons: list[str]):
        """Says on standard error what a resumed run begins with, and what was passed over."""
        folder = self._store.folder(number)
        if self._is_chief:
            for reason in reasons:
                logger.info(f"Passed over a checkpoint. {reason}.")
            logger.info(f"Goes on from {folder}, after step {self._gossip.step}.")
        elif not self._restored:
            logger.info(
                f"Rank {self._rank} has no {self._own_name} in {folder}: it takes the optimizer's "
                "state from the chief."
            )

    def _say_if_lost(self, everyone: list):
        """Says that the chief has nothing to go on from, or that another rank has newer ones."""
        told = zip(self._collectives.members, everyone, strict=True)
        others = [rank for rank, (_, numbers) in told if numbers]
        if self._is_chief and others and not everyone[0][1]:
            logger.info(
                f"Rank {self._rank} has no checkpoint in {self._store.directory}, though rank "
                f"{others[0]} has: training begins anew. Copy them to rank {self._rank}'s disk if "
                "it should not."
            )
        newest, *newer = (max(complete, default=0) for complete, _ in everyone)
        if self._is_chief and newest and max(newer, default=0) > newest:
            logger.info(
                f"Another rank, once the chief, has checkpoint {max(newer)}, newer than "
                f"{newest} in {self._store.directory} of rank {self._rank}: training goes back. "
                f"Copy it to rank {self._rank}'s disk if it should not."
            )

    def _share(self, mine, unfit: str | None = None) -> list:
        """What all ranks passed, in rank order; raises on all if one cannot be restored."""
        elsewhere = "it restores a checkpoint. Call checkpoint.restore on every rank or on none."
        told = {"restores": mine, "unfit": unfit, "problem": elsewhere, "facts": None}
        everyone = self._collectives.gather(told, "the reading of a checkpoint", _PATIENCE_S)
        for rank, each in zip(self._collectives.members, everyone, strict=True):
            # A rank that has called fit instead tells something else, and finds `elsewhere`.
            problem = each["unfit"] if "restores" in each else f"it has called fit, but {elsewhere}"
            if problem:
                raise ValueError(f"Rank {rank} cannot restore a checkpoint: {problem}")
        return [each["restores"] for each in everyone]

    # ---- Writing --------------------------------------------------------------------------------

    def _save(self, epoch: int, due: bool):
        """Makes a checkpoint, on all ranks.

        Args:
          epoch: the one that a resumed run begins with.
          due: whether to save though no rank has received SIGTERM.
        """
        doing = f"the checkpoint after step {self._gossip.step}"
        told = self._meet(doing, [self._store.unused_number(), self._store.complete()])
        if not due and not self.preempted:
            return
        averaged = self._gossip.average(doing)
        number = max(unused for unused, _ in told)
        if not own.is_finite(self.model):
            self._say_unsaved(number, "The model has weights that are no finite numbers")
            return
        is_chief = self._is_chief  # a loss may make this rank the next
        written = [{}, "A worker was lost, and this rank missed the average"]
        if averaged:
            try:
                written = [self._write(number, complete=told[0][1]), None]  # the chief's
            except Exception as error:  # h5py has several kinds for a full disk
                written = [{}, f"Rank {self._rank}: {error}"]
        everyone = self._meet(f"the end of {doing}", written)
        problem = next((problem for _, problem in everyone if problem), None)
        files = {name: entry for each, _ in everyone for name, entry in each.items()}
        if _WEIGHTS not in files:
            problem = problem or "The rank that writes the weights was lost meanwhile"
        if is_chief and not problem:
            problem = self._finish(number, epoch, files, len(everyone))
        if problem:
            self._say_unsaved(number, problem)
            if self._is_chief:
                self._store.discard(number)  # half of one, where there may be no room

    def _write(self, number: int, complete: list[int]) -> dict[str, dict]:
        """Writes this rank's files; what the manifest says of them."""
        places = own.places(self.model, self._gossip.optimizer_state != "local")
        save_own = functools.partial(own.save, model=self.model, places=places)
        files = {self._own_name: self._store.write(number, self._own_name, save_own)}
        if self._is_chief:
            files[_WEIGHTS] = self._store.write(number, _WEIGHTS, self.model.save_weights)
        else:
            # One checkpoint late: this one is not complete yet.
            self._store.forget(self._own_name, {*complete, number})
        return files

    def _finish(self, number: int, epoch: int, files: dict, ranks: int) -> str | None:
        """On the chief, completes a checkpoint; why it could not, or None."""
        content = {
            "epoch": epoch,
            "state": self._gossip.state,
            "ranks": ranks,
            "variables": self._variables,
        }
        try:
            self._store.finish(number, content, files)
        except OSError as error:
            return f"Rank {self._rank}: {error}"
        return None

    def _say_unsaved(self, number: int, problem: str):
        if self._is_chief:
            logger.info(
                f"{self._store.folder(number)} was not completed, training goes on. {problem}."
            )

    def _meet(self, where: str, mine) -> list:
        """What all ranks passed; notes whether one of them is to end."""
        told = self._gossip.meet(where, [self._sigterm.received, mine])
        self.preempted = self.preempted or any(signalled for signalled, _ in told)
        return [each for _, each in told]

    # ---- Keras calls these ----------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        # When fit begins, rank 0's optimizer goes to all; this rank's own is put back afterwards.
        several = self._collectives.cluster.size > 1
        self._kept = own.copies(self._restored) if several else []

    def on_train_begin(self, logs=None):
        if not self._gossip.in_fit or self._gossip.model is not self.model:
            raise ValueError(
                "The GossipPGA of a Checkpoint must come before it: callbacks=[gossip, checkpoint]."
            )
        self._variables = agreement.described(self.model)  # an optimizer built elsewhere has others
        self.preempted = False
        self._sigterm.begin(preemption.code_of_caller("on_train_begin"))

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batches = epoch, 0
        for variable, value in self._kept:  # GossipPGA has just broadcast for the last time
            variable.assign(value)
        self._kept, self._restored = [], []

    def on_train_batch_end(self, batch, logs=None):
        self._batches = batch + 1
        if self._gossip.stopped and self._is_early():
            self._save(self._epoch, due=False)

    def on_epoch_end(self, epoch, logs=None):
        if self._is_early():
            return
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if last or (epoch + 1) % self._every == 0:
            self._save(epoch + 1, due=True)

    def on_train_end(self, logs=None):
        self._sigterm.end(heeded=self.preempted)

    def _is_early(self) -> bool:
        """Whether the epoch has batches that were not trained on."""
        steps = self.params["steps"]
        return self._gossip.stopped if steps is None else self._batches < steps


def _at_least_1(name: str, value, what: str) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool) and operator.index(value) >= 1:
            return operator.index(value)
    raise ValueError(f"{name} must be a whole number of {what} >= 1, received {value!r}.")
