"""Start one `fit` of a worker among others: all agree on what to train, and begin equal."""

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
    """The start of one `fit`. Where a worker is lost in it, the others start once more.

    Args:
      session: the exchanges of this process.
      group: the other ranks.
      run: what survives this fit.
      model: the model that Keras trains.
      params: what Keras tells its callbacks: `"epochs"`, `"steps"`.

    Attributes:
      digest: of what must be equal on all ranks.
    """

    def __init__(
        self,
        session: ElasticSession,
        group: Group,
        run: RunState,
        model: keras.Model,
        params: dict[str, Any],
    ):
        self.digest = ""
        self._session = session
        self._group = group
        self._run = run
        self._model = model
        self._params = params
        self._step = run.step
        self._known: list[variables.Held] = []  # what the model holds before the first batch

    def join(self, problem: str | None, callbacks: list[callback_facts.Fact] | None):
        """Check that this joining worker fits the others.

        Args:
          problem: why this rank cannot train, or None.
          callbacks: the `callback_facts.facts` of this rank.

        Raises:
          ValueError: it does not.
        """
        self._run.use_topology_for(self._session.size)
        self._facts(problem, callbacks)
        invitation = self._session.admission.invitation
        preflight.check_joining(self._session.cluster.rank, invitation, self.digest, problem)

    def agree(self, problem: str | None, callbacks: list[callback_facts.Fact] | None):
        """Agree with all present members on what to train, and begin with rank 0's state.

        Args:
          problem: why this rank cannot train, or None.
          callbacks: the `callback_facts.facts` of this rank.

        Raises:
          ValueError: on every rank, if one cannot train, or the ranks do not fit together.
        """
        run, session = self._run, self._session
        run.use_topology_for(session.size)
        if run.averager is not None:  # an interrupted fit may have left a gossip under way
            run.averager.finish_gossip(apply=False)
        facts = self._facts(problem, callbacks)
        known = not problem and run.averager is not None and run.averager.serves(self._variables)
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
        # Building an averager is an exchange too: all ranks do it or none.
        if not all(each["known"] for each in everyone):
            run.use_averager(self.new_averager(run.topology))
        self._group.averager.broadcast("the start of training")

    def broadcast_again(self, where: str):
        """Begin with rank 0's state once more, at the beginning of an epoch.

        BackupAndRestore sets weights in on_train_begin, perhaps after the broadcast there.
        """
        self._group.sync(where, {}, in_sequence=False)  # nobody joins here
        self._group.averager.broadcast("the start of training")

    def new_averager(self, topology: Topology) -> Averager:
        """Return what exchanges the model's variables among the present members."""
        return Averager(
            self._session,
            topology,
            self._variables,
            self._group.patience,
            self._run.settings.wire,
            numbers=piggyback.length(self._session.cluster.size),
        )

    def check_no_late_variables(self):
        """Raise where the first batch has made variables that the ranks did not start with.

        Raises:
          ValueError: it has.
        """
        preflight.check_no_late_variables(self._model, self._known)

    def _facts(
        self, problem: str | None, callbacks: list[callback_facts.Fact] | None
    ) -> dict | None:
        """Return what must be equal on all ranks, and keep its digest; None where it cannot train.

        Build the optimizers.
        """
        if problem:
            return None
        run = self._run
        self._known = variables.held_by_layers(self._model)
        facts = preflight.facts(
            self._model,
            {
                "H": str(run.settings.H),
                "the state of H": run.period_state,
                "topology": run.topology.digest,
                **run.settings.facts(),
                "steps per epoch": self._params["steps"],
                "epochs": self._params["epochs"],
                "step count": self._step,  # a rank that starts again may be ahead
            },
        )
        # Callbacks have a comparison of their own at the start, but none when a worker joins.
        self.digest = preflight.digest({**facts, "callbacks": callback_facts.strict(callbacks)})
        return facts

    @property
    def _variables(self) -> Variables:
        settings = self._run.settings
        return variables.variables_of(self._model, settings.optimizer_state, settings.local)
