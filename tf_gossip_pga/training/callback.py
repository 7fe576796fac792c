"""The Keras face: counts steps, asks the schedule, tells the averager, writes logs."""

import contextlib
import math
import operator
import time
import weakref

import keras

from tf_gossip_pga.algorithm import schedule
from tf_gossip_pga.algorithm import topology as topology_lib
from tf_gossip_pga.errors import TrainingFinished, ViewChanged
from tf_gossip_pga.exchange import averaging, collectives
from tf_gossip_pga.exchange import wire as wire_lib
from tf_gossip_pga.training import agreement, preemption

# How much longer than for an exchange in mid-epoch ranks wait for one another where they come from
# different work: reading data, tracing, compiling, validating, writing a checkpoint.
_PATIENCE = 10

# What may become of the optimizer's slots (momentum and the like) at a global average.
_OPTIMIZER_STATES = ("local", "average", "reset")

# Which callback drives a model: the last one that `fit` introduced to it.
_driver: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class GossipPGA(keras.callbacks.Callback):
    """Trains one Keras model on all workers of the cluster with Gossip-PGA.

    Every worker runs plain `model.fit` on its own part of the data. After each optimizer step k
    (counted from 1 over all epochs and `fit` calls) the parameters x_i of rank i become

        x_i <- 1/n sum_j x_j          if k % H == 0      a global average
        x_i <- sum_j W[i, j] * x_j    otherwise          one gossip with the neighbours

    (Chen et al., "Accelerating Gossip SGD with Periodic Global Averaging", ICML 2021, Algorithm 1;
    parameters are averaged, not gradients.)

    Training starts from rank 0's weights and optimizer variables. Validation inside `fit` sees the
    averaged model; training then goes on from the local one. When training ends, a last global
    average leaves the same model on every rank. BatchNorm statistics and other floating-point
    non-trainable variables are averaged at global averages only; integer variables and the states
    of random generators are never touched. With a single worker nothing is exchanged.

    Where a worker has several devices, the model is built and compiled in the scope of
    `cluster.strategy`: all of them compute each step, and the first one exchanges for all.

    Where one rank sets `model.stop_training`, all stop together: at the end of the epoch, or, if it
    was set after a batch (`TerminateOnNaN`), at the next global average within it. The callback
    that sets it comes before this one in the list, or follows `logs`, which are the same on all
    ranks after it.

    A callback that sets weights when training ends, `EarlyStopping(restore_best_weights=True)`,
    comes before this one in the list. One that swaps weights around validation (`SwapEMAWeights`)
    cannot be combined with it.

    Args:
      H: the period of global averages in steps, >= 1. `H=1` is Parallel SGD; `None` never averages
        globally during training (Gossip SGD); an `AdaptivePeriod` lets it follow the training loss
        (Gossip-AGA). Default 6, the paper's.
      topology: who gossips with whom: a name in `pga.topology.BY_NAME`, or a `Topology`.
        `"disconnected"` makes Local SGD. Default `"one_peer_exponential"`: each step one message
        sent and one received, whatever the number of workers.
      optimizer_state: what becomes, at the global averages of training, of the optimizer's slots,
        its floating-point variables other than scalars: momentum, Adam's moments. `"local"`: each
        rank keeps its own, as the authors' library does. `"average"`: they are averaged too, which
        sends as much again for each slot. `"reset"`: they are set to zero, with several workers;
        Adam's next steps are then at first 3, after a dozen 7 times as long, since its step count
        goes on. (Wang et al., "SlowMo", ICLR 2020, compares these.) Default `"local"`.
      overlap: whether a gossip happens during the next step's computation rather than after its own
        step's. It mixes what step k left, and its effect is added after step k+1's optimizer step
        u: x_k+1 <- x_k + u(x_k) + (sum_j W[i, j] * x_k,j - x_k), which is D-PSGD's recursion (Lian
        et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017,
        Algorithm 1). Global averages stay exact and wait; the gossip that one would undo, of the
        step before it, is left out: with `H=2` that is all of them. One more copy of the
        parameters. Default False.
      wire_dtype: in what form gossips send parameters. `"float32"`: in their own type.
        `"bfloat16"`, `"int8"`: the differences to the last global average in half or a quarter of
        the bytes, see `tf_gossip_pga.exchange.wire`; one more copy of the parameters. Global
        averages are always exact. Default `"float32"`.
      timeout_s: seconds that an exchange waits for the other workers before it raises `WorkerLost`;
        ten times that at the start, and between epochs. It says much earlier, on standard error,
        whom it waits for, and it waits no longer for one that has ended or left `fit`. Default 300.
      on_worker_lost: `"raise"`: a lost worker ends all others with `WorkerLost`. `"continue"`: from
        the first step on they go on without it, in the same `fit`: those that are left agree on
        who they are, average once, and gossip on a graph for so many (of the same name, or else
        one-peer exponential); no step is lost or done again. The lost worker's part of the data is
        lost with it, the learning rate stays as it is, and the lowest rank left becomes the chief.
        A worker that has died or left `fit` is lost at once, a silent one after 75 seconds, one
        that answers but does not come after ten times `timeout_s`; of two sides that cannot reach
        each other the larger goes on. One that is started again to join them
        (`initialize(join=True)`) is taken in where an epoch begins. Default `"raise"`.
      min_workers: with `"continue"`, how many must be left, or all end. Default 1.

    Attributes:
      step: number of completed batches, over the whole run.
      gossip_steps: how many of them ended with a gossip, or with nothing (disconnected, or left out
        by `overlap`), since this callback was made; the like of what follows.
      global_steps: how many of them ended with a global average.
      distances: list of `(step, consensus distance)`, one for every global average of replicas that
        may differ, also for validation, checkpoints and at the end; extended when an epoch or the
        training ends.
      communication_seconds: time spent in exchanges, waiting for other workers included, from the
        first step on.
      bytes_sent: bytes of payload this rank has sent.

    Logs at the end of an epoch, in `History` too. Whatever number Keras and earlier callbacks have
    put there, `loss` or `val_accuracy`, becomes its mean over ranks; added are
      consensus_distance: root mean square distance of the replicas from their mean, divided by the
        norm of the mean, at the epoch's last global average; NaN in an epoch without one.
      global_averages: number of steps of the epoch that ended with one.
      communication_seconds: of the epoch.
      H: the present period, where it is adaptive.

    Raises:
      ValueError: at construction for a bad argument; when training starts, on every rank, where the
        ranks' models or settings differ or a rank cannot train.
      RuntimeError: `TF_CONFIG` names several workers, but `initialize` was not called.
      WorkerLost: another worker died, left `fit` or did not answer.

    Example:

        import tf_gossip_pga as pga

        cluster = pga.initialize()          # first of all
        dataset = cluster.shard(dataset).shuffle(10_000).batch(32)
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(dataset, epochs=5, callbacks=[pga.GossipPGA(H=6)])
    """

    def __init__(
        self,
        H=6,  # noqa: N803
        topology="one_peer_exponential",
        optimizer_state="local",
        overlap=False,
        wire_dtype="float32",
        timeout_s=300.0,
        on_worker_lost="raise",
        min_workers=1,
    ):
        super().__init__()
        self._schedule = schedule.resolve(H)
        self._adaptive = isinstance(self._schedule, schedule.AdaptiveSchedule)
        if optimizer_state not in _OPTIMIZER_STATES:
            raise ValueError(
                f"optimizer_state must be one of {', '.join(map(repr, _OPTIMIZER_STATES))}; "
                f"received {optimizer_state!r}."
            )
        self._optimizer_state = optimizer_state
        self._overlap = bool(overlap)
        self._wire_dtype = wire_dtype
        self._wire = wire_lib.resolve(wire_dtype)
        self._collectives = collectives.active()
        self._cluster = self._collectives.cluster
        self._wanted_topology = topology
        self._topology = topology_lib.resolve(topology, self._collectives.size)
        number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
        if not number or not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be a number of seconds > 0, received {timeout_s!r}.")
        self._timeout_s = float(timeout_s)
        if on_worker_lost not in ("raise", "continue"):
            raise ValueError(
                f"on_worker_lost must be 'raise' or 'continue', received {on_worker_lost!r}."
            )
        whole = isinstance(min_workers, int) and not isinstance(min_workers, bool)
        if not whole or not 1 <= min_workers <= self._collectives.size:
            raise ValueError(
                "min_workers must be a whole number, from 1 to the number of workers, "
                f"{self._collectives.size}; received {min_workers!r}."
            )
        self._least_workers = min_workers if on_worker_lost == "continue" else None

        self.step = 0
        self.gossip_steps = 0
        self.global_steps = 0
        self.distances: list[tuple[int, float]] = []
        self.communication_seconds = 0.0
        self._bytes_of_past_fits = 0
        self._averager: averaging.Averager | None = None
        self._digest = ""  # of what must be equal on all ranks
        self._training = False
        self._first_epoch = True  # of this fit; the same for its first batch
        self._first_batch = True
        self._epoch = 0  # counted from 1
        self._batches = 0  # of this epoch
        self._at_epoch_begin = (0, 0, 0.0)
        self._in_consensus = False  # all replicas are bit-identical at this moment
        self._local = None  # this rank's own weights, while it validates the averaged ones
        self._unreported: list[tuple[int, tuple[float, float]]] = []
        self._wants_to_stop = False  # this rank, in mid-epoch
        self._stopped = False  # all ranks, in mid-epoch
        self._divided = False  # a worker was lost, and those left have not been united since
        self._met: list[dict] = []  # what all told at the last meeting
        self._votes = None  # a variable, > 0 after a global average where a rank wants to stop
        # For an adaptive period alone:
        self._was_global = True  # the step before this one; a fit begins in consensus, too
        self._losses = (0.0, 0.0)  # Keras' sum of losses and its weight, where a batch began
        self._loss = math.nan  # of the first batch after a global average
        self._averaged_loss = None  # a variable that takes part in the global averages

    @property
    def bytes_sent(self) -> int:
        """Bytes of payload this rank has sent."""
        return self._bytes_of_past_fits + (self._averager.bytes_sent if self._averager else 0)

    @property
    def state(self) -> dict:
        """Where the run stands, as JSON can hold it: `{"step": …, "period": …}`.

        A callback in a new process goes on from there once this is set, before `fit` and on every
        rank alike. (Without it the step count is the epoch's, and an adaptive period begins anew.)

        Raises:
          ValueError: when set to anything that a callback with this kind of `H` does not return.
        """
        return {"step": self.step, "period": self._schedule.state if self._adaptive else None}

    @state.setter
    def state(self, state: dict):
        try:
            step, period = operator.index(state["step"]), state["period"]
            if step < 0 or (self._adaptive and operator.index(period["last"]) > step):
                raise ValueError
            if self._adaptive:
                self._schedule.state = period
            elif period is not None:
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                "state must be what the state of a GossipPGA with the same kind of H was, "
                f"{self.state!r} for one; received {state!r}."
            ) from None
        self.step = step

    # ---- `Checkpoint` calls these ---------------------------------------------------------------

    @property
    def optimizer_state(self) -> str:
        """As it was given."""
        return self._optimizer_state

    @property
    def in_fit(self) -> bool:
        """Whether training has begun and not ended."""
        return self._training

    @property
    def stopped(self) -> bool:
        """Whether all ranks have agreed to stop in mid-epoch."""
        return self._stopped

    def request_stop(self):
        """Stops all ranks together, at the next global average or at the end of the epoch.

        For one rank alone; also for a signal handler, at any moment.
        """
        if self._cluster.size == 1:
            self._stopped = self.model.stop_training = True
        else:
            self._wants_to_stop = True

    def meet(self, where: str, mine=None) -> list:
        """What all ranks passed, in rank order, as JSON can hold it; all must come here.

        Args:
          where: the point of training, for those that wait and for errors.
          mine: what this rank tells the others.

        Raises:
          RuntimeError: on every rank, if they stand at different points.
        """
        self._say(f"at {where}")
        return self._meet(where, timed=False, mine=mine)

    def average(self, doing: str) -> bool:
        """A global average of training, whatever the period says; all ranks must call it.

        What follows, with all weights and schedules, is as if the run began here.

        Returns:
          Whether this rank has taken part; not if it has lost that with a worker.
        """
        self._was_global = True
        return self._averager is None or self._together(lambda: self._begin_anew(doing)) is True

    # ---- Keras calls these ----------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        # fit calls this before on_train_begin, but so does an evaluate of its own, which may follow
        # a fit that was interrupted; the validation inside fit does not.
        self._training = False
        _driver[model] = weakref.ref(self)

    def on_train_begin(self, logs=None):
        # An interrupted fit may have left anything in these.
        self._in_consensus = False
        self._local = None
        self._unreported = []
        self._wants_to_stop = self._stopped = self._divided = False
        self._first_epoch = self._first_batch = self._was_global = True
        self._collectives.enter_fit(preemption.code_of_caller("on_train_begin"))
        self._say("at the start of training")
        problem = self._problem()
        if self._cluster.size > 1:
            self._begin(problem)
        elif problem:
            raise ValueError(problem)
        self._training = True

    def on_epoch_begin(self, epoch, logs=None):
        self._batches = 0
        self._epoch = epoch + 1
        if self._collectives.is_guest:
            self._enter(epoch)
        first_epoch, self._first_epoch = self._first_epoch, False
        steps_before = epoch * (self.params["steps"] or 0)
        # The epoch tells more than our own count when a checkpoint was restored in a new process.
        self.step = max(self.step, steps_before)
        if self._averager is not None:
            beginning = f"the beginning of epoch {epoch + 1}"
            while guests := self._meet_with_guests(beginning):
                self._admit(guests, epoch)
            if first_epoch:
                if epoch:
                    # BackupAndRestore sets weights in on_train_begin, perhaps after our broadcast.
                    self._averager.broadcast("the start of training")
                # Before all were alike the average of those that are left would be nobody's model.
                self._collectives.survive(self._least_workers, self._timeout_s * _PATIENCE)
        self._say_step()
        self._losses = (0.0, 0.0)
        self._at_epoch_begin = (len(self.distances), self.global_steps, self.communication_seconds)

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self._batches += 1
        is_global = self._schedule.is_global(self.step)
        if self._adaptive:
            self._watch_loss(logs, is_global)
        if self._averager is not None:
            if self._first_batch:  # absorbs what ranks differ in tracing and compiling
                self._meet("the first batch", timed=False)
                self._first_batch = False
            if self.model.stop_training:
                # Alone it would leave the others waiting: all stop at the next global average.
                self._wants_to_stop, self.model.stop_training = True, False
            done = self._together(self._exchange)
            is_global = is_global if done is None else done
        elif self._adaptive and is_global:
            self._schedule.observe(self.step, self._loss)
        self.global_steps += is_global
        self.gossip_steps += not is_global
        self._say_step()

    def on_test_begin(self, logs=None):
        if self._averager is None or not self._training:
            return
        self._check_whole_epoch()  # validation comes before the end of the epoch
        validation = f"the validation after step {self.step}"
        self._say(f"in {validation}")
        # Whether they are in consensus is asked, since after a loss some may remember it otherwise.
        if not all(self._meet(validation, mine=self._in_consensus)):
            self._together(lambda: self._lend_average(validation))

    def on_test_end(self, logs=None):
        if self._training:
            self._say_step()
        if self._local is not None:
            self._averager.restore(self._local)
            self._local = None
            self._in_consensus = False

    def on_epoch_end(self, epoch, logs=None):
        if self._averager is not None:
            self._check_whole_epoch()
            self._meet(f"the end of epoch {epoch + 1}", logs=logs)
        if logs is not None:
            measured, global_steps, seconds = self._at_epoch_begin
            if self._averager is not None:
                new = self.distances[measured:]
                logs["consensus_distance"] = new[-1][1] if new else math.nan
            logs["global_averages"] = self.global_steps - global_steps
            logs["communication_seconds"] = self.communication_seconds - seconds
            if self._adaptive:
                logs["H"] = self._schedule.H

    def on_train_end(self, logs=None):
        self._training = False
        self._say("at the end of training")
        if self._averager is None:
            return
        self._meet("the end of training")
        # Even if all agree: another callback may have set one rank's weights, or the optimizer its
        # moving averages.
        self._together(lambda: self._settle("the end of training"))
        with contextlib.suppress(TrainingFinished):  # nothing is missing, though this was lost
            self._meet("the end of training")
        self._collectives.end_fit()

    # ---- Who comes back -------------------------------------------------------------------------

    def _meet_with_guests(self, where: str) -> dict[str, dict]:
        """Meets, and returns the contacts of lost workers that wait to be taken in, by rank."""
        told = self._meet(where, mine=self._collectives.guests())
        return {rank: contact for each in told for rank, contact in each.items()}

    def _admit(self, guests: dict[str, dict], epoch: int):
        """Takes lost workers in, at a global average; the members do it in step."""
        mine = self._collectives
        self._first_batch = True  # which a guest has yet to compile
        doing = "the return of a worker"
        told = self._meet(doing, mine=[self.average(doing), mine.generation])
        if any(each != [True, mine.generation] for each in told):
            return  # another was lost meanwhile; all meet once more
        source = self._cluster.members[0]  # now, since the average may have lost one
        try:
            with self._timed():
                mine.admit(guests, epoch, self._digest, self.state)
                self._welcome(source, self._averager.anew, is_new=False)
        except ViewChanged:
            self._divided = True

    def _enter(self, epoch: int):
        """Becomes a member, with what the others have; a loss on the way is the end."""
        mine, invitation = self._collectives, self._collectives.invitation
        if epoch != invitation.epoch:
            raise ValueError(
                f"Rank {self._cluster.rank} begins epoch {epoch + 1}, and the others epoch "
                f"{invitation.epoch + 1}. Pass initial_epoch=checkpoint.restore(model) to fit, and "
                "leave other callbacks that resume (BackupAndRestore) out."
            )
        mine.enter()
        self._welcome(invitation.members[0], self._new_averager, is_new=True)
        self._first_epoch = False
        patience_s = self._timeout_s * _PATIENCE
        mine.survive(self._least_workers, patience_s, invitation.completed)

    def _welcome(self, source: int, averager_for, is_new: bool):
        """Gives new members what rank `source` has."""
        self._resize(averager_for)
        self._averager.welcome(self._cluster.members.index(source), is_new)
        self._in_consensus = True

    # ---- Where this rank is, for those that wait for it -----------------------------------------

    def _say(self, where: str):
        self._collectives.at(where, self.step)

    def _say_step(self):
        """Says that the next step is computed, or that the epoch has no other."""
        if self._batches == self.params["steps"]:
            self._say(f"at the end of epoch {self._epoch}")
        else:
            self._say(f"computing step {self.step + 1}")

    # ---- Exchanges ------------------------------------------------------------------------------

    def _together(self, exchange):
        """What `exchange()` returns: exchanges that all ranks do, in the same order.

        Where workers are lost and the others go on, these unite, and it is done again among them;
        or left out, with None, by a rank that has lost it while others have completed it.
        """
        mine = self._collectives
        while True:
            try:
                if self._divided:
                    self._unite()
                if mine.missed:
                    mine.missed -= 1
                    result = None
                else:
                    result = exchange()
                mine.completed += 1
                return result
            except ViewChanged:
                self._divided = True

    def _unite(self):
        """Gives those that are left, which have lost exchanges, one model and one state.

        The model is their average. Where some have come further than others, they have learned what
        the others have missed: at most one exchange that all take part in, since the next one needs
        all of them, and gossips.
        """
        doing, mine = "the reunion", self._collectives
        mine.check()
        told = {
            "completed": mine.completed,
            "stopped": self._stopped,
            "period": self._schedule.state if self._adaptive else None,
            "met": self._met,
        }
        everyone = mine.gather(told, doing, self._timeout_s * _PATIENCE)
        first = max(everyone, key=lambda each: each["completed"])
        self._resize(self._averager.anew)
        self._averager.global_average(doing)
        self._average_slots(doing)
        self._met = first["met"]
        if first["stopped"]:
            self._stopped = self.model.stop_training = True
        if self._adaptive:
            self._schedule.state = first["period"]
        self._in_consensus = True
        self._unreported = []  # the lost worker's part of these distances is lost
        self._local = None  # after a validation all go on from here
        self._divided = False

    def _resize(self, averager_for):
        """Exchanges from now on among the present members, on a graph for so many."""
        size = self._collectives.size
        self._topology = topology_lib.resolve_again(self._wanted_topology, size)
        averager = averager_for(self._topology)
        self._bytes_of_past_fits, self._averager = self.bytes_sent, averager

    def _exchange(self) -> bool:
        """What follows an optimizer step; whether it was a global average."""
        self._in_consensus = False
        if not self._schedule.is_global(self.step):
            with self._timed():
                self._gossip()
            return False
        doing = f"the global average of step {self.step}"
        if self._adaptive:
            self._averaged_loss.assign(self._loss)
        if self._wants_to_stop:
            self._votes.assign(1.0)
        self._average_globally(doing)
        if self._adaptive:
            self._loss = float(self._averaged_loss.numpy())
        if self._votes.numpy() > 0:
            self._stopped = self.model.stop_training = True
        self._average_slots(doing)
        if self._adaptive:
            self._schedule.observe(self.step, self._loss)
        return True

    def _gossip(self):
        # Rounds follow the step count, so that they agree after a resumption as well.
        round, doing = self.step - 1, f"the gossip of step {self.step}"
        if not self._overlap:
            self._averager.gossip(round, doing)
            return
        self._averager.finish_gossip()
        # It moves no mean, so before a global average it would be for nothing.
        if not self._schedule.is_global(self.step + 1):
            self._averager.start_gossip(round, doing)

    def _lend_average(self, doing: str):
        """A global average that `on_test_end` takes back."""
        self._local = self._averager.snapshot()
        self._average_globally(doing)

    def _begin_anew(self, doing: str) -> bool:
        self._settle(doing)
        self._average_slots(doing)
        return True

    def _settle(self, doing: str):
        """A global average after which no gossip is under way."""
        self._averager.finish_gossip(apply=False)
        self._average_globally(doing)

    def _average_globally(self, doing: str):
        with self._timed():
            measured = self._averager.global_average(doing)
        if not self._in_consensus:
            self._unreported.append((self.step, measured))
        self._in_consensus = True

    def _average_slots(self, doing: str):
        """What becomes of the optimizer's slots where the parameters were averaged."""
        with self._timed():
            if self._optimizer_state == "average":
                self._averager.average_slots(doing)
            elif self._optimizer_state == "reset":
                self._averager.clear_slots()

    @contextlib.contextmanager
    def _timed(self):
        """Counts what happens inside as communication."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.communication_seconds += time.perf_counter() - started

    def _meet(self, where: str, timed: bool = True, logs: dict | None = None, mine=None) -> list:
        """Waits for all ranks at the same point of training, and shares what each has measured.

        Args:
          where: the point.
          timed: whether the wait counts as communication.
          logs: the numbers in it become their means over ranks.
          mine: more that this rank tells the others.

        Returns:
          What the ranks have told as `mine`, in rank order; also that of one lost since then.

        Raises:
          RuntimeError: on every rank, if they stand at different points.
        """
        numbers = {name: float(value) for name, value in (logs or {}).items() if _scalar(value)}

        def gather():
            told = {
                "rank": self._cluster.rank,
                "told": mine,
                "where": where,
                "step": self.step,
                "measured": self._unreported,
                "stop": bool(self._wants_to_stop or self.model.stop_training),
                "logs": numbers,
            }
            self._met = self._collectives.gather(told, where, self._timeout_s * _PATIENCE)

        with self._timed() if timed else contextlib.nullcontext():
            self._together(gather)
        everyone = self._met  # or, if this rank has missed it, as others have told it
        self.model.stop_training = any(each["stop"] for each in everyone)
        if len({(each["where"], each["step"]) for each in everyone}) > 1:
            places = "; ".join(
                f"rank {each['rank']} is at {each['where']}, step {each['step']}"
                for each in everyone
            )
            raise RuntimeError(
                f"The ranks took different ways through training: {places}. Every rank must run "
                "the same epochs and validations, and stop at the same step: give all ranks the "
                "same arguments of fit, the same callbacks that can stop training, and resume all "
                "of them or none."
            )
        for measured in zip(*(each["measured"] for each in everyone), strict=True):
            distance = averaging.consensus_distance([squares for _, squares in measured])
            self.distances.append((measured[0][0], distance))
        self._unreported = []
        for name in numbers:
            if all(name in each["logs"] for each in everyone):
                logs[name] = sum(each["logs"][name] for each in everyone) / len(everyone)
        return [each["told"] for each in everyone]

    def _watch_loss(self, logs: dict | None, is_global: bool):
        """Keeps this rank's loss of the first batch after a global average, or NaN.

        Keras' logs hold the mean since the beginning of the epoch, not the loss of a batch.
        """
        if not (self._was_global or is_global):
            return
        tracker = next((metric for metric in self.model.metrics if metric.name == "loss"), None)
        if isinstance(tracker, keras.metrics.Mean):
            # Over all devices of this worker.
            sums = (float(tracker.total.numpy()), float(tracker.count.numpy()))
            before, self._losses = self._losses, sums
            total, count = (now - then for now, then in zip(self._losses, before, strict=True))
            loss = total / count if count else math.nan
        else:  # a train_step of the user's own
            loss = float((logs or {}).get("loss", math.nan))
        if self._was_global:
            self._loss = loss
        self._was_global = is_global

    def _check_whole_epoch(self):
        """Raises where this rank leaves an epoch early: the others would wait for it in vain."""
        steps = self.params["steps"]
        if self._batches < steps and not self._stopped:
            cause = (
                "a callback that comes after GossipPGA in the list set model.stop_training"
                if self.model.stop_training
                else "its dataset ran out of data"
            )
            raise RuntimeError(
                f"Rank {self._cluster.rank} left epoch {self._epoch} after {self._batches} of "
                f"{steps} batches: {cause}. The other ranks may wait for it in vain, so every "
                "rank must take all batches. Give each as many (cluster.shard does, "
                "dataset.repeat() helps), and put callbacks that stop training before GossipPGA."
            )

    def _problem(self) -> str | None:
        """Why this rank cannot train, or None."""
        if _driver[self.model]() is not self:
            return "fit received two GossipPGA callbacks; pass one."
        problem = agreement.problem_of_model(self.model)
        if not problem and self._optimizer_state == "reset":
            problem = agreement.problem_of_reset(self.model.optimizer)
        if self._cluster.size == 1:  # its data are nobody else's affair
            return problem
        if self._least_workers is not None and (deaf := self._collectives.unreachable()):
            problem = problem or (
                "on_worker_lost='continue' needs to ask the others who is left, but rank "
                f"{deaf[0]} does not answer: let workers reach all ports of one another."
            )
        return (
            problem
            or agreement.problem_of_devices(self.model, self._cluster.strategy)
            or agreement.problem_of_data(self.params["steps"])
        )

    def _begin(self, problem: str | None):
        """Agrees with the other ranks on what to train, and starts all from rank 0's state.

        Raises:
          ValueError: on every rank, if one cannot train, or the ranks do not fit together.
        """
        mine, facts, known = self._collectives, None, False
        mine.survive(None)
        if self._topology.size != mine.size:  # since this callback was made
            self._topology = topology_lib.resolve_again(self._wanted_topology, mine.size)
        if self._averager is not None:  # an interrupted fit may have left a gossip under way
            self._averager.finish_gossip(apply=False)
        if not problem:
            facts = self._facts()
            self._digest = agreement.digest(facts)
            known = self._averager is not None and self._averager.averages(**self._variables())
        if mine.is_guest:
            self._check_as_guest(problem)
            return
        everyone = mine.gather(
            {"problem": problem, "facts": facts, "known": known},
            "the start of training",
            self._timeout_s * _PATIENCE,
        )
        agreement.check(everyone, mine.members, self._cluster.rank)
        # Building one is an exchange too: all ranks do it or none.
        if not all(each["known"] for each in everyone):
            self._bytes_of_past_fits = self.bytes_sent
            self._averager = self._new_averager(self._topology)
        self._averager.broadcast("the start of training")

    def _facts(self) -> dict:
        """What must be equal on all ranks; builds the optimizer."""
        settings = {
            "H": str(self._schedule),
            "topology": self._topology.digest,
            "optimizer_state": self._optimizer_state,
            "overlap": self._overlap,
            "wire_dtype": self._wire_dtype,
            "timeout_s": self._timeout_s,
            "on_worker_lost": "raise" if self._least_workers is None else "continue",
            "min_workers": self._least_workers,
            "steps per epoch": self.params["steps"],
            "epochs": self.params["epochs"],
            "step count": self.step,
        }
        return agreement.facts(self.model, settings)

    def _check_as_guest(self, problem: str | None):
        """Raises where this rank cannot be taken in by those that train."""
        invitation = self._collectives.invitation
        if invitation is None:
            problem = problem or (
                "a worker that joins again must know which epoch the others are in: pass "
                "initial_epoch=checkpoint.restore(model) to fit, with a pga.Checkpoint."
            )
        elif invitation.facts != self._digest:
            problem = problem or (
                "it differs from them in the model, the optimizer, the arguments of fit or "
                "GossipPGA, or in versions. Start it with the script and packages that they have."
            )
        if problem:
            raise ValueError(f"Rank {self._cluster.rank} cannot join the others again: {problem}")

    def _new_averager(self, topology: topology_lib.Topology) -> averaging.Averager:
        return averaging.Averager(
            self._collectives,
            topology,
            **self._variables(),
            timeout_s=self._timeout_s,
            start_timeout_s=self._timeout_s * _PATIENCE,
            wire=self._wire,
        )

    def _variables(self) -> dict[str, list]:
        """What is averaged, and `others`, by the names that `Averager` gives them."""
        model, slots = self.model, []
        if self._optimizer_state != "local":
            slots = [v for v in model.optimizer.variables if len(v.shape)]
        return {
            "parameters": _floating(model.trainable_variables),
            "statistics": [*_floating(model.non_trainable_variables), *self._own_variables()],
            "others": [v.value for v in model.optimizer.variables],
            "slots": _floating(slots),
        }

    def _own_variables(self) -> list:
        """What travels with the global averages beside the model."""
        if self._votes is None:
            self._votes = _scalar_variable("votes")
        self._votes.assign(0.0)
        if not self._adaptive:
            return [self._votes.value]
        if self._averaged_loss is None:
            self._averaged_loss = _scalar_variable("loss")
        return [self._votes.value, self._averaged_loss.value]


def _scalar_variable(name: str) -> keras.Variable:
    return keras.Variable(0.0, trainable=False, dtype="float32", name=name)


def _scalar(value) -> bool:
    return isinstance(value, (float, int)) or (hasattr(value, "shape") and value.shape == ())


def _floating(variables) -> list:
    """The `tf.Variable`s behind those Keras variables that hold floating-point numbers."""
    return [v.value for v in variables if keras.backend.is_float_dtype(v.dtype)]
