"""Start a `fit` of several workers: agree on what to train, and begin with equal models."""

from __future__ import annotations

from typing import Any

import keras

from tf_gossip_pga.algorithm.graph import Topology
from tf_gossip_pga.exchange.averager import Averager, Variables
from tf_gossip_pga.exchange.elastic import ElasticSession
from tf_gossip_pga.training import callback_facts, piggyback, preflight, variables
from tf_gossip_pga.training.group import Group
from tf_gossip_pga.training.run_state import RunState


class Start:
    """The start of one `fit` call.

    If a worker is lost during the start and `on_worker_lost="continue"`, the other workers repeat
    the start.

    Args:
      session: runs the exchanges of this process (`exchange.session`).
      group: this rank's exchanges with the other ranks.
      run: the state that outlives this `fit`.
      model: the model that Keras trains.
      params: the `params` that Keras passes to callbacks: `"epochs"`, `"steps"`.

    Attributes:
      digest: digest of the facts that must be equal on all ranks, such as versions, settings and
        variables.
    """

    def __init__(
        self,
        session: ElasticSession,
        group: Group,
        run: RunState,
        model: keras.Model,
        params: dict[str, Any],
    ):
        """Store the arguments and the current step without exchanging anything."""
        self.digest = ""
        self._session = session
        self._group = group
        self._run = run
        self._model = model
        self._params = params
        self._step = run.step
        self._known: list[variables.Held] = []  # the model's variables before the first batch

    def join(self, problem: str | None, callbacks: list[callback_facts.Fact] | None):
        """Check that this joining worker matches the members.

        Args:
          problem: why this rank cannot train, or None if it can.
          callbacks: the result of `callback_facts.facts` on this rank.

        Raises:
          ValueError: this worker does not match the members, or it cannot train.
        """
        self._run.use_topology_for(self._session.size)
        self._facts(problem, callbacks)
        invitation = self._session.admission.invitation
        preflight.check_joining(self._session.cluster.rank, invitation, self.digest, problem)

    def agree(self, problem: str | None, callbacks: list[callback_facts.Fact] | None):
        """Agree with all members on what to train, and copy all variables of the lowest rank.

        Args:
          problem: why this rank cannot train, or None if it can.
          callbacks: the result of `callback_facts.facts` on this rank.

        Raises:
          ValueError: on every rank, if a rank cannot train or the ranks differ.
        """
        run, session = self._run, self._session
        run.use_topology_for(session.size)
        if run.averager is not None:  # an interrupted fit may have left a gossip running
            run.averager.finish_gossip(apply=False)
        facts = self._facts(problem, callbacks)
        before = None if problem else run.averager
        known = before is not None and before.serves(self._served_variables())
        everyone = session.gather(
            {"problem": problem, "facts": facts, "known": known, "callbacks": callbacks},
            "the start of training",
            self._group.patience.start_s,
        )
        preflight.check(everyone, session.view.members, session.cluster.rank)
        found = preflight.warnings_of_variables(self._model, run.settings.local)
        found += callback_facts.check(
            [each["callbacks"] for each in everyone], session.view.members
        )
        callback_facts.warn(session.cluster, *found)
        # Building an averager requires an exchange, so either all ranks build one or none does.
        if not all(each["known"] for each in everyone):
            run.use_averager(self.new_averager(run.topology))
        self._group.averager.broadcast("the start of training")

    def broadcast_again(self, where: str):
        """Copy all variables of the lowest rank again, at the beginning of the first epoch.

        The second copy is needed because BackupAndRestore sets weights in on_train_begin, possibly
        after the first copy. An outer optimizer begins at the weights that are copied here.

        Args:
          where: name of the sync point.
        """
        self._group.sync(where, {}, in_sequence=False)  # {}: no joining workers
        if self._run.outer:
            self._run.outer.begin()  # before the copy, so that the anchors of all ranks are equal
        self._group.averager.broadcast("the start of training")

    def new_averager(self, topology: Topology) -> Averager:
        """Return an averager of the model's variables for the current members."""
        return Averager(
            self._session,
            topology,
            self._served_variables(),
            self._group.patience,
            self._run.settings.wire,
            numbers=piggyback.length(self._session.cluster.size),
        )

    def check_no_late_variables(self):
        """Raise if the first batch created variables that the ranks did not start with.

        Raises:
          ValueError: there are new variables. The message names them.
        """
        preflight.check_no_late_variables(self._model, self._known)

    def _facts(
        self, problem: str | None, callbacks: list[callback_facts.Fact] | None
    ) -> dict | None:
        """Return the facts that must be equal on all ranks, and store their digest.

        Also build the optimizers. Return None if this rank cannot train.
        """
        if problem:
            return None
        run = self._run
        self._known = variables.held_by_layers(self._model)
        facts = preflight.facts(
            self._model,
            {
                "H": str(run.settings.H),
                "the state of H": run.schedule.state,
                "topology": run.topology.digest,
                **run.settings.facts(),
                "steps per epoch": self._params["steps"],
                "epochs": self._params["epochs"],
                "step count": self._step,  # if the start is repeated, run.step may be ahead
            },
        )
        # `agree` compares callbacks separately. The digest includes the callbacks, because a
        # joining worker is compared with the members by its digest only.
        self.digest = preflight.digest({**facts, "callbacks": callback_facts.strict(callbacks)})
        return facts

    def _served_variables(self) -> Variables:
        """Return the model's variables. The outer optimizer serves them from now on."""
        settings = self._run.settings
        found = variables.variables_of(
            self._model, settings.optimizer_state, settings.local, self._run.outer
        )
        if found.outer:
            found.outer.serve(found.parameters)
        return found
