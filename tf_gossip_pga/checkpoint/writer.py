"""Write checkpoints, on all ranks together."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import outer_file, rank_file
from tf_gossip_pga.checkpoint.files import CheckpointFiles
from tf_gossip_pga.checkpoint.ownership import Ownership
from tf_gossip_pga.checkpoint.rank_file import rank_name
from tf_gossip_pga.cluster import cluster_file
from tf_gossip_pga.coordination import running_call
from tf_gossip_pga.errors import CheckpointError
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training.callback import GossipPGA

# Name of the weights file. The file is in Keras' own format, and serves all ranks.
WEIGHTS = "model.weights.h5"


class Writer:
    """Write the checkpoints of one `fit`.

    Args:
      files: the checkpoints of the directory.
      ownership: the claim on the directory.
      session: runs the exchanges of this process (`exchange.session`).
      gossip: the `GossipPGA` of the same `fit`.
      sync: function that shares a value with all ranks, as `GossipPGA.sync` does.
      model: the model to save.
      variables: descriptions of the model's variables for the manifest (`preflight.described`).
    """

    def __init__(
        self,
        files: CheckpointFiles,
        ownership: Ownership,
        session: SoloSession,
        gossip: GossipPGA,
        sync: Callable[[str, Any], list],
        model: keras.Model,
        variables: list[str],
    ):
        """Store the arguments. Does not write anything."""
        self._files = files
        self._ownership = ownership
        self._session = session
        self._cluster = session.cluster
        self._gossip = gossip
        self._sync = sync
        self._model = model
        self._variables = variables

    def begin(self, code: types.CodeType):
        """Claim the directory on all ranks, before the first step.

        If this fails for any reason other than another job's claim, training continues, and `save`
        tries to claim the directory again. Joining workers claim the directory at their first
        `save`.

        Args:
          code: code object of `fit`. The directory is released soon after `fit` returns.

        Raises:
          CheckpointError: on every rank, if another job owns the directory of a rank.
        """
        fit = running_call.Frame(code)
        self._ownership.begin(lambda: fit.is_running)
        if self._session.is_joining:
            return
        doing = "the claim of the checkpoint directory"
        offers = self._gossip.sync(doing, self._ownership.offer(self._cluster.rank))
        refused, failed = None, None
        try:
            self._take(offers)
        except CheckpointError as error:
            refused = f"Rank {self._cluster.rank}: {error}"
        except OSError as error:
            failed = f"Rank {self._cluster.rank}: {error}"
        reports = self._gossip.sync(f"the end of {doing}", [refused, failed])
        if refused := next((refused for refused, _ in reports if refused), None):
            self._ownership.release()
            raise CheckpointError(f"{refused}.")
        failed = next((failed for _, failed in reports if failed), None)
        if failed and self._cluster.is_chief:
            logger.warning(f"Checkpoints cannot be written yet. Training continues. {failed}.")
        if not failed and self._cluster.rank == 0 and self._cluster.size > 1:
            self._write_addresses()

    def _write_addresses(self):
        """Write the addresses of all workers, with which a lost worker can join again."""
        text = cluster_file.text_of(self._cluster.addresses)
        try:
            self._files.write_of_run(cluster_file.NAME, text)
        except (OSError, CheckpointError) as error:
            logger.warning(
                f"{cluster_file.NAME} was not written. Training continues, but a lost worker needs "
                f"a TF_CONFIG to join again. Rank 0: {error}."
            )

    def end(self):
        """Release the directory."""
        self._ownership.release()

    def save(self, epoch: int, is_due: Callable[[], bool]):
        """Write a checkpoint on all ranks, or report why it was not completed.

        Args:
          epoch: the epoch that a resumed run starts from, counted from 0.
          is_due: function that returns whether to save. It is called after the ranks have
            synchronized.
        """
        doing = f"the checkpoint after step {self._gossip.step}"
        offer = self._ownership.offer(self._cluster.rank)
        everyone = self._sync(doing, [*self._listed(), offer])
        if not is_due():
            return
        averaged = self._gossip.average(doing)
        number = max(unused for unused, *_ in everyone)
        problem = next((problem for _, _, problem, _ in everyone if problem), None)
        if not problem and not rank_file.is_finite(self._model):
            problem = "The model has weights that are not finite"
        if problem:
            self._report_unsaved(number, problem)
            return
        is_chief = self._cluster.is_chief  # read once: a loss may make this rank the chief later
        offers = [offer for *_, offer in everyone]
        # everyone[0] is from the chief, and its second item lists the complete checkpoints.
        written = self._try_to_write(number, averaged, everyone[0][1], offers)
        reports = self._sync(f"the end of {doing}", written)
        problem = next((problem for _, problem in reports if problem), None)
        files = {name: entry for each, _ in reports for name, entry in each.items()}
        if WEIGHTS not in files:
            problem = problem or "The rank that writes the weights was lost during the save"
        if is_chief and not problem:
            problem = self._finish(number, epoch, files, len(reports))
        if problem:
            self._report_unsaved(number, problem)
            if self._cluster.is_chief:
                with contextlib.suppress(OSError, CheckpointError):
                    self._files.discard(number)  # frees space on a disk that may be full
        elif is_chief:
            self._prune(number)

    def _listed(self) -> tuple[int, list[int], str | None]:
        """Return an unused number, the numbers of complete checkpoints, and a problem or None.

        Does not raise `OSError`: all ranks must learn of the problem and continue training.
        """
        try:
            return self._files.unused_number(), self._files.complete(), None
        except OSError as error:
            return 0, [], f"Rank {self._cluster.rank}: {error}"

    def _take(self, offers: list[dict]):
        view = self._session.view
        self._ownership.take(offers, view.number, view.members)

    def _try_to_write(
        self, number: int, averaged: bool, complete: list[int], offers: list[dict]
    ) -> list:
        """Return `[files, problem]`: the manifest entries of this rank's files, or a problem."""
        if not averaged:
            return [{}, "A worker was lost, and this rank missed the average"]
        try:
            self._take(offers)  # claim again, because the view may have changed
            return [self._write(number, complete), None]
        except Exception as error:  # h5py raises several kinds for a full disk
            return [{}, f"Rank {self._cluster.rank}: {error}"]

    def _write(self, number: int, complete: list[int]) -> dict[str, dict]:
        """Write this rank's files, and return their manifest entries."""
        run = self._gossip.run
        averages_slots = run.settings.optimizer_state != "local"
        places = rank_file.places(self._model, averages_slots, run.settings.local)
        save_own = functools.partial(rank_file.save, model=self._model, places=places)
        name = rank_name(self._cluster.rank)
        entries = {name: self._files.write(number, name, save_own)}
        if self._cluster.is_chief:
            entries[WEIGHTS] = self._files.write(number, WEIGHTS, self._model.save_weights)
            if run.outer and run.outer.variables:  # a single worker has none
                save_outer = functools.partial(outer_file.save, outer=run.outer)
                entries[outer_file.NAME] = self._files.write(number, outer_file.NAME, save_outer)
        elif complete:  # if the chief has none, its disk may be lost or unmounted
            # Remove files one checkpoint late, because the new checkpoint is not complete yet.
            self._files.forget(name, {*complete, number})
        return entries

    def _finish(self, number: int, epoch: int, files: dict, ranks: int) -> str | None:
        """On the chief, complete a checkpoint. Return the problem if that fails, else None."""
        content = {
            **self._ownership.described(),
            "epoch": epoch,
            "state": self._gossip.state,
            "ranks": ranks,
            "variables": self._variables,
        }
        try:
            self._files.finish(number, content, files)
        except (OSError, CheckpointError) as error:
            return f"Rank {self._cluster.rank}: {error}"
        return None

    def _prune(self, number: int):
        """On the chief, remove old checkpoints. A failure does not affect the new checkpoint."""
        try:
            self._files.prune(number)
        except (OSError, CheckpointError) as error:
            logger.warning(f"Old checkpoints were not removed. Rank {self._cluster.rank}: {error}.")

    def _report_unsaved(self, number: int, problem: str):
        if self._cluster.is_chief:
            logger.warning(
                f"{self._files.folder(number)} was not completed. Training continues. {problem}."
            )
