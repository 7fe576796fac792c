"""Train with Gossip-PGA in plain `model.fit`: the callback, its arguments and Keras' hooks."""

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

# Which callback drives a model: the last one that `fit` introduced to it.
_driver: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class GossipPGA(keras.callbacks.Callback):
    """Train one Keras model on all workers of the cluster with Gossip-PGA.

    Every worker runs plain `model.fit` on its own part of the data. After each optimizer step k
    (counted from 1 over all epochs and `fit` calls) the parameters x_i of rank i become

        x_i <- 1/n sum_j x_j          if k % H == 0      a global average
        x_i <- sum_j W[i, j] * x_j    otherwise          one gossip with the neighbors

    (Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021, Algorithm 1;
    parameters are averaged, not gradients.)

    Training starts from rank 0's variables: those of the model, also a `tf.Variable` that a layer
    holds and Keras does not know, and those of its optimizers. The states of random generators stay
    each rank's own. Validation inside `fit` runs on the averaged model, which callbacks at the end
    of that epoch see and save too; training then continues from the local one, or from weights that
    a callback has set. When training ends, a last global average leaves the same model on every
    rank. Global averages also average BatchNorm statistics and other floating-point or complex
    non-trainable variables; gossips do not. Integers and Booleans are never averaged. A single
    worker exchanges nothing.

    The model's optimizers are the one of `compile` and those that the model or its layers hold as
    attributes, also in lists and dicts (a GAN has two). One that is not built is built for all
    trainable variables of the model or layer that holds it. To save memory, build it for those that
    it trains: `model.d_optimizer.build(model.discriminator.trainable_variables)`.

    Layers with lookup tables or an `adapt` method that belong to the model must be adapted to the
    same data on every rank: to the whole dataset, before `cluster.shard`. This holds too where they
    are mapped over the dataset, which this callback does not see.

    Take the learning rate that one process needs for the batch of all n workers together. With SGD
    use it as it is. With Adam and AdamW use sqrt(n) times as much, and divide AdamW's weight decay
    by sqrt(n): on its smaller, noisier batch a worker takes steps up to sqrt(n) times shorter, and
    averaging leaves them so, whatever `H` and `optimizer_state` (docs/results/optimizers.md).

    On a worker with several devices, build and compile the model in the scope of
    `cluster.strategy`: all devices compute each step, and the first one exchanges for all.

    If one rank sets `model.stop_training`, all ranks stop together: at the end of the epoch, or, if
    it was set after a batch (`TerminateOnNaN`), at the next global average within it.

    Put it first in the list of callbacks. `logs` are means over ranks after it, so that callbacks
    that follow them (`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint(save_best_only=True)`)
    decide alike on all ranks. Those, and all that set weights, must be given to every rank; those
    that write files, to rank 0 alone. After all callbacks of `fit` the ranks compare their models.
    `SwapEMAWeights`, which exchanges weights around validation, cannot be combined with it.

    Args:
      H: the period of global averages in steps, >= 1. `H=1` is Parallel SGD; `None` never averages
        globally during training (Gossip SGD); an `AdaptivePeriod` follows the training loss
        (Gossip-AGA). Default 6, as in the paper.
      topology: who gossips with whom: a name in `pga.topology.BY_NAME`, or a `Topology`.
        `"disconnected"` is Local SGD. Default `"one_peer_exponential"`: in each step a worker sends
        one message and receives one, for any number of workers.
      optimizer_state: what global averages of training do with the optimizer's slots, which are its
        floating-point variables other than scalars: momentum, Adam's moments. `"local"`: each rank
        keeps its own, as the authors' library does. `"average"`: they are averaged too, which sends
        as many bytes again for each slot. `"reset"`: they are set to zero if there are several
        workers. With Adam this acts as a learning rate several times as high: its next steps are
        at first 3, after a dozen steps 7 times as long, since its step count is kept. (Wang et al.,
        "SlowMo", ICLR 2020, compares these.) Default `"local"`.
      overlap: whether a gossip runs during the next step's computation instead of after its own
        step. It mixes the parameters that step k left, and its effect is added after the update u
        of step k+1: x_k+1 <- x_k + u(x_k) + (sum_j W[i, j] * x_k,j - x_k), which is D-PSGD's
        recursion (Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?",
        NeurIPS 2017, Algorithm 1). Global averages stay exact and wait. The gossip right before a
        global average would have no effect and is skipped; with `H=2` that is every gossip. Needs
        memory for one more copy of the parameters. Default False.
      wire_dtype: how gossips encode parameters. `"float32"`: in their own dtype. `"bfloat16"`,
        `"int8"`: as differences to the last global average, in half or a quarter of the bytes (see
        `tf_gossip_pga.exchange.wire`); needs memory for one more copy of the parameters. Global
        averages are always exact. Default `"float32"`.
      timeout_s: seconds that an exchange waits for the other workers before it raises `WorkerLost`;
        ten times as long at the start and between epochs. Much earlier, a line on standard error
        says which worker it waits for, and it does not wait for a worker that has ended or left
        `fit`. Default 300.
      on_worker_lost: `"raise"`: a lost worker ends all others with `WorkerLost`. `"continue"`: the
        surviving workers continue without it, in the same `fit`, or in the next one where it was
        lost between two. They agree
        on a new list of members, average once, and gossip on a graph for their number (of the same
        name, or else one-peer exponential). No step is lost or repeated. The lost worker's part of
        the data is lost with it, the learning rate stays the same, and the lowest surviving rank
        becomes the chief. A worker that has died or left `fit` is lost at once, a silent one after
        75 seconds, one that answers but does not arrive after 11 times `timeout_s`. Of two sides
        that cannot reach each other the larger continues. A lost worker that is started again
        (`initialize(join=True)`) joins where an epoch begins. Default `"raise"`.
      min_workers: with `"continue"`, how many workers must survive; with fewer, all end. Default 1.
      local: names of variables, or of layers for all of their variables, that each rank keeps for
        itself, such as a queue of features of its own examples: `local=["feature_queue"]`. They are
        neither broadcast nor averaged, nor are such layers' tables compared, and each rank's
        checkpoint has its own. A name is a part of a variable's `path`. The optimizer's slots of
        such a variable are treated as all others. Default `()`.

    Attributes:
      step: number of completed batches over the whole run.
      gossip_steps: number of steps since this callback was made that ended with a gossip, or with
        nothing (disconnected, or skipped by `overlap`).
      global_steps: number of steps that ended with a global average.
      distances: list of `(step, consensus distance)`, one for every global average of replicas that
        may differ, also for validation, checkpoints and at the end; extended when an epoch or the
        training ends.
      communication_seconds: time spent in exchanges, including waiting for other workers, from the
        first step on.
      bytes_sent: bytes of payload that this rank has sent.

    Logs at the end of an epoch, also in `History`. Every number that Keras and earlier callbacks
    have logged, such as `loss` or `val_accuracy`, becomes its mean over ranks; so does every array
    of up to 100,000 numbers whose shape is the same on all. Added are
      consensus_distance: root mean square distance of the replicas from their mean, divided by the
        norm of the mean, at the epoch's last global average; NaN in an epoch without one, 0 for a
        single worker.
      global_averages: number of steps of the epoch that ended with one.
      communication_seconds: of the epoch.
      H: the present period, if it is adaptive.

    Raises:
      ValueError: at construction for a bad argument; when training starts, on every rank, if the
        ranks' models, settings or callbacks differ or a rank cannot train.
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called; on every
        rank, if the ranks take different ways, or another callback sets the weights of some ranks
        alone when training ends.
      TypeError: the model is not one of Keras 3.
      WorkerLost: another worker died, left `fit` or did not answer.

    Example:

        import tf_gossip_pga as pga

        cluster = pga.initialize()          # before anything else of TensorFlow
        dataset = cluster.shard(dataset).shuffle(10_000).batch(128 // cluster.size)
        adam = keras.optimizers.Adam(1e-3 * cluster.size**0.5)
        model.compile(adam, "sparse_categorical_crossentropy")
        model.fit(dataset, epochs=5, callbacks=[pga.GossipPGA(H=6)])
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
        self._fit: Fit | None = None  # while training
        self._calls_last = False  # whether the fit's own last callback follows all others

    @property
    def step(self) -> int:
        """Return the number of completed batches, over the whole run."""
        return self._run.step

    @property
    def gossip_steps(self) -> int:
        """Return how many steps ended with a gossip, or with nothing."""
        return self._run.gossip_steps

    @property
    def global_steps(self) -> int:
        """Return how many steps ended with a global average."""
        return self._run.global_steps

    @property
    def distances(self) -> list[tuple[int, float]]:
        """Return `(step, consensus distance)` of each global average."""
        return self._run.distances

    @property
    def communication_seconds(self) -> float:
        """Return the time spent in exchanges, in seconds."""
        return self._run.communication_seconds

    @property
    def bytes_sent(self) -> int:
        """Return the bytes of payload that this rank has sent."""
        return self._run.bytes_sent

    @property
    def state(self) -> dict:
        """Return where the run stands, as JSON can hold it: `{"step": …, "period": …}`.

        A callback in a new process continues from there once this is set, before `fit` and to the
        same value on every rank. Without it the step count is derived from the epoch, and an
        adaptive period starts again.

        Raises:
          ValueError: when set to anything that a callback with this kind of `H` does not return.
        """
        return self._run.snapshot

    @state.setter
    def state(self, state: dict):
        self._run.snapshot = state

    # ---- `Checkpoint` calls these ---------------------------------------------------------------

    @property
    def optimizer_state(self) -> str:
        """Return the argument of this name."""
        return self._settings.optimizer_state

    @property
    def local(self) -> tuple[str, ...]:
        """Return the argument of this name."""
        return tuple(self._settings.local)

    @property
    def in_fit(self) -> bool:
        """Return whether training has begun and not ended."""
        return self._fit is not None

    @property
    def stopped(self) -> bool:
        """Return whether all ranks have agreed to stop in mid-epoch."""
        return self._fit is not None and self._fit.vote.is_agreed

    def request_stop(self):
        """Stop all ranks together, at the next global average or at the end of the epoch.

        For one rank alone. A signal handler may call it at any moment of training.
        """
        if self._fit is not None:
            self._fit.request_stop()

    def sync(self, where: str, value: Any = None) -> list:
        """Return what all ranks pass, in rank order; all of them must call it.

        Args:
          where: the point of training, for workers that wait and for errors.
          value: what this rank tells the others, as JSON can hold it.

        Raises:
          RuntimeError: on every rank, if the ranks stand at different points.
        """
        return self._in_training().sync(where, value)

    def average(self, doing: str) -> bool:
        """Average globally, whatever the period says; all ranks must call it.

        What follows, with all weights and schedules, is as if the run began here.

        Returns:
          Whether this rank took part; not if it has lost the average with a worker.
        """
        return self._in_training().average(doing)

    def _in_training(self) -> Fit:
        if self._fit is None:
            raise RuntimeError(
                "GossipPGA exchanges only inside of fit, which has not begun or has ended; or a "
                "callback has passed this GossipPGA to evaluate or predict inside of fit. Leave it "
                "out there."
            )
        return self._fit

    # ---- Keras calls these ----------------------------------------------------------------------

    def set_model(self, model):
        callback_list.check_model(model)
        super().set_model(model)
        # fit calls this before on_train_begin, but so does an evaluate of its own, which may follow
        # a fit that was interrupted; the validation inside fit does not.
        self._fit = None
        _driver[model] = weakref.ref(self)

    def on_train_begin(self, logs=None):
        model = self.model
        if model is None:
            raise RuntimeError(
                "GossipPGA has no model yet: where you call its hooks yourself, call "
                "set_model(model) and set_params before on_train_begin."
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
        self._in_training().begin_epoch(epoch)

    def on_train_batch_end(self, batch, logs=None):
        fit = self._in_training()
        fit.end_batch(logs)
        if not self._calls_last:
            fit.after_batch()

    def on_test_begin(self, logs=None):
        if self._fit is not None:  # an evaluation outside of fit exchanges nothing
            self._fit.begin_test()

    def on_test_end(self, logs=None):
        if self._fit is not None:
            self._fit.end_test()

    def on_epoch_end(self, epoch, logs=None):
        fit = self._in_training()
        fit.end_epoch(epoch, logs)
        if not self._calls_last:
            fit.after_epoch(epoch)

    def on_train_end(self, logs=None):
        fit, self._fit = self._in_training(), None
        fit.end()
        if not self._calls_last:
            fit.after_end()
