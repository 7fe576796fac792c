"""Record some steps of all ranks as a trace for Perfetto: the `Timeline` callback."""

from __future__ import annotations

import json
import os
import pathlib

from tf_gossip_pga._log import logger
from tf_gossip_pga.exchange import process
from tf_gossip_pga.observe import adjacent, trace
from tf_gossip_pga.observe import waits as waits_lib
from tf_gossip_pga.tools import output, timeline_request
from tf_gossip_pga.training import callback_facts
from tf_gossip_pga.training.recorder import Span

# The files, and their first and last steps, that contain all steps of a fit of this process.
_complete: set[tuple[pathlib.Path, int, int]] = set()


class Timeline(adjacent.Adjacent, callback_facts.Syncing):
    """Record what all ranks spend their time on, for a trace viewer.

    At the end of each epoch that contains some of the steps, the ranks share their spans, and the
    chief writes all of them to one file. Open the file in https://ui.perfetto.dev or
    chrome://tracing. The file has one process for each rank, with the following spans:

    - `compute`: from the end of one step's exchange to the beginning of the next one's. This is
      Keras' training step, including the wait for input data and the batch hooks of other
      callbacks. In the first step of a `fit`, it includes the compilation. It is missing in the
      step in which listening begins: the one before the first of the steps or, if a resumed `fit`
      begins inside the steps, the first one of that `fit`.
    - `gossip` and `global average`, with the other ranks that take part and the number of bytes
      sent. With `overlap=True`, `gossip` is the wait for the previous gossip and the start of the
      next one, and `gossip in the background` is the exchange itself.
    - `waiting for rank 2`, inside an exchange: until the last of its peers, rank 2, began it.
    - `sync point`, `validation`, `checkpoint`, `average of the optimizer state`.
    - `regrouping` after a loss; `joining` and `state transfer` if a worker joins.

    The clocks of the ranks are aligned at global averages, which all ranks leave at nearly the same
    time; if the steps contain none, at sync points. The spans of a lost worker remain up to the end
    of the last epoch that it completed. If the chief is lost and joins again, the lowest of the
    other ranks, which still has all spans, writes the file.

    Pass this callback on every rank, with the same arguments, as the last callback. The ranks have
    a sync point in each epoch that contains some of the steps. In other epochs, this callback does
    not exchange anything. If several `fit` calls share a `GossipPGA`, the steps may span them. A
    later `fit` with another `GossipPGA` counts its steps from 1 again, and replaces the file; but
    if the file contains all of the steps, only a `fit` that trains the last of them replaces it.

    Args:
      path: the file to write on the chief. The folder must exist. An existing file is replaced.
        Default `"trace.json"`.
      steps: the first and the last step to record, counted from 1 over all epochs; at most 10,000
        steps. Default `(100, 120)`, because the first steps contain the compilation.

    Raises:
      ValueError: at construction, if `steps` is not a pair of steps or, on the chief, if the file
        cannot be created. When training begins, if no `GossipPGA` comes before this callback or,
        on every rank, if not all ranks pass it with the same steps.

    Example:
        >>> import os, tempfile
        >>> import keras
        >>> import numpy as np
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()  # before the first model, tensor or dataset
        >>> path = os.path.join(tempfile.mkdtemp(), "trace.json")
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((64, 4))
        >>> callbacks = [pga.GossipPGA(H=6), pga.Timeline(path, steps=(5, 8))]
        >>> history = model.fit(x, x[:, 0], batch_size=8, verbose=0, callbacks=callbacks)
        >>> os.path.exists(path)
        True
    """

    def __init__(
        self,
        path: str | os.PathLike = "trace.json",
        steps: tuple[int, int] = timeline_request.DEFAULT_STEPS,
    ):
        """Check the arguments. Does not write anything."""
        super().__init__()
        self._first, self._last = timeline_request.check_steps("steps", steps)
        self._path = pathlib.Path(path)
        self._cluster = process.active().cluster
        if self._cluster.is_chief:
            output.check_path("path", path)
        self._pending: list[Span] = []  # of this rank, not shared yet
        self._spans: dict[int, list[Span]] = {}  # of all ranks, shared
        self._writer: int | None = None  # the rank that writes; None: no spans are shared yet
        self._epoch_begin = 0  # number of steps completed before this epoch

    def on_train_begin(self, logs=None):
        """Find the `GossipPGA` of this fit, and begin to listen if the steps are near."""
        previous = self._gossip
        super().on_train_begin(logs)
        step, self._pending = self._driver.step, []
        if self._driver is not previous or step < self._first:
            self._spans, self._writer = {}, None
        for rank, spans in self._spans.items():  # of an earlier fit, which may have trained more
            self._spans[rank] = [each for each in spans if each.step <= step]
        self._listen_if_near()

    def matching_arguments(self) -> str:
        """Return the steps, which must be equal on all ranks."""
        return f"steps=({self._first}, {self._last})"

    def on_epoch_begin(self, epoch, logs=None):
        """Note the first step of the epoch."""
        self._epoch_begin = self._driver.step
        self._listen_if_near()

    def on_train_batch_end(self, batch, logs=None):
        """Begin to listen if the steps are near."""
        self._listen_if_near()

    def on_epoch_end(self, epoch, logs=None):
        """Share the spans of this epoch, and write them on the chief."""
        if self._driver.step < self._first or self._epoch_begin >= self._last:
            return  # the same on all ranks, and on a rank that joined in the meantime
        own = [self._cluster.rank, self._pending, sum(map(len, self._spans.values()))]
        everyone = self._driver.sync(f"the timeline of epoch {epoch + 1}", own)
        for rank, spans, _ in everyone:
            self._spans.setdefault(rank, []).extend(map(Span.from_json, spans))
        self._pending = []
        # A worker that has joined does not have the spans of earlier epochs.
        self._writer = max(everyone, key=lambda each: (each[2], -each[0]))[0]
        if self._driver.step >= self._last:
            self._stop_listening()
            _complete.add(self._request)
        elif self._request in _complete:  # of an earlier fit: do not replace it by only some steps
            return
        if self._cluster.rank == self._writer:
            self._write()

    def on_train_end(self, logs=None):
        """Warn if training ended before the last of the steps."""
        self._stop_listening()
        step, writer = self._driver.step, self._writer
        is_writer = self._cluster.is_chief if writer is None else self._cluster.rank == writer
        if not is_writer or self._request in _complete:
            return
        contains = f"{self._path} was not written"
        if self._spans:
            contains = f"{self._path} contains only steps {self._first} to {step}"
        logger.warning(
            f"The timeline was to record steps {self._first} to {self._last}, but this fit ended "
            f"with step {step}: {contains}. Choose steps that this fit trains, or call fit again "
            "with the same GossipPGA."
        )

    @property
    def _request(self) -> tuple[pathlib.Path, int, int]:
        return self._path, self._first, self._last

    # ---- Listening ------------------------------------------------------------------------------

    def _listen_if_near(self):
        # One step early, because the computation of a step begins before the hooks of callbacks
        # that follow GossipPGA.
        if self._first - 2 <= self._driver.step < self._last:
            self._listen()

    def _hear(self, span: Span):
        if span.step >= self._first and (
            span.step <= self._last or span.kind in waits_lib.ALIGNING
        ):
            self._pending.append(span)

    # ---- Writing --------------------------------------------------------------------------------

    def _write(self):
        """Replace the file with the spans of all ranks. Training continues if that fails."""
        spans = {
            rank: [each for each in aligned if each.step <= self._last]
            for rank, aligned in waits_lib.aligned(self._spans).items()
        }
        text = json.dumps(trace.document(spans, waits_lib.waits(spans)), separators=(",", ":"))
        try:
            output.replace(self._path, text)
        except OSError as error:
            logger.warning(f"The timeline was not written. Training continues. {error}.")
            return
        if self._driver.step >= self._last:
            steps = f"steps {self._first} to {self._last}"
            logger.info(
                f"The timeline of {steps} is in {self._path.absolute()}. Open it in "
                "https://ui.perfetto.dev."
            )
