"""Read the newest checkpoint that fits, on all ranks together."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import rank_file
from tf_gossip_pga.checkpoint.files import MANIFEST, CheckpointFiles
from tf_gossip_pga.checkpoint.rank_file import PREFIX, rank_name
from tf_gossip_pga.checkpoint.writer import WEIGHTS
from tf_gossip_pga.errors import CheckpointError
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training import preflight
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.variables import Held


class Reader:
    """Restore a run from the checkpoints of a directory.

    Args:
      files: the checkpoints.
      session: the exchanges of this process.
      gossip: the callback whose step and period are restored.

    Attributes:
      restored: the variables that this rank has read for itself.
    """

    def __init__(self, files: CheckpointFiles, session: SoloSession, gossip: GossipPGA):
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
        """Load the newest complete checkpoint that fits; return the epoch to begin with.

        Raises:
          ValueError: on every rank, where there are checkpoints but none can be used.
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
            # The chief's manifest counts: others may have a disk of their own.
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
                + "\nRemove them to begin anew, or restore them from a copy."
            )
        return 0

    def _load(self, number: int, model: keras.Model) -> tuple[dict | None, str | None]:
        """On the chief, set the model to a checkpoint: its manifest, or why it cannot be used."""
        try:
            manifest = self._files.read(number)
            path = self._files.checked(number, WEIGHTS, manifest.get("files", {}))
            self._take(number, manifest, model, lambda: model.load_weights(path))
        except CheckpointError as error:
            return None, str(error)
        return manifest, None

    def _problem_of_own(self, number: int, manifest: dict, model: keras.Model) -> str | None:
        """On the others, set what is their own; return None, or why that cannot be used."""
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
        """Set weights, the schedule and what this rank has of its own.

        Raises:
          CheckpointError: a file is damaged, or the run was another.
        """
        folder = self._files.folder(number)
        self._check_run(folder, manifest, model)
        with explained(folder / WEIGHTS):
            load_weights()
        self.restored = []
        listed, name = manifest["files"], self._own_name
        if self._is_chief and name not in listed:  # it was lost before; another was the chief
            name = next((each for each in sorted(listed) if each.startswith(PREFIX)), name)
        if self._is_chief or (name in listed and os.path.lexists(folder / name)):
            path = self._files.checked(number, name, listed)
            with explained(path):
                loaded = rank_file.load(path, model)
            for variable, value in loaded:
                variable.assign(value)
            self.restored = [variable for variable, _ in loaded]

    def _check_run(self, folder: pathlib.Path, manifest: dict, model: keras.Model):
        """Raise where the checkpoint is not one of this model, optimizer and kind of period."""
        epoch, variables = manifest.get("epoch"), manifest.get("variables")
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(variables, list):
            raise CheckpointError(f"{folder / MANIFEST} is not of a Checkpoint")
        name, values = preflight.first_difference([variables, preflight.described(model)])
        if values:
            raise CheckpointError(
                f"{folder} is of another model or optimizer: {name} is {values[0]} there, "
                f"{values[1]} here"
            )
        try:
            self._gossip.state = manifest.get("state", {})
        except ValueError as error:
            raise CheckpointError(f"{folder} is of a run with another H: {error}") from None

    def _report(self, number: int, reasons: list[str]):
        """Report what a resumed run begins with, and which checkpoints were skipped."""
        folder = self._files.folder(number)
        if self._is_chief:
            for reason in reasons:
                logger.warning(f"Passed over a checkpoint. {reason}.")
            logger.info(f"Goes on from {folder}, after step {self._gossip.step}.")
        elif not self.restored:
            logger.warning(
                f"Rank {self._rank} has no {self._own_name} in {folder}: it takes the optimizer's "
                "state from the chief."
            )

    def _warn_if_lost(self, everyone: list):
        """Warn where the chief has no checkpoint, or another rank a newer one.

        Args:
          everyone: of each rank, the numbers of its complete checkpoints and of all it has.
        """
        listed = zip(self._session.view.members, everyone, strict=True)
        others = [rank for rank, (_, numbers) in listed if numbers]
        if self._is_chief and others and not everyone[0][1]:
            logger.warning(
                f"Rank {self._rank} has no checkpoint in {self._files.directory}, though rank "
                f"{others[0]} has: training begins anew. Copy them to rank {self._rank}'s disk if "
                "it should not."
            )
        newest, *newer = (max(complete, default=0) for complete, _ in everyone)
        if self._is_chief and newest and max(newer, default=0) > newest:
            logger.warning(
                f"Another rank, once the chief, has checkpoint {max(newer)}, newer than "
                f"{newest} in {self._files.directory} of rank {self._rank}: training goes back. "
                f"Copy it to rank {self._rank}'s disk if it should not."
            )

    def _share(self, value: Any, unfit: str | None = None) -> list:
        """Return what all ranks passed, in rank order; raise on all if one cannot restore."""
        elsewhere = "it restores a checkpoint. Call checkpoint.restore on every rank or on none."
        own = {"restores": value, "unfit": unfit, "problem": elsewhere, "facts": None}
        patience_s = self._session.timing.restore_s
        everyone = self._session.gather(own, "the reading of a checkpoint", patience_s)
        for rank, each in zip(self._session.view.members, everyone, strict=True):
            # A rank that has called fit instead sends something else, and receives `elsewhere`.
            problem = each["unfit"] if "restores" in each else f"it has called fit, but {elsewhere}"
            if problem:
                raise ValueError(f"Rank {rank} cannot restore a checkpoint: {problem}")
        return [each["restores"] for each in everyone]


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever a library raises about a file into an error of ours.

    Raises:
      CheckpointError: the file cannot be loaded.
    """
    try:
        yield
    except Exception as error:  # h5py, zipfile and NumPy have many kinds
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be loaded: {type(error).__name__}: {first_line}"
        ) from None
