"""Train with Gossip-PGA in plain `model.fit`: the callback, its arguments, and its Keras hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.algorithm.outer import Outer
from tf_gossip_pga.algorithm.schedule import ChangingPeriod
from tf_gossip_pga.exchange import process
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import callback_facts, callback_list, driver, preemption, preflight
from tf_gossip_pga.training.fit import Fit
from tf_gossip_pga.training.group_fit import GroupFit
from tf_gossip_pga.training.run_state import RunState
from tf_gossip_pga.training.settings import Settings


class GossipPGA(keras.callbacks.Callback):
    """Train one Keras model on several workers with Gossip-PGA, inside plain `model.fit`.

    Each worker trains on its own part of the data. Optimizer steps are numbered from 1 across all
    epochs and `fit` calls. After step k, the parameters x_i of rank i become::

        x_i <- 1/n sum_j x_j          if k % H == 0: a global average
        x_i <- sum_j W[i, j] * x_j    otherwise, if k % gossip_every == 0: a gossip

    n is the number of workers, and W is the topology's mixing matrix for this step. Workers average
    parameters, not gradients. A single worker exchanges nothing, but adds the same logs. Source:
    Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021, Algorithm 1.

    **Requirements.** All ranks must pass the same arguments, build the same model, and train for
    the same number of epochs and batches per epoch. Build the model before `fit`, compile it with
    `steps_per_execution=1`, and pass `steps_per_epoch` if the length of the dataset is unknown. The
    ranks check these requirements before the first step.

    **Variables.** The variables of the model and its optimizers are exchanged as follows:

    ===================================  ============  ======  ==============
    variable                             start of fit  gossip  global average
    ===================================  ============  ======  ==============
    trainable                            rank 0's      mixed   mean
    non-trainable, floating-point        rank 0's      kept    mean
    optimizer slots, such as momentum    rank 0's      kept    (1)
    integers, Booleans, step counters    rank 0's      kept    kept
    random generators                    kept          kept    kept
    variables named in `local`           kept          kept    kept
    ===================================  ============  ======  ==============

    (1) See `optimizer_state`. Kept: each rank keeps its own value. Complex variables are treated
    like floating-point ones. A `tf.Variable` that a layer holds but Keras does not track is treated
    like a tracked one. After a global average, all averaged variables are bit-identical everywhere.

    **Validation and the end of fit.** Validation inside `fit` runs on the averaged model. In an
    epoch with validation, callbacks that run at the end of the epoch also see and save the averaged
    model. Training then continues from each rank's own model, or from the weights that a callback
    has set. When training ends, a final global average gives every rank the same model. After all
    callbacks have run, the ranks compare their models, and average them once more if they differ.

    **Other callbacks.** Put `GossipPGA` first in the list. Callbacks after it read logs that are
    averaged over ranks, so they make the same decision on every rank. Pass callbacks that stop
    training or set learning rates or weights (`EarlyStopping`, `ReduceLROnPlateau`) on every rank,
    with the same arguments. Pass callbacks that write files (`ModelCheckpoint`, `CSVLogger`) on
    rank 0 only, but `BackupAndRestore` on every rank, each with its own directory. Do not use
    `SwapEMAWeights`: like `GossipPGA`, it replaces the weights for validation. If a callback stops
    training on any rank, all ranks stop together at the end of the epoch or, if the callback acts
    after a batch (`TerminateOnNaN`), at the next global average.

    **Learning rate.** Start from the learning rate of a single process that trains on the batches
    of all n workers together. For Adam and AdamW, multiply it by sqrt(n); for AdamW, also divide
    the weight decay by sqrt(n). For SGD, change nothing. See docs/guides/learning-rate.md.

    **Optimizers.** A model's optimizers are the one passed to `compile` and any in attributes of
    the model or its layers, including inside lists and dicts. (A GAN has two optimizers.)
    `GossipPGA` builds an unbuilt optimizer for all trainable variables of the model or layer that
    holds it. To save memory, build it yourself for only the variables that it trains:
    `model.d_optimizer.build(model.discriminator.trainable_variables)`.

    **Adapted layers.** Adapt every layer that has an `adapt` method or a lookup table to the same
    data on every rank: the whole dataset, before `cluster.shard`. The ranks compare the model's
    adapted layers before the first step. They cannot compare layers used only in `dataset.map`.

    **Several devices.** On a worker with several devices, build and compile the model inside
    `cluster.strategy.scope()`. All devices compute each step. The first device exchanges for all.

    Args:
      H: number of steps between global averages, at least 1. `H=1` is Parallel SGD. `None` is
        Gossip SGD, which has no global averages during training. An `AdaptivePeriod` adapts the
        period to the training loss (Gossip-AGA). `"auto"` or an `AutoPeriod` chooses `H` and
        `gossip_every` from measured times and distances. Default 6, as in the paper.
      topology: which ranks gossip with each other: a name in `pga.topology.BY_NAME` or a
        `Topology`. `"disconnected"` is Local SGD. Default None: `"one_peer_exponential"`, or over
        NCCL `"hypercube"` for 2, 4, 8, … workers. Each worker then sends one message per step.
      gossip_every: number of steps from one gossip to the next, at least 1 and, if it is not 1,
        less than a fixed `H`. Gossips use the topology's rounds in turn. Default 1.
      optimizer_state: what a global average does with the optimizer's slots, that is, its
        non-scalar floating-point variables. Global averages for validation and at the end of
        training leave the slots unchanged. Wang et al. ("SlowMo", ICLR 2020) compare the three
        options. Default `"local"`.

        - `"local"`: each rank keeps its own slots, as in the library by the paper's authors.
        - `"average"`: average the slots too. Each kind of slot has as many bytes as the parameters.
        - `"reset"`: set the slots to zero if there are several workers. With Adam, this acts like a
          learning rate several times as high: because Adam keeps its step count, its next steps are
          at first 3 times as long as usual, and 7 times as long after a dozen steps.
      outer_optimizer: a `pga.Outer`, which takes a step with the result of each global average at
        `k % H == 0`, as in SlowMo and DiLoCo. Default None: the parameters become that result.
      overlap: whether each gossip runs in the background until the next one is due. A gossip mixes
        the parameters that step k left, and the resulting change is added after the update u of
        step k+1: x_k+1 <- x_k + u(x_k) + (sum_j W[i, j] * x_k,j - x_k). This is the recursion of
        D-PSGD (Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?",
        NeurIPS 2017, Algorithm 1). With `gossip_every=g`, the change is added after step k+g.
        Global averages remain exact and do not overlap. The last gossip before a global average
        would have no effect and is skipped; with `H=2`, every gossip is skipped. Overlap
        needs memory for one more copy of the parameters. Default False.
      wire_dtype: how gossips encode parameters. `"float32"` sends each parameter in its own dtype.
        `"bfloat16"` sends differences from the last global average in half the bytes of float32,
        and `"int8"` in a quarter (see `tf_gossip_pga.exchange.wire`). Both need memory for one more
        copy of the parameters. Global averages are always exact. Default `"float32"`.
      timeout_s: how many seconds an exchange waits for another worker. Exchanges at the start of
        `fit`, between epochs, and around validation and checkpoints wait ten times as long. Long
        before the deadline, a message on standard error names the missing worker. Default 300.
      on_worker_lost: what the other workers do when a worker is lost: `"raise"` ends `fit` with
        `WorkerLost`, and `"continue"` continues `fit` without the lost worker. Default `"raise"`.

        ==========================================  ===============  ===============================
        a worker is lost if it                      with `"raise"`   with `"continue"`
        ==========================================  ===============  ===============================
        ends or leaves `fit`                        when detected    when detected
        does not answer (it is stopped or cut off)  after 60 s       after 75 s
        answers but does not reach the exchange     at the deadline  deadline + 10 times `timeout_s`
        ==========================================  ===============  ===============================

        With `"continue"`, the surviving workers agree on a new list of members, average their
        models once, and gossip on a topology of the new size: the one with the same name if it
        exists for that size, otherwise one-peer exponential. No step is lost or repeated. The lost
        worker's data is no longer used, the learning rate stays the same, and the lowest surviving
        rank becomes the chief. If a worker is lost between two `fit` calls, the next `fit` starts
        without it. If the network splits, the larger side continues; if the sides are equal, the
        one with the lowest rank does. A restarted worker joins at the beginning of an epoch; see
        `initialize`.
      min_workers: minimum number of workers that must survive with `"continue"`, from 1 to the
        number of workers. If fewer survive, `fit` ends with `WorkerLost` on all of them. Default 1.
      local: names of variables or layers that each rank keeps to itself, such as a queue of
        features of its own examples: `local=["feature_queue"]`. The name of a layer stands for all
        of its variables. These variables are neither broadcast nor averaged, and each rank saves
        its own in checkpoints. Ranks do not compare lookup tables of local layers. A name matches a
        variable whose `path`, or a component of it, is that name. Slots of a local variable are
        treated like all slots. Default `()`.

    **Logs.** At the end of each epoch, every number in `logs` and `History` (such as `loss` or
    `val_accuracy`) from Keras or a callback before `GossipPGA` becomes its mean over ranks. So does
    every array of up to 100,000 numbers with the same shape on all ranks. These logs are added:

    - `consensus_distance`: root mean square distance of the replicas from their mean, divided by
      the norm of the mean, just before the epoch's last global average. NaN if the epoch has no
      global average; 0 for a single worker.
    - `global_averages`: number of steps in the epoch that ended with a global average.
    - `communication_seconds`: seconds spent in exchanges during the epoch.
    - `H`: the current period, if it changes.

    Raises:
      ValueError: at construction, if an argument is out of range. When training starts, on every
        rank, if the ranks differ in model, settings, or callbacks, or if a rank cannot train.
      TypeError: if `topology` is not a name or a `Topology`, or the model is not a Keras 3 model.
      RuntimeError: if `TF_CONFIG` names several workers but `initialize` was not called. On every
        rank, if the ranks take different paths through training, or if a callback sets the weights
        of only some ranks when training ends.
      WorkerLost: if another worker ended, left `fit`, or did not answer (see `on_worker_lost`).

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
        H: int | Literal["auto"] | ChangingPeriod | None = 6,  # noqa: N803
        topology: str | Topology | None = None,
        gossip_every: int = 1,
        optimizer_state: str = "local",
        outer_optimizer: Outer | None = None,
        overlap: bool = False,
        wire_dtype: str = "float32",
        timeout_s: float = 300.0,
        on_worker_lost: str = "raise",
        min_workers: int = 1,
        local: Sequence[str] = (),
    ):
        """Check the arguments without exchanging anything. Exchanges begin in `fit`."""
        super().__init__()
        self._session = process.active()
        self._settings = Settings(
            H=H,
            topology=topology,
            gossip_every=gossip_every,
            optimizer_state=optimizer_state,
            outer_optimizer=outer_optimizer,
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
        self._companions: list[keras.callbacks.Callback] | None = None  # None: not created yet

    @property
    def step(self) -> int:
        """Return the number of completed batches in the whole run."""
        return self._run.step

    @property
    def gossip_steps(self) -> int:
        """Return the number of steps that ended with a gossip or without an exchange.

        Steps are counted since this callback was created. There is no exchange if the topology is
        disconnected, if `overlap` skips the gossip, or because of `gossip_every`.
        """
        return self._run.gossip_steps

    @property
    def global_steps(self) -> int:
        """Return the number of steps that ended with a global average."""
        return self._run.global_steps

    @property
    def distances(self) -> list[tuple[int, float]]:
        """Return a list of `(step, consensus distance)`, one for each global average.

        Averages for validation, for checkpoints and at the end of training count too, but not
        averages of replicas that are known to be equal. An entry appears at the end of the epoch or
        of training at the latest.
        """
        return self._run.distances

    @property
    def communication_seconds(self) -> float:
        """Return the seconds spent in exchanges, including the wait for other workers.

        The start of `fit`, the wait after its first batch, and waits for checkpoints are excluded.
        """
        return self._run.communication_seconds

    @property
    def bytes_sent(self) -> int:
        """Return the number of payload bytes that this rank has sent."""
        return self._run.bytes_sent

    @property
    def state(self) -> dict:
        """Return the progress of the run as a JSON-serializable dict, `{"step": …, "period": …}`.

        To continue a run in a new process, set this property to the same value on every rank before
        `fit`. `Checkpoint` does this automatically. If you set nothing, the step count is derived
        from `initial_epoch`, and a period that changes starts over. The state of an outer optimizer
        is not included.

        Raises:
          ValueError: if set to a value that is not the state of a callback with this kind of `H`.
        """
        return self._run.snapshot

    @state.setter
    def state(self, state: dict):
        self._run.snapshot = state

    # ---- Called by `Checkpoint` -----------------------------------------------------------------

    @property
    def run(self) -> RunState:
        """Return the settings and the state of the run, which outlive a `fit`."""
        return self._run

    @property
    def in_fit(self) -> bool:
        """Return whether this callback is currently inside `fit`."""
        return self._fit is not None

    @property
    def stopped(self) -> bool:
        """Return whether all ranks have agreed to stop before the end of the epoch."""
        return self._fit is not None and self._fit.vote.is_agreed

    def request_stop(self):
        """Stop all ranks at the next global average or epoch end. A single worker stops at once.

        A call on one rank is enough. A signal handler may call this at any time during training.
        """
        if self._fit is not None:
            self._fit.request_stop()

    def sync(self, where: str, value: Any = None) -> list:
        """Share a value with all ranks at a sync point. Every rank must call this method.

        Args:
          where: name of the sync point, for log and error messages.
          value: this rank's value, JSON-serializable. Default None.

        Returns:
          The values of all ranks, in rank order.

        Raises:
          RuntimeError: on every rank, if the ranks are at different points of training. Also if
            called outside `fit`.
          WorkerLost: another worker was lost.
        """
        return self._in_training().sync(where, value)

    def average(self, doing: str) -> bool:
        """Average globally now, regardless of the period. Every rank must call this method.

        Training then continues from the average. An adaptive period measures its next loss on the
        first batch after the average.

        Args:
          doing: name of the exchange, for log and error messages.

        Returns:
          Whether this rank took part. False if a worker was lost, and the surviving ranks had
          already completed the average without this rank.

        Raises:
          RuntimeError: if called outside `fit`.
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
        """Check the model, and let this callback drive its training."""
        callback_list.check_model(model)
        super().set_model(model)
        # Forget a fit that an exception interrupted. This never forgets a running fit: Keras calls
        # set_model before on_train_begin and in evaluate, but not for validation inside fit.
        self._fit = None
        driver.take(model, self)

    def on_train_begin(self, logs=None):
        """Agree with the other ranks on what to train, and copy rank 0's variables."""
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
        siblings, problem = callback_list.find(self), None
        if siblings is not None and self._companions is None:
            self._companions, problem = callback_list.new_companions()
        fit.callbacks = callback_facts.facts(siblings, self._companions or ())
        fit.begin(self._problem(model, fit) or problem)
        self._fit = fit
        self._calls_last = siblings is not None
        if siblings is not None:
            siblings.call_last(fit, model, params, self._companions or ())

    def _problem(self, model: keras.Model, fit: Fit) -> str | None:
        """Return why this rank cannot train, or None if it can."""
        if driver.of(model) is not self:
            return "fit received two GossipPGA callbacks; pass one."
        steps = fit.params["steps"]
        return (
            callback_list.problem_of_hooks(self.params)
            or (callback_facts.problem_of_rank(fit.callbacks) if self._session.size > 1 else None)
            or preflight.problem_of_rank(model, self._settings, self._session, steps)
        )

    def on_epoch_begin(self, epoch, logs=None):
        """Sync with the other ranks, and admit joining workers."""
        self._in_training().begin_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        """Gossip or average globally after an optimizer step."""
        fit = self._in_training()
        fit.end_batch(logs)
        if not self._calls_last:
            fit.after_batch()

    def on_test_begin(self, logs=None):
        """Switch to the averaged model for validation inside `fit`."""
        if self._fit is not None:  # an evaluation outside fit exchanges nothing
            self._fit.begin_test()

    def on_test_end(self, logs=None):
        """Record that validation has ended."""
        if self._fit is not None:
            self._fit.end_test()

    def on_epoch_end(self, epoch, logs=None):
        """Replace the logs with their means over ranks, and add this callback's own logs."""
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
