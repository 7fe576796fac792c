"""Train with Gossip-PGA inside plain `model.fit`: the callback, its arguments and Keras hooks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.schedule import AdaptivePeriod
from tf_gossip_pga.exchange import process
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import callback_facts, callback_list, preemption, preflight
from tf_gossip_pga.training.fit import Fit
from tf_gossip_pga.training.group_fit import GroupFit
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.settings import Settings

# The callback that drives a model: the last one for which `fit` called `set_model`.
_driver: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class GossipPGA(keras.callbacks.Callback):
    """Train one Keras model on several workers with Gossip-PGA, inside plain `model.fit`.

    Every worker trains on its own part of the data. After each optimizer step k, counted from 1
    over all epochs and `fit` calls, the parameters x_i of rank i become::

        x_i <- 1/n sum_j x_j          if k % H == 0: a global average
        x_i <- sum_j W[i, j] * x_j    otherwise: a gossip with the neighbors

    n is the number of workers and W the mixing matrix of the topology in this step. Workers average
    parameters, not gradients. A single worker exchanges nothing and writes the same logs. Source:
    Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021, Algorithm 1.

    **Requirements.** All ranks must pass the same arguments, build the same model, and train for
    the same number of epochs and of batches. Build the model before `fit`, compile it with
    `steps_per_execution=1`, and pass `steps_per_epoch` if the length of the dataset is unknown. The
    ranks check this before the first step.

    **Variables.** What happens to the variables of the model and its optimizers:

    ===================================  ============  ======  ==============
    variable                             start of fit  gossip  global average
    ===================================  ============  ======  ==============
    trainable                            rank 0's      mixed   mean
    non-trainable, floating-point        rank 0's      kept    mean
    optimizer slots, such as momentum    rank 0's      kept    (1)
    integers, Booleans, step counters    rank 0's      kept    kept
    random generators; those in `local`  own           own     own
    ===================================  ============  ======  ==============

    (1) See `optimizer_state`. Complex variables are treated like floating-point ones. A
    `tf.Variable` that a layer holds but Keras does not track is treated like any other variable.
    After a global average the averaged variables are bit-identical on all ranks.

    **Validation and the end of fit.** Validation inside `fit` runs on the averaged model. In an
    epoch with validation, callbacks at its end see and save that model. Training then continues
    from each rank's own model, or from the weights that a callback set. When training ends, one
    more global average gives every rank the same model. After all callbacks the ranks compare their
    models once more.

    **Other callbacks.** Put `GossipPGA` first in the list. The callbacks after it read logs that
    are means over ranks, so that they make the same decision on every rank.

    - Give callbacks that stop training, set learning rates or set weights to every rank, with the
      same arguments: `EarlyStopping`, `ReduceLROnPlateau`, `LearningRateScheduler`.
    - Give callbacks that write files to rank 0 only: `ModelCheckpoint`, `CSVLogger`. Give
      `BackupAndRestore` to every rank, each with its own directory.
    - Do not use `SwapEMAWeights`. Both exchange the weights around validation.
    - If a callback sets `model.stop_training` on one rank, all ranks stop together: at the end of
      the epoch or, if it was set after a batch (`TerminateOnNaN`), at the epoch's next global
      average.

    **Learning rate.** Start from the learning rate for one process with the batch of all n workers
    together, and change it as follows (docs/results/optimizers.md):

    =========  =============  ==================
    optimizer  learning rate  weight decay
    =========  =============  ==================
    SGD        unchanged      unchanged
    Adam       times sqrt(n)  (has none)
    AdamW      times sqrt(n)  divided by sqrt(n)
    =========  =============  ==================

    The gradients of a worker's smaller batch are noisier, and Adam divides by their size: its steps
    are up to sqrt(n) times shorter. Averaging does not undo this, whatever `H` and
    `optimizer_state` are.

    **Optimizers.** The optimizers of a model are the one passed to `compile` and those in
    attributes of the model or its layers, also inside lists and dicts (a GAN has two). An optimizer
    that is not built is built for all trainable variables of the model or layer that holds it. To
    save memory, build it for the variables that it trains:
    `model.d_optimizer.build(model.discriminator.trainable_variables)`.

    **Adapted layers.** Adapt layers with an `adapt` method or a lookup table to the same data on
    every rank: to the whole dataset, before `cluster.shard`. The ranks compare the layers of the
    model before the first step. They cannot compare layers that are mapped over the dataset.

    **Several devices.** On a worker with several devices, build and compile the model in
    `cluster.strategy.scope()`. All devices compute each step, and the first one exchanges for all.

    Args:
      H: period of the global averages in steps, at least 1. `H=1` is Parallel SGD. `None` is Gossip
        SGD: no global average during training. An `AdaptivePeriod` follows the training loss
        (Gossip-AGA). Default 6, as in the paper.
      topology: which ranks gossip with each other: a name in `pga.topology.BY_NAME` or a
        `Topology`. `"disconnected"` is Local SGD. Default `"one_peer_exponential"`: in each step a
        worker sends one message and receives one, for any number of workers.
      optimizer_state: what a global average does with the optimizer's slots, its floating-point
        variables other than scalars. Those for validation and at the end of training leave the
        slots unchanged. Default `"local"`. (Wang et al., "SlowMo", ICLR 2020, compares the three.)

        - `"local"`: each rank keeps its own, as the library of the paper's authors does.
        - `"average"`: average them too. Each slot adds as many bytes as the parameters have.
        - `"reset"`: set them to zero if there are several workers. With Adam this acts as a
          learning rate several times as high: Adam keeps its step count, so its next steps are at
          first 3 and after a dozen steps 7 times as long.
      overlap: whether a gossip runs during the computation of the next step. It mixes the
        parameters that step k left, and its change is added after the update u of step k+1:
        x_k+1 <- x_k + u(x_k) + (sum_j W[i, j] * x_k,j - x_k). This is the recursion of D-PSGD (Lian
        et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017,
        Algorithm 1). Global averages stay exact and do not overlap. The gossip right before a
        global average would have no effect and is skipped; with `H=2` that is every gossip. Needs
        memory for one more copy of the parameters. Default False.
      wire_dtype: how gossips encode parameters. `"float32"` sends each in its own dtype.
        `"bfloat16"` and `"int8"` send differences from the last global average, in a half and a
        quarter of the bytes of float32 (`tf_gossip_pga.exchange.wire`). They need memory for one
        more copy of the parameters. Global averages are always exact. Default `"float32"`.
      timeout_s: seconds that an exchange waits for another worker. At the start of `fit`, between
        epochs, and around validations and checkpoints it waits ten times as long. Long before, a
        line on standard error names the worker that it waits for. Default 300.
      on_worker_lost: what the loss of a worker means for the others: `"raise"` ends `fit` with
        `WorkerLost`, `"continue"` continues it without the lost worker. Default `"raise"`.

        ============================  ====================  ==========================
        a worker is lost if it        with `"raise"`        with `"continue"`
        ============================  ====================  ==========================
        ends or leaves `fit`          when detected         when detected
        is silent (stopped, cut off)  after 60 s            after 75 s
        answers but does not arrive   at the timeout        10 `timeout_s` after that
        ============================  ====================  ==========================

        With `"continue"` the surviving workers agree on a new list of members, average their
        models once, and gossip on a graph for their number: that of the same name if it exists,
        else one-peer exponential. No step is lost or repeated. The data of the lost worker are
        lost, the learning rate stays the same, and the lowest surviving rank becomes the chief. If
        a worker is lost between two `fit` calls, the next one starts without it. If the network
        splits, the larger side continues, or of two equal sides the one with the lowest rank. A
        restarted worker joins at the beginning of an epoch; see `initialize`.
      min_workers: with `"continue"`, how many workers must survive, from 1 to the number of
        workers. With fewer, all end with `WorkerLost`. Default 1.
      local: names of variables, or of layers for all of their variables, that each rank keeps for
        itself, such as a queue of features of its own examples: `local=["feature_queue"]`. They
        are neither broadcast nor averaged, and each rank saves its own in checkpoints. The ranks do
        not compare lookup tables of these layers. A name matches a variable's whole `path` or one
        part of it. Slots of a local variable are treated like all slots. Default `()`.

    Attributes:
      step: number of completed batches over the whole run.
      gossip_steps: number of steps, since this callback was made, that ended with a gossip, or with
        no exchange (disconnected, or skipped by `overlap`).
      global_steps: number of steps that ended with a global average.
      distances: list of `(step, consensus distance)`, one for each global average of replicas that
        may differ, those for validation, checkpoints and the end of training included. Entries
        appear at the latest at the end of the epoch or of training.
      communication_seconds: seconds spent in exchanges, including the wait for other workers. The
        start of `fit`, the wait after its first batch, and the waits of checkpoints do not count.
      bytes_sent: bytes of payload that this rank has sent.

    **Logs.** At the end of an epoch, in `logs` and in `History`: every number that Keras and
    earlier callbacks logged, such as `loss` or `val_accuracy`, becomes its mean over ranks. So does
    every array of up to 100,000 numbers with the same shape on all ranks. These are added:

    - `consensus_distance`: root mean square distance of the replicas from their mean, divided by
      the norm of the mean, just before the epoch's last global average. NaN in an epoch without
      one; 0 for a single worker.
    - `global_averages`: number of steps in the epoch that ended with a global average.
    - `communication_seconds`: those of the epoch.
    - `H`: the present period, if it is adaptive.

    Raises:
      ValueError: an argument is out of its range; at construction. When training starts, on every
        rank: the ranks differ in their models, settings or callbacks, or a rank cannot train.
      TypeError: `topology` is neither a name nor a `Topology`, or the model is not a Keras 3 model.
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called. On every
        rank: the ranks take different paths through training, or a callback set the weights of some
        ranks only when training ended.
      WorkerLost: another worker ended, left `fit` or did not answer; see `on_worker_lost`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> import tf_gossip_pga as pga
        >>> cluster = pga.initialize()  # before the first model, tensor or dataset
        >>> x = np.random.rand(64, 4).astype("float32")
        >>> dataset = cluster.shard(tf.data.Dataset.from_tensor_slices((x, x.sum(1))))
        >>> dataset = dataset.shuffle(64).batch(16 // cluster.size)
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.Adam(1e-3 * cluster.size**0.5), "mse")
        >>> gossip = pga.GossipPGA(H=6)
        >>> callbacks = [gossip, keras.callbacks.EarlyStopping("loss", patience=3)]
        >>> history = model.fit(dataset, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        >>> sorted(history.history)
        ['communication_seconds', 'consensus_distance', 'global_averages', 'loss']
        >>> gossip.step, gossip.global_steps
        (12, 2)
    """

    def __init__(
        self,
        H: int | AdaptivePeriod | None = 6,  # noqa: N803
        topology: str | Topology = "one_peer_exponential",
        optimizer_state: str = "local",
        overlap: bool = False,
        wire_dtype: str = "float32",
        timeout_s: float = 300.0,
        on_worker_lost: str = "raise",
        min_workers: int = 1,
        local: Sequence[str] = (),
    ):
        """Check the arguments; nothing is exchanged before `fit`."""
        super().__init__()
        self._session = process.active()
        self._settings = Settings(
            H=H,
            topology=topology,
            optimizer_state=optimizer_state,
            overlap=overlap,
            wire_dtype=wire_dtype,
            timeout_s=timeout_s,
            on_worker_lost=on_worker_lost,
            min_workers=min_workers,
            local=local,
            size=self._session.size,
        )
        self._run = RunState(self._settings, self._session)
        self._fit: Fit | None = None  # None outside training
        self._calls_last = False  # whether a `callback_list.Last` follows all other callbacks

    @property
    def step(self) -> int:
        """Return the number of completed batches over the whole run."""
        return self._run.step

    @property
    def gossip_steps(self) -> int:
        """Return the number of steps that ended with a gossip or without an exchange."""
        return self._run.gossip_steps

    @property
    def global_steps(self) -> int:
        """Return the number of steps that ended with a global average."""
        return self._run.global_steps

    @property
    def distances(self) -> list[tuple[int, float]]:
        """Return `(step, consensus distance)` for each global average of differing replicas."""
        return self._run.distances

    @property
    def communication_seconds(self) -> float:
        """Return the seconds spent in exchanges, including the wait for other workers."""
        return self._run.communication_seconds

    @property
    def bytes_sent(self) -> int:
        """Return the number of payload bytes that this rank has sent."""
        return self._run.bytes_sent

    @property
    def state(self) -> dict:
        """Return the progress of the run, JSON-serializable: `{"step": …, "period": …}`.

        To continue a run in a new process, set it before `fit`, to the same value on every rank.
        `Checkpoint` does so. If it is not set, the step count is derived from `initial_epoch`, and
        an adaptive period starts again.

        Raises:
          ValueError: it is set to a value that no callback with this kind of `H` returns.
        """
        return self._run.snapshot

    @state.setter
    def state(self, state: dict):
        self._run.snapshot = state

    # ---- Called by `Checkpoint` -----------------------------------------------------------------

    @property
    def optimizer_state(self) -> str:
        """Return the argument `optimizer_state`."""
        return self._settings.optimizer_state

    @property
    def local(self) -> tuple[str, ...]:
        """Return the argument `local` as a tuple."""
        return tuple(self._settings.local)

    @property
    def in_fit(self) -> bool:
        """Return whether this callback is inside `fit`."""
        return self._fit is not None

    @property
    def stopped(self) -> bool:
        """Return whether all ranks have agreed to stop before the end of the epoch."""
        return self._fit is not None and self._fit.vote.is_agreed

    def request_stop(self):
        """Stop all ranks together, at the next global average or at the end of the epoch.

        One rank is enough to call it. A signal handler may call it at any time during training.
        """
        if self._fit is not None:
            self._fit.request_stop()

    def sync(self, where: str, value: Any = None) -> list:
        """Share a value with all ranks at a point of training; every rank must call it.

        Args:
          where: name of the point, for messages and errors.
          value: this rank's value, JSON-serializable. Default None.

        Returns:
          The values of all ranks, in rank order.

        Raises:
          RuntimeError: on every rank, if the ranks are at different points; or outside `fit`.
          WorkerLost: another worker was lost.
        """
        return self._in_training().sync(where, value)

    def average(self, doing: str) -> bool:
        """Average globally now, independently of the period; every rank must call it.

        Training then continues from the average. An adaptive period takes its next loss from the
        first batch after it.

        Args:
          doing: name of the exchange, for messages.

        Returns:
          Whether this rank took part. False if a worker was lost and the other ranks completed the
          average without this one.

        Raises:
          RuntimeError: outside `fit`.
          WorkerLost: another worker was lost.
        """
        return self._in_training().average(doing)

    def _in_training(self) -> Fit:
        if self._fit is None:
            raise RuntimeError(
                "GossipPGA exchanges only inside fit. Here fit has not begun or has ended, or a "
                "callback passed this GossipPGA to evaluate or predict inside fit. Remove it from "
                "that call."
            )
        return self._fit

    # ---- Called by Keras ------------------------------------------------------------------------

    def set_model(self, model):
        """Check the model and become the callback that drives it."""
        callback_list.check_model(model)
        super().set_model(model)
        # Keras calls this before on_train_begin, and also in a separate evaluate, which may follow
        # an interrupted fit. The validation inside fit does not call it.
        self._fit = None
        _driver[model] = weakref.ref(self)

    def on_train_begin(self, logs=None):
        """Agree with the other ranks on what to train, and start from rank 0's variables."""
        model = self.model
        if model is None:
            raise RuntimeError(
                "GossipPGA has no model. If you call its hooks yourself, call set_model(model) and "
                'set_params({"epochs": …, "steps": …}) before on_train_begin.'
            )
        self._session.enter_fit(preemption.code_of_caller("on_train_begin"))
        params = {"epochs": None, "steps": None, **(self.params or {})}
        if isinstance(self._session, ElasticSession):
            fit = GroupFit(model, params, self._run, self._session)
        else:
            fit = Fit(model, params, self._run, self._session)
        fit.report("at the start of training")
        siblings = callback_list.find(self)
        fit.callbacks = callback_facts.facts(siblings)
        fit.begin(self._problem(model, fit))
        self._fit = fit
        self._calls_last = siblings is not None
        if siblings is not None:
            siblings.call_last(fit)

    def _problem(self, model: keras.Model, fit: Fit) -> str | None:
        """Return why this rank cannot train, or None if it can."""
        if _driver[model]() is not self:
            return "fit received two GossipPGA callbacks; pass one."
        steps = fit.params["steps"]
        return (
            callback_list.problem_of_hooks(self.params)
            or (callback_facts.problem_of_rank(fit.callbacks) if self._session.size > 1 else None)
            or preflight.problem_of_rank(model, self._settings, self._session, steps)
        )

    def on_epoch_begin(self, epoch, logs=None):
        """Meet the other ranks and admit joining workers."""
        self._in_training().begin_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        """Gossip or average globally after an optimizer step."""
        fit = self._in_training()
        fit.end_batch(logs)
        if not self._calls_last:
            fit.after_batch()

    def on_test_begin(self, logs=None):
        """Put the averaged model in place for the validation inside `fit`."""
        if self._fit is not None:  # an evaluation outside fit exchanges nothing
            self._fit.begin_test()

    def on_test_end(self, logs=None):
        """Record that the validation is over."""
        if self._fit is not None:
            self._fit.end_test()

    def on_epoch_end(self, epoch, logs=None):
        """Replace logs by their means over ranks, and add this callback's own."""
        fit = self._in_training()
        fit.end_epoch(epoch, logs)
        if not self._calls_last:
            fit.after_epoch(epoch)

    def on_train_end(self, logs=None):
        """Average globally, so that all ranks return the same model."""
        fit, self._fit = self._in_training(), None
        fit.end()
        if not self._calls_last:
            fit.after_end()
