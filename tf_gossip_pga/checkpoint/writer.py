"""Write one checkpoint, on all ranks together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.checkpoint import rank_file
from tf_gossip_pga.checkpoint.files import CheckpointFiles
from tf_gossip_pga.checkpoint.rank_file import rank_name
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.training.callback import GossipPGA

# The one file of weights, in Keras' own format.
WEIGHTS = "model.weights.h5"


class Writer:
    """Write checkpoints of a run.

    Args:
      files: where they lie.
      cluster: this process's place.
      gossip: the callback that averages.
      sync: shares a value between all ranks at a point of training, as `GossipPGA.sync` does.
      model: what is saved.
      variables: names and shapes of the variables, for the manifest.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        cluster: Cluster,
        gossip: GossipPGA,
        sync: Callable[[str, Any], list],
        model: keras.Model,
        variables: list[str],
    ):
        self._files = files
        self._cluster = cluster
        self._gossip = gossip
        self._sync = sync
        self._model = model
        self._variables = variables

    def save(self, epoch: int, is_due: Callable[[], bool]):
        """Write a checkpoint, on all ranks.

        Args:
          epoch: the epoch that a resumed run begins with.
          is_due: whether to save, once the ranks have met.
        """
        doing = f"the checkpoint after step {self._gossip.step}"
        everyone = self._sync(doing, [self._files.unused_number(), self._files.complete()])
        if not is_due():
            return
        averaged = self._gossip.average(doing)
        number = max(unused for unused, _ in everyone)
        if not rank_file.is_finite(self._model):
            self._report_unsaved(number, "The model has weights that are no finite numbers")
            return
        is_chief = self._cluster.is_chief  # a loss may make this rank the next
        written = self._try_to_write(number, averaged, complete=everyone[0][1])  # the chief's
        reports = self._sync(f"the end of {doing}", written)
        problem = next((problem for _, problem in reports if problem), None)
        files = {name: entry for each, _ in reports for name, entry in each.items()}
        if WEIGHTS not in files:
            problem = problem or "The rank that writes the weights was lost meanwhile"
        if is_chief and not problem:
            problem = self._finish(number, epoch, files, len(reports))
        if problem:
            self._report_unsaved(number, problem)
            if self._cluster.is_chief:
                self._files.discard(number)  # half of one, where there may be no room

    def _try_to_write(self, number: int, averaged: bool, complete: list[int]) -> list:
        """Return `[files, problem]`: what the manifest says of this rank's files, or why not."""
        if not averaged:
            return [{}, "A worker was lost, and this rank missed the average"]
        try:
            return [self._write(number, complete), None]
        except Exception as error:  # h5py has several kinds for a full disk
            return [{}, f"Rank {self._cluster.rank}: {error}"]

    def _write(self, number: int, complete: list[int]) -> dict[str, dict]:
        """Write this rank's files; return what the manifest says of them."""
        averages_slots = self._gossip.optimizer_state != "local"
        places = rank_file.places(self._model, averages_slots, self._gossip.local)
        save_own = functools.partial(rank_file.save, model=self._model, places=places)
        name = rank_name(self._cluster.rank)
        entries = {name: self._files.write(number, name, save_own)}
        if self._cluster.is_chief:
            entries[WEIGHTS] = self._files.write(number, WEIGHTS, self._model.save_weights)
        else:
            # One checkpoint late: this one is not complete yet.
            self._files.forget(name, {*complete, number})
        return entries

    def _finish(self, number: int, epoch: int, files: dict, ranks: int) -> str | None:
        """On the chief, complete a checkpoint; return why it could not, or None."""
        content = {
            "epoch": epoch,
            "state": self._gossip.state,
            "ranks": ranks,
            "variables": self._variables,
        }
        try:
            self._files.finish(number, content, files)
        except OSError as error:
            return f"Rank {self._cluster.rank}: {error}"
        return None

    def _report_unsaved(self, number: int, problem: str):
        if self._cluster.is_chief:
            logger.warning(
                f"{self._files.folder(number)} was not completed, training goes on. {problem}."
            )
