"""Check before the first step that each rank can train and that the ranks match.

Mismatched ranks would exchange tensors of different shapes or at different steps, and would wait
for each other forever. To prevent this, each rank sends all others a description of what it is
about to train, and all ranks come to the same conclusion.
"""

import hashlib
import json
import re
from collections.abc import Collection

import keras
import tensorflow as tf

from tf_gossip_pga import __version__
from tf_gossip_pga.coordination.joining import Invitation
from tf_gossip_pga.exchange.session import SoloSession
from tf_gossip_pga.training import adapted
from tf_gossip_pga.training import variables as variables_lib
from tf_gossip_pga.training.settings import Settings
from tf_gossip_pga.training.variables import Held

_REMEDIES = {
    "steps per epoch": (
        " Use cluster.shard(dataset), which makes equal parts, or pass steps_per_epoch to fit."
    ),
    "the state of H": " Set the same state on all ranks or on none.",
    "step count": " Use a new GossipPGA on all ranks or on none, and set the same state on all.",
}
_ADAPT = (
    " Adapt it to the whole dataset, before cluster.shard. If the ranks are meant to differ, name "
    "it in GossipPGA(local=…)."
)


def problem_of_rank(
    model: keras.Model, settings: Settings, session: SoloSession, steps: int | None
) -> str | None:
    """Return why this rank cannot train, or None if it can.

    Args:
      model: the model that Keras is about to train.
      settings: the arguments of `GossipPGA`.
      session: runs the exchanges of this process (`exchange.session`).
      steps: number of batches per epoch, from Keras' `params`; None if Keras does not know it.
    """
    found = problem_of_model(model) or problem_of_local(model, settings.local)
    if not found and settings.optimizer_state == "reset":
        optimizers = [optimizer for optimizer, _ in variables_lib.optimizers_of(model)]
        found = next(filter(None, map(problem_of_reset, optimizers)), None)
    if session.cluster.size == 1:  # the other checks apply only to several ranks
        return found
    if not found and settings.survives and (unreachable := session.unreachable()):
        found = (
            "on_worker_lost='continue' requires that all workers can reach each other, but rank "
            f"{unreachable[0]} does not answer. Allow connections between the workers on all ports."
        )
    return found or problem_of_devices(model, session.cluster.strategy) or problem_of_data(steps)


def problem_of_model(model) -> str | None:
    """Return why a compiled `keras.Model` cannot be trained by gossip, or None if it can."""
    if model.steps_per_execution > 1:
        return (
            "GossipPGA must see every batch, but the model was compiled with "
            f"steps_per_execution={model.steps_per_execution}. Compile it with "
            "steps_per_execution=1."
        )
    has_call = variables_lib.has_call(model)
    held = variables_lib.held_by_layers(model)
    trains = any(each.kind == "trainable" and each.is_averaged for each in held)
    if not trains or (has_call and not model.built):
        what = "it" if has_call else "each of the layers that its train_step calls"
        return (
            f"The model {model.name!r} is not built, or has no trainable variables. Build it "
            f"before fit: call {what} on a batch, or begin with an Input layer."
        )
    optimizers = variables_lib.optimizers_of(model)
    if not optimizers:
        return (
            f"The model {model.name!r} was compiled without an optimizer. Pass an optimizer to "
            "compile."
        )
    return problem_of_unbuilt(model, optimizers)


def problem_of_unbuilt(model, optimizers: list) -> str | None:
    """Return why one of the optimizers cannot be built before training, or None if all can.

    Args:
      model: a compiled `keras.Model`.
      optimizers: the result of `variables.optimizers_of`.
    """
    for optimizer, _ in optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        if optimizer is not model.optimizer and not optimizer.built and inner.use_ema:
            # An optimizer that is built for more variables than it trains would overwrite the
            # extra ones with its moving averages.
            return (
                f"The model holds the optimizer {optimizer.name!r} with use_ema=True, but "
                "GossipPGA cannot tell which variables that optimizer trains. Build it before fit: "
                "optimizer.build(variables)."
            )
    return None


def problem_of_local(model, names: Collection[str]) -> str | None:
    """Return which name in `GossipPGA(local=…)` the model lacks, or None if it has all of them."""
    held = variables_lib.held_by_layers(model)
    layers = {layer.name for _, layer, _ in variables_lib.walk(model)}  # some have no variable
    for name in names:
        if name not in layers and not any(each.is_local([name]) for each in held):
            paths = [each.path for each in held]
            return (
                f"local contains {name!r}, but the model has no variable or layer of this name. "
                f"Its variables are {', '.join(paths[:20])}{', …' * (len(paths) > 20)}."
            )
    return None


def problem_of_devices(model, strategy) -> str | None:
    """Return why a model cannot be trained on all devices of this worker, or None if it can.

    Args:
      model: a compiled model.
      strategy: the worker's `tf.distribute.Strategy`.
    """
    devices = strategy.num_replicas_in_sync
    if devices == 1:
        return None
    if model.distribute_strategy is not strategy:
        return (
            f"This worker has {devices} devices, but the model {model.name!r} was not built for "
            "them. Build and compile it inside `with cluster.strategy.scope():`, or let the worker "
            "see only one device (CUDA_VISIBLE_DEVICES)."
        )
    if model.jit_compile:
        return (
            f"This worker has {devices} devices, but a step compiled by XLA cannot sum gradients "
            "between them. Compile the model with jit_compile=False or jit_compile='auto'."
        )
    return None


def problem_of_reset(optimizer) -> str | None:
    """Return why an optimizer's slots cannot be reset to zero in training, or None if they can."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    kept = {
        "moving averages of the weights (use_ema=True)": optimizer.use_ema,
        "accumulated gradients (gradient_accumulation_steps)": (
            optimizer.gradient_accumulation_steps
        ),
    }
    for what, is_kept in kept.items():
        if is_kept:
            return (
                f"optimizer_state='reset' would erase the optimizer's {what}. Use 'local' or "
                "'average'."
            )
    return None


def problem_of_data(steps: int | None) -> str | None:
    """Return why several ranks cannot train with this number of batches, or None if they can.

    Args:
      steps: number of batches per epoch, from Keras' `params`; None if Keras does not know it.
    """
    if steps is None:
        return (
            "GossipPGA needs the number of batches per epoch, but the length of this dataset is "
            "unknown. Pass steps_per_epoch to fit."
        )
    if steps == 0:
        return "The dataset of this rank is empty. Give every rank at least one batch to train on."
    return None


def facts(model, settings: dict) -> dict:
    """Return the facts that must be equal on all ranks, in the order to check them.

    Also build the optimizers (see `described`).

    Args:
      model: a compiled `keras.Model`.
      settings: further JSON-serializable facts, by name.
    """
    return {
        # Versions first: other versions may name and order variables differently.
        "the version of TensorFlow": tf.__version__,
        "the version of Keras": keras.__version__,
        "the version of tf_gossip_pga": __version__,
        **settings,
        "the optimizer": ", ".join(
            type(optimizer).__name__ for optimizer, _ in variables_lib.optimizers_of(model)
        ),
        "variables": described(model),
        **adapted.described(model, settings.get("local", ())),
    }


def described(model) -> list[str]:
    """Describe each variable of a model and its optimizers, in the order of `variables.held`.

    Also build any optimizers that are not built yet.
    """
    variables_lib.build(model)
    return [_described(each) for each in variables_lib.held(model)]


def check_no_late_variables(model, known: list[Held]):
    """Raise if the first batch created variables that the ranks did not start with.

    Args:
      model: the model after its first batch.
      known: the model's variables before that batch.

    Raises:
      ValueError: there are new variables. The message names them.
    """
    before = {id(each.value) for each in known}
    late = [
        each.path
        for each in variables_lib.held_by_layers(model)
        if id(each.value) not in before and each.kind != "random"
    ]
    if late:
        raise ValueError(
            f"The first batch created variables that may differ between ranks: {', '.join(late)}. "
            "Build all layers before fit: call the model, or each of its layers, on a batch."
        )


def warnings_of_variables(model, local: Collection[str]) -> list[str]:
    """Return warnings about variables that cannot be sent to other ranks. Skip those in `local`."""
    left = [
        f"{each.path} ({each.value.dtype.name}, shape {each.value.shape})"
        for each in variables_lib.held_by_layers(model)
        if not each.is_sendable and not each.is_local(local)
    ]
    if not left:
        return []
    return [
        f"Each rank keeps its own {', '.join(left)}: only numeric variables of a known shape can "
        "be sent to other ranks. If this is intended, name them in GossipPGA(local=…)."
    ]


def digest(facts: dict) -> str:
    """Return a digest of `facts` without the step count and the state of H, which keep changing."""
    kept = {**facts, "step count": None, "the state of H": None}
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def check(everyone: list[dict], ranks: tuple[int, ...], rank: int):
    """Raise on every rank if any rank cannot train or the ranks differ.

    Args:
      everyone: `{"problem": text or None, "facts": dict or None}` from each rank.
      ranks: the ranks, in the order of `everyone`.
      rank: the rank of this process.

    Raises:
      ValueError: a rank has a problem, or two ranks have different facts.
    """
    own = everyone[ranks.index(rank)]
    if own["problem"]:
        raise ValueError(own["problem"])
    for other, each in zip(ranks, everyone, strict=True):
        if each["problem"]:
            raise ValueError(f"Rank {other} cannot start training: {each['problem']}")
    for name in dict.fromkeys(name for each in everyone for name in each["facts"]):
        values = [each["facts"].get(name) for each in everyone]
        if name == "variables":
            name, values = first_difference(values)
        if found := difference(values, ranks):
            raise ValueError(
                f"The ranks differ in {name}: {found}. It must be the same on every rank."
                + _REMEDIES.get(name, _ADAPT if "adapted" in name else "")
            )


def check_joining(rank: int, invitation: Invitation | None, digest: str, problem: str | None):
    """Raise if a joining worker does not match the workers already in training.

    Args:
      rank: the rank of the joining worker.
      invitation: the members' invitation, or None if the script did not call `Checkpoint.restore`,
        which waits for it.
      digest: this worker's digest of the facts that must be equal on all ranks.
      problem: why this rank cannot train, or None if it can.

    Raises:
      ValueError: the worker cannot join.
    """
    if invitation is None:
        problem = problem or (
            "a joining worker must know the epoch of the other workers. Pass "
            "initial_epoch=checkpoint.restore(model) to fit, with a pga.Checkpoint."
        )
    elif invitation.facts != digest:
        problem = problem or (
            "it differs from the other workers in the model, the optimizer, the arguments of fit "
            "or GossipPGA, the callbacks that set weights or learning rates "
            "(EarlyStopping(restore_best_weights=True), ReduceLROnPlateau) or have sync points "
            "(pga.Report, pga.Timeline), or the versions. Restart it with the same script, "
            "packages and environment variables as the others."
        )
    if problem:
        raise ValueError(f"Rank {rank} cannot join: {problem}")


def difference(values: list, ranks) -> str | None:
    """Return which rank has which value, or None if all values are equal.

    Example of a result: `"rank 0 has 6, rank 1 has 4"`.
    """
    if _are_equal(values):
        return None
    have = zip(ranks, values, strict=True)
    return ", ".join(f"rank {rank} has {value}" for rank, value in have)


def _are_equal(values: list) -> bool:
    return all(value == values[0] for value in values[1:])


def _described(held: Held) -> str:
    # Keras numbers the layers of a process in order of creation, so the numbers may differ between
    # ranks. Drop them. Names of optimizer variables contain such numbers in the middle:
    # adam/sequential_2_dense_3_kernel_momentum.
    path = re.sub(r"_\d+(?=[_/]|$)", "", held.path)
    shape = held.value.shape
    sizes = None if shape.rank is None else shape.as_list()
    kind = "frozen" if held.kind == "random" else held.kind
    return f"{path} {sizes} {held.value.dtype.name} {kind}"


def first_difference(lists: list[list[str]]) -> tuple[str, list[str]]:
    """Return the first variable in which results of `described` differ.

    Args:
      lists: the results of `described`, for example from each rank.

    Returns:
      The name of what differs, and its value in each list. If nothing differs, the second item is
      an empty list.
    """
    for index in range(max(map(len, lists))):
        values = [each[index] if index < len(each) else "none" for each in lists]
        if not _are_equal(values):
            return f"variable {index + 1} of the model and its optimizer", values
    return "variables", []
