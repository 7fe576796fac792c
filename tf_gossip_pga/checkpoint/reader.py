"""Read the newest usable checkpoint, on all ranks together."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import outer_file, rank_file
from tf_gossip_pga.checkpoint.files import MANIFEST, CheckpointFiles
from tf_gossip_pga.checkpoint.rank_file import PREFIX, rank_name
from tf_gossip_pga.checkpoint.writer import WEIGHTS
from tf_gossip_pga.errors import CheckpointError
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training import preflight
from tf_gossip_pga.training import variables as variables_lib
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.variables import Held


class Reader:
    """Restore a run from the checkpoints of a directory.

    Args:
      files: the checkpoints of the directory.
      session: runs the exchanges of this process (`exchange.session`).
      gossip: the callback whose step and period are restored.

    Attributes:
      restored: the variables that this rank read from a `rank-….npz` file: its own or, if the chief
        has none, another rank's.
    """

    def __init__(self, files: CheckpointFiles, session: SoloSession, gossip: GossipPGA):
        """Store the arguments. Does not read anything."""
        self.restored: list[Held] = []
        self._files = files
        self._session = session
        self._gossip = gossip
        self._rank = session.cluster.rank
        self._own_name = rank_name(self._rank)

    @property
    def _is_chief(self) -> bool:
        return self._session.cluster.is_chief

    def restore(self, model: keras.Model) -> int:
        """Load the newest usable checkpoint. Return its epoch to start from, or 0 if there is none.

        Args:
          model: a built and compiled model.

        Raises:
          ValueError: on every rank, if there are checkpoints but none can be used.
        """
        unfit, listed = preflight.problem_of_model(model), [[], []]
        try:
            listed = [self._files.complete(), self._files.numbers()]
        except OSError as error:
            unfit = unfit or f"{error}."
        everyone = self._share(listed, unfit)
        self._warn_if_lost(everyone)
        reasons: list[str] = []
        for number in everyone[0][0]:
            # Use the chief's manifest, because the other ranks may use other disks.
            manifest, problem = self._load(number, model) if self._is_chief else (None, None)
            manifest, problem = self._share([manifest, problem])[0]
            if not problem and not self._is_chief:
                problem = self._problem_of_own(number, manifest, model)
            problems = self._share(problem)
            if not any(problems):
                self._report(number, reasons)
                return manifest["epoch"]
            found = zip(self._session.view.members, problems, strict=True)
            reasons.append(next(f"Rank {rank}: {each}" for rank, each in found if each))
        if reasons:
            raise ValueError(
                f"None of the checkpoints in {self._files.directory} can be used:\n  "
                + "\n  ".join(reasons)
                + "\nRemove them to train from the beginning, or restore them from a copy."
            )
        return 0

    def _load(self, number: int, model: keras.Model) -> tuple[dict | None, str | None]:
        """On the chief, load a checkpoint. Return `(manifest, problem)`, one of which is None."""
        try:
            manifest = self._files.read(number)
            path = self._files.checked(number, WEIGHTS, manifest.get("files", {}))
            self._take(number, manifest, model, lambda: model.load_weights(path))
        except CheckpointError as error:
            return None, str(error)
        return manifest, None

    def _problem_of_own(self, number: int, manifest: dict, model: keras.Model) -> str | None:
        """On any rank but the chief, load its own file. Return why that is impossible, or None."""
        try:
            self._take(number, manifest, model)
        except CheckpointError as error:
            return str(error)
        return None

    def _take(
        self,
        number: int,
        manifest: dict,
        model: keras.Model,
        load_weights: Callable[[], object] = lambda: None,
    ):
        """Load the weights, the schedule and this rank's variables.

        Args:
          number: number of the checkpoint.
          manifest: the manifest of the checkpoint.
          model: a built and compiled model.
          load_weights: function that loads the weights. Default: do not load them.

        Raises:
          CheckpointError: a file is damaged, or belongs to another model, optimizer or kind of `H`.
        """
        folder = self._files.folder(number)
        self._check_run(folder, manifest, model)
        with explained(folder / WEIGHTS):
            load_weights()
        self.restored = []
        listed, name = manifest["files"], self._own_name
        if self._is_chief and name not in listed:  # the chief saved no such file
            name = next((each for each in sorted(listed) if each.startswith(PREFIX)), name)
        if self._is_chief or (name in listed and os.path.lexists(folder / name)):
            path = self._files.checked(number, name, listed)
            with explained(path):
                loaded = rank_file.load(path, model)
            for variable, value in loaded:
                variable.assign(value)
            self.restored = [variable for variable, _ in loaded]
        self._take_outer(number, listed, model)

    def _take_outer(self, number: int, listed: dict, model: keras.Model):
        """Load the state of the outer optimizer. Start over if the checkpoint has none.

        Only the chief reads the file, because `fit` broadcasts this state like the weights.
        """
        run = self._gossip.run
        outer, settings = run.outer, run.settings
        if outer is None:
            return
        outer.forget()
        if outer_file.NAME not in listed or self._session.cluster.size == 1:
            return
        if self._is_chief:
            path = self._files.checked(number, outer_file.NAME, listed)
            of_model = variables_lib.variables_of(model, settings.optimizer_state, settings.local)
            outer.serve(of_model.parameters)
            with explained(path):
                outer_file.load(path, outer)
        outer.is_restored = True

    def _check_run(self, folder: pathlib.Path, manifest: dict, model: keras.Model):
        """Restore the schedule. Raise if the checkpoint is for another model, optimizer or `H`."""
        epoch, variables = manifest.get("epoch"), manifest.get("variables")
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(variables, list):
            raise CheckpointError(f"{folder / MANIFEST} was not written by Checkpoint")
        name, values = preflight.first_difference([variables, preflight.described(model)])
        if values:
            raise CheckpointError(
                f"{folder} belongs to another model or optimizer: {name} is {values[0]} in the "
                f"checkpoint, but {values[1]} here"
            )
        try:
            self._gossip.state = manifest.get("state", {})
        except ValueError as error:
            raise CheckpointError(
                f"{folder} belongs to a run with another kind of H: {error}"
            ) from None

    def _report(self, number: int, reasons: list[str]):
        """Report the checkpoint that the run resumes from, and those that were skipped."""
        folder = self._files.folder(number)
        if self._is_chief:
            for reason in reasons:
                logger.warning(f"Skipped a checkpoint. {reason}.")
            logger.info(f"Resuming from {folder}, after step {self._gossip.step}.")
        elif not self.restored:
            logger.warning(
                f"Rank {self._rank} has no {self._own_name} in {folder}. It uses the optimizer "
                "state of the chief."
            )

    def _warn_if_lost(self, everyone: list):
        """Warn if another rank has a checkpoint and the chief has none, or only an older one.

        Args:
          everyone: for each rank, the numbers of its complete checkpoints and of all its
            checkpoints.
        """
        listed = zip(self._session.view.members, everyone, strict=True)
        others = [rank for rank, (_, numbers) in listed if numbers]
        if self._is_chief and others and not everyone[0][1]:
            logger.warning(
                f"Rank {self._rank} has no checkpoint in {self._files.directory}, but rank "
                f"{others[0]} has. Training starts from the beginning. To resume instead, copy the "
                f"checkpoints to rank {self._rank}'s disk."
            )
        newest, *newer = (max(complete, default=0) for complete, _ in everyone)
        if self._is_chief and newest and max(newer, default=0) > newest:
            logger.warning(
                f"Training resumes from checkpoint {newest}, the newest in {self._files.directory} "
                f"of rank {self._rank}. Another rank, which was once the chief, has checkpoint "
                f"{max(newer)}. To resume from that, copy it to rank {self._rank}'s disk."
            )

    def _share(self, value: Any, unfit: str | None = None) -> list:
        """Share a value, and return the values of all ranks in rank order.

        Args:
          value: this rank's value, JSON-serializable.
          unfit: why this rank cannot restore, or None if it can.

        Raises:
          ValueError: on every rank, if a rank cannot restore, or called `fit` instead of `restore`.
        """
        advice = "Call checkpoint.restore on every rank or on none."
        elsewhere = f"it has called checkpoint.restore. {advice}"
        own = {"restores": value, "unfit": unfit, "problem": elsewhere, "facts": None}
        patience_s = self._session.timing.restore_s
        everyone = self._session.gather(own, "the restore of a checkpoint", patience_s)
        for rank, each in zip(self._session.view.members, everyone, strict=True):
            # A rank that called fit instead of restore sends a dict with other keys, and reads
            # `elsewhere` in this rank's dict as the problem.
            problem = each["unfit"] if "restores" in each else f"it has called fit. {advice}"
            if problem:
                raise ValueError(f"Rank {rank} cannot restore a checkpoint: {problem}")
        return [each["restores"] for each in everyone]


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Convert any error that a library raises while loading a file to a `CheckpointError`.

    Args:
      path: path of the file.

    Raises:
      CheckpointError: the file cannot be loaded.
    """
    try:
        yield
    except Exception as error:  # h5py, zipfile and NumPy raise many kinds
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be loaded: {type(error).__name__}: {first_line}"
        ) from None
