"""Write a page about a run while it trains: the `Report` callback."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shlex
import socket
import sys
import time
from typing import Any, cast

import keras
import tensorflow as tf

from tf_gossip_pga import __version__
from tf_gossip_pga._log import logger
from tf_gossip_pga.exchange import process
from tf_gossip_pga.observe import adjacent, rendering, sample, svg
from tf_gossip_pga.observe.record import Change, Epoch, Record
from tf_gossip_pga.observe.sample import Sample, Shared
from tf_gossip_pga.tools import output
from tf_gossip_pga.training import callback_facts, recorder, sync_point
from tf_gossip_pga.training.callback import GossipPGA
from tf_gossip_pga.training.recorder import Span

# All ranks together share at most about this many spans per epoch, and all sync points. A rank may
# share `_FEWEST` in any case.
_MOST_SPANS, _FEWEST = 20_000, 500

# Writing the page at the ends of epochs may take about this part of the time.
_WRITING = 0.02

_LONGEST_COMMAND = 2000  # in characters


class Report(adjacent.Adjacent, callback_facts.Syncing):
    """Write a page about a run: curves, who waited for whom, lost workers, settings.

    The page is one HTML file. It needs no other file, no network and no script, so it can be opened
    from a disk, attached to a message, or kept with the results. The page shows:

    - loss and metrics by epoch, for training and validation
    - the consensus distance before each global average
    - the share of each epoch's time that the ranks spent in exchanges
    - a heat map of the seconds that each rank waited for each other rank, and a sentence that says
      what it shows
    - which workers were lost or joined, when, and at which step
    - the arguments of `GossipPGA`, versions, hosts, the command line, and how much each rank sent

    The chief writes the page at the end of an epoch, so that a run that is killed leaves a page,
    and when training ends. If epochs are short, it leaves out the ends of some epochs, so that
    writing takes about 2% of the time. If the chief is lost, the next chief continues the page. A
    later `fit` writes the file again. If it begins after the first epoch, as a resumed run does, it
    renames an existing page to report-1.html, or the next free number, when its first epoch ends. A
    `fit` that trains no epoch writes no page.

    Pass this callback on every rank, after `GossipPGA`. The ranks have one more sync point at the
    end of each epoch, where they share when they began their exchanges. Of an epoch with thousands
    of steps, they share only some, and scale the seconds up, except those at sync points. Waits
    between epochs are left out, and so are those in the first step of a `fit`, because TensorFlow
    compiles the model in it. See docs/guides/report.md.

    The page contains the command line and the names of the hosts. Remove passwords from the command
    line, or the page, before you pass the page on.

    Args:
      path: the file to write on the chief. The folder must exist. An existing file is replaced, or
        renamed if training resumes. Default `"report.html"`.

    Raises:
      ImportError: at construction, if matplotlib is not installed.
      ValueError: at construction, if the file cannot be created on the chief. When training begins,
        if no `GossipPGA` comes before this callback or, on every rank, if not all ranks pass it.

    Example:
        >>> import os, tempfile
        >>> import keras
        >>> import numpy as np
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()  # before the first model, tensor or dataset
        >>> path = os.path.join(tempfile.mkdtemp(), "report.html")
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((64, 4))
        >>> callbacks = [pga.GossipPGA(H=6), pga.Report(path)]
        >>> history = model.fit(x, x[:, 0], batch_size=8, verbose=0, callbacks=callbacks)
        >>> os.path.exists(path)
        True
    """

    def __init__(self, path: str | os.PathLike = "report.html"):
        """Check the argument. Does not write anything."""
        super().__init__()
        svg.check_matplotlib()
        self._session = process.active()
        if self._session.cluster.is_chief:
            output.check_path("path", path)
        self._path = os.fspath(path)
        self._record: Record | None = None  # of the current fit
        self._sample = Sample(_FEWEST)
        self._view = 0  # number of the view whose changes are recorded
        self._members: tuple[int, ...] = ()  # of this view
        self._distances = 0  # number of distances that are recorded, or belong to an earlier fit
        self._began = 0.0  # when listening began in this epoch
        self._write_after = 0.0  # do not write before this time

    # ---- Called by Keras ------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        """Find the `GossipPGA` of this fit, and begin a record."""
        super().on_train_begin(logs)
        gossip = self._driver
        self._record = _begun(gossip, self.model, cast("dict[str, Any]", self.params))
        self._distances, self._write_after = len(gossip.distances), 0.0
        self._members = ()

    def on_epoch_begin(self, epoch, logs=None):
        """Begin to measure the epoch, and note losses and joins."""
        self._note_changes()
        self._begin_part()

    def on_train_batch_end(self, batch, logs=None):
        """Begin to listen after the first batch, and note losses."""
        self._note_changes()
        if self._hear not in self._driver.run.recorder.listeners:
            self._begin_part()
            self._listen()

    def on_epoch_end(self, epoch, logs=None):
        """Share with the other ranks what this one has measured, and write the page."""
        gossip = self._driver
        now = time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        own = {
            "rank": self._session.cluster.rank,
            "epochs": len(self._current.epochs),
            "seconds": seconds,
            "exchanging": min(self._sample.seconds / seconds, 1.0),
            "sent": gossip.bytes_sent,
            "sync_points": self._sample.sync_points,
            "spans": self._sample.spans,
            "heard": self._sample.heard,
            "part": self._sample.part,
        }
        everyone = gossip.sync(f"the report of epoch {epoch + 1}", own)
        self._note_changes()
        self._inform_new_members(everyone)
        self._add(epoch, logs or {}, everyone)
        if time.perf_counter() >= self._write_after:
            # A worker that has just joined a run has received the record of its earlier epochs.
            self._write(is_resumed=epoch > 0 and len(self._current.epochs) == 1)

    def on_train_end(self, logs=None):
        """Write the page for the last time, unless this fit has not trained an epoch."""
        self._stop_listening()
        self._note_changes()
        self._add_distances()
        self._current.is_finished = True
        if self._current.epochs:
            self._write()

    # ---- Recording ------------------------------------------------------------------------------

    @property
    def _current(self) -> Record:
        if self._record is None:
            raise RuntimeError("Report records only inside fit, and fit has not begun.")
        return self._record

    def _hear(self, span: Span):
        if span.kind in recorder.EXCHANGES:
            self._sample.add(span)

    def _begin_part(self):
        """Begin to measure the epoch, or the rest of it."""
        most = max(_FEWEST, _MOST_SPANS // self._session.size)
        self._sample = Sample(most)
        self._began = time.perf_counter()

    def _note_changes(self):
        """Record which workers were lost or joined since the last call."""
        view = self._session.view
        if self._members and view.number == self._view:
            return
        before, after = set(self._members or view.members), set(view.members)
        if before != after:
            lost, joined = sorted(before - after), sorted(after - before)
            self._current.changes.append(
                Change(time.time(), self._driver.step, lost, joined, len(after))
            )
        self._view, self._members = view.number, view.members

    def _inform_new_members(self, everyone: list[dict]):
        """Give the record of the run to workers that have joined it."""
        counts = [each["epochs"] for each in everyone]
        if len(set(counts)) == 1:
            return
        source = everyone[counts.index(max(counts))]["rank"]
        own = self._current.as_json() if source == self._session.cluster.rank else None
        for content in self._driver.sync("the report's record for a joining worker", own):
            if content is not None:
                self._record = Record.from_json(content)

    def _add(self, epoch: int, logs: dict, everyone: list[dict]):
        """Record an epoch from what all ranks have shared."""
        record = self._current
        numbers = {
            name: value
            for name, value in sync_point.numbers_in(logs).items()
            if isinstance(value, float)
        }
        exchanging = [each["exchanging"] for each in everyone]
        seconds = sum(each["seconds"] for each in everyone) / len(everyone)
        record.epochs.append(Epoch(epoch + 1, numbers, exchanging, seconds))
        shared = {
            each["rank"]: Shared(
                [Span.from_json(values) for values in each["sync_points"]],
                [Span.from_json(values) for values in each["spans"]],
                each["heard"],
                each["part"],
            )
            for each in everyone
        }
        record.add_waiting(sorted(shared), sample.waiting(shared).tolist())
        for each in everyone:
            record.training_seconds[each["rank"]] += each["seconds"]
            record.sent[each["rank"]] = each["sent"]
        self._add_distances()

    def _add_distances(self):
        gossip, record = self._driver, self._current
        record.add_distances(gossip.distances[self._distances :])
        self._distances = len(gossip.distances)
        record.steps = gossip.step

    # ---- Writing --------------------------------------------------------------------------------

    def _write(self, is_resumed: bool = False):
        """Write the page on the chief. Training continues if that fails.

        Args:
          is_resumed: whether to keep the page of an earlier part of the run under another name.
            Default False.
        """
        if not self._session.cluster.is_chief:
            return
        began = time.perf_counter()
        self._current.seconds = time.time() - self._current.started
        try:
            page = rendering.render(self._current)
            if is_resumed:
                output.set_aside(self._path)
            output.replace(self._path, page)
            if self._current.is_finished:
                logger.info(f"The report is in {os.path.abspath(self._path)}.")
        except Exception as error:  # an error in drawing must not end a run either
            reason = f"{type(error).__name__}: {error}"
            logger.warning(f"The report was not written. Training continues. {reason}.")
        now = time.perf_counter()
        self._write_after = now + (now - began) / _WRITING


def _begun(gossip: GossipPGA, model: Any, params: dict) -> Record:
    """Return the record of a run that is about to begin."""
    run, session = gossip.run, process.active()
    settings = {
        field.name: _text(getattr(run.settings, field.name))
        for field in dataclasses.fields(run.settings)
    }
    settings["topology"] = run.topology.name
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return Record(
        model=model.name,
        parameters=sum(math.prod(each.shape) for each in model.trainable_variables),
        hosts=list(session.cluster.addresses) or [socket.gethostname()],
        settings=settings,
        versions={
            "tf_gossip_pga": __version__,
            "TensorFlow": tf.__version__,
            "Keras": keras.__version__,
            "Python": platform.python_version(),
            "transport": session.transport.name,
        },
        command=command if len(command) <= _LONGEST_COMMAND else command[:_LONGEST_COMMAND] + " …",
        started=time.time(),
        planned=params["epochs"],
    )


def _text(setting: object) -> str:
    """Return an argument of `GossipPGA` as a reader of the page would write it."""
    return ", ".join(setting) or "none" if isinstance(setting, tuple) else str(setting)
