"""WHETHER the ranks fit together: compared before the first exchange that depends on it.

Ranks that differ would exchange tensors of different shapes or at different steps, and wait for
one another for ever. So each rank first tells all others what it is about to train, and every rank
comes to the same verdict.
"""

import hashlib
import json
import re

import keras
import tensorflow as tf

from tf_gossip_pga import __version__

_REMEDIES = {
    "steps per epoch": " cluster.shard(dataset) makes equal parts; or pass steps_per_epoch to fit.",
    "H": " Where it is adaptive, set the same state on all ranks or on none.",
    "step count": " Give all ranks a new GossipPGA, or none, and the same state.",
}


def problem_of_model(model) -> str | None:
    """Why a compiled `keras.Model` cannot be trained with gossip, or None if it can."""
    if model.steps_per_execution > 1:
        return (
            "GossipPGA must see every batch, but the model was compiled with "
            f"steps_per_execution={model.steps_per_execution}. Compile it with "
            "steps_per_execution=1."
        )
    if not model.built or not model.trainable_variables:
        return (
            f"The model {model.name!r} has no trainable variables yet. Build it before fit: give "
            "it an Input layer, call model.build(input_shape), or call it on a batch."
        )
    if model.optimizer is None:
        return f"The model {model.name!r} was compiled without an optimizer. Give compile one."
    return None


def problem_of_devices(model, strategy) -> str | None:
    """Why a `keras.Model` cannot be trained on all devices of this worker, or None if it can.

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
            "see one device alone (CUDA_VISIBLE_DEVICES)."
        )
    if model.jit_compile:
        return (
            f"This worker has {devices} devices, between which a step compiled by XLA cannot sum "
            "gradients. Compile the model with jit_compile=False or 'auto'."
        )
    return None


def problem_of_reset(optimizer) -> str | None:
    """Why a Keras optimizer's slots cannot be set to zero in mid-run, or None if they can."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    kept = {
        "the moving averages of weights (use_ema=True)": optimizer.use_ema,
        "gradients half gathered (gradient_accumulation_steps)": (
            optimizer.gradient_accumulation_steps
        ),
    }
    for what, is_kept in kept.items():
        if is_kept:
            return (
                f"optimizer_state='reset' would erase {what} that the optimizer keeps. Use 'local' "
                "or 'average'."
            )
    return None


def problem_of_data(steps: int | None) -> str | None:
    """Why several ranks cannot train on data with so many batches in an epoch, or None.

    Args:
      steps: as Keras tells its callbacks; None where it does not know.
    """
    if steps is None:
        return (
            "GossipPGA must know the number of batches of an epoch, but this dataset's length is "
            "unknown. Pass steps_per_epoch to fit."
        )
    if steps == 0:
        return "The dataset is empty: it has no batch for this rank to train on."
    return None


def facts(model, settings: dict) -> dict:
    """What must be equal on all ranks, in the order in which to complain, as JSON can hold it.

    Builds the optimizer, see `described`.
    """
    return {
        # First, since other versions may name and order variables differently.
        "the version of TensorFlow": tf.__version__,
        "the version of Keras": keras.__version__,
        "the version of tf_gossip_pga": __version__,
        **settings,
        "the optimizer": type(model.optimizer).__name__,
        "variables": described(model),
    }


def described(model) -> list[str]:
    """Every variable of a model and its optimizer, in their order, as JSON can hold it.

    Builds the optimizer's variables where Keras would do so at the first step.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [
        *(_described(v, "trainable" if v.trainable else "frozen") for v in model.variables),
        *(_described(v, "optimizer") for v in model.optimizer.variables),
    ]


def digest(facts: dict) -> str:
    """A few characters that are equal where `facts` are, wherever the run stands."""
    kept = {**facts, "step count": None, "H": facts["H"].partition(" at ")[0]}
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def check(everyone: list[dict], ranks: tuple[int, ...], rank: int):
    """Raises, with the same explanation on all ranks, where the ranks do not fit together.

    Args:
      everyone: each `{"problem": text or None, "facts": dict or None}`.
      ranks: whose they are, in this order.
      rank: this process's.

    Raises:
      ValueError: a rank has a problem, or two ranks have different facts.
    """
    mine = everyone[ranks.index(rank)]
    if mine["problem"]:
        raise ValueError(mine["problem"])
    for other, each in zip(ranks, everyone, strict=True):
        if each["problem"]:
            raise ValueError(f"Rank {other} cannot start training: {each['problem']}")
    for name in everyone[0]["facts"]:
        values = [each["facts"][name] for each in everyone]
        if name == "variables":
            name, values = first_difference(values)
        if found := difference(values, ranks):
            raise ValueError(
                f"The ranks differ in {name}: {found}. It must be the same on every rank."
                + _REMEDIES.get(name, "")
            )


def difference(values: list, ranks) -> str | None:
    """`"rank 0 has 6, rank 1 has 4"`, or None where all values are equal."""
    if _are_equal(values):
        return None
    have = zip(ranks, values, strict=True)
    return ", ".join(f"rank {rank} has {value}" for rank, value in have)


def _are_equal(values: list) -> bool:
    return all(value == values[0] for value in values[1:])


def _described(variable, kind: str) -> str:
    # Keras numbers the layers of a process as they are made; the numbers mean nothing elsewhere.
    # An optimizer's variables have them in mid-name: adam/sequential_2_dense_3_kernel_momentum.
    path = re.sub(r"_\d+(?=[_/]|$)", "", variable.path)
    return f"{path} {list(variable.shape)} {variable.dtype} {kind}"


def first_difference(lists: list[list[str]]) -> tuple[str, list[str]]:
    """The first place at which lists of `described` variables differ: its name and its values."""
    for index in range(max(map(len, lists))):
        values = [each[index] if index < len(each) else "none" for each in lists]
        if not _are_equal(values):
            return f"variable {index + 1} of the model and its optimizer", values
    return "variables", []
