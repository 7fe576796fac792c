"""Compare the callbacks of all ranks before the first step, to find differences and conflicts.

A difference that is certainly a mistake raises an error on every rank. For a difference that may be
intended, the chief logs a warning.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import keras

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.cluster import Cluster
from tf_gossip_pga.training.callback_list import Siblings

# Callbacks that must match on all ranks, and the arguments that determine their decisions.
_DECIDING = {
    keras.callbacks.BackupAndRestore: ("save_freq",),
    keras.callbacks.EarlyStopping: (
        "monitor",
        "patience",
        "baseline",
        "start_from_epoch",
        "restore_best_weights",
    ),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.ReduceLROnPlateau: ("monitor", "factor", "patience", "cooldown", "min_lr"),
}
# Attributes that hold the path to which a callback writes.
_PATHS = ("backup_dir", "directory", "filename", "filepath", "log_dir")

# A JSON-serializable description of one callback, for the other ranks.
Fact = dict[str, Any]


class Syncing:
    """A base class of callbacks that have sync points, so that all ranks must pass them."""

    def matching_arguments(self) -> str:
        """Return the arguments that must be equal on all ranks, as text. Default: none."""
        return ""


def facts(
    siblings: Siblings | None, added: Sequence[keras.callbacks.Callback] = ()
) -> list[Fact] | None:
    """Describe this rank's callbacks other than `GossipPGA`; return None if they are unknown.

    They are unknown if a custom training loop calls the hooks itself.

    Args:
      siblings: the result of `callback_list.find`.
      added: callbacks that will be added after them. Default: none.
    """
    if siblings is None:
        return None
    placed = [(each, True) for each in siblings.before]
    placed += [(each, False) for each in [*siblings.after, *added]]
    return [_fact(callback, is_before) for callback, is_before in placed]


def strict(facts: list[Fact] | None) -> list[str] | None:
    """Return descriptions of the callbacks that a joining worker must share with the members.

    These are the callbacks that must match on all ranks. `BackupAndRestore` is left out, because a
    joining worker gets its epoch from the members. Return None if `facts` is None.
    """
    if facts is None:
        return None
    return sorted(
        each["decides"]
        for each in facts
        if each["decides"] and each["strict"] and each["kind"] != "BackupAndRestore"
    )


def problem_of_rank(facts: list[Fact] | None) -> str | None:
    """Return why a rank with these callbacks cannot train with other ranks, or None if it can."""
    if any(each["swaps"] for each in facts or ()):
        return (
            "SwapEMAWeights replaces the weights during validation, and so does GossipPGA. Remove "
            "SwapEMAWeights. With use_ema=True alone, the optimizer sets the weights to their "
            "moving averages when fit ends."
        )
    return None


def check(everyone: list[list[Fact] | None], ranks: tuple[int, ...]) -> list[str]:
    """Compare the callbacks of all ranks.

    Args:
      everyone: the result of `facts` from each rank.
      ranks: the ranks, in the order of `everyone`.

    Returns:
      The warning messages.

    Raises:
      ValueError: the ranks would train differently.
    """
    seen = [each for each in everyone if each is not None]
    if len(seen) < len(everyone):
        return [
            "GossipPGA cannot compare the other callbacks of the ranks, because no "
            "keras.callbacks.CallbackList calls its hooks. If other callbacks set weights, call "
            "their on_train_end before that of GossipPGA."
        ]
    return [
        *_differences(seen, ranks),
        *_own_logs(seen),
        *_shared_paths(seen, ranks),
    ]


def learning_rates(optimizer) -> str:
    """Return an optimizer's learning rates as text, to six significant digits, for comparison."""
    optimizers = getattr(optimizer, "optimizers", [optimizer])
    rates = [getattr(each, "learning_rate", None) for each in optimizers]
    return ", ".join(
        f"{each.value.numpy():.6g}"  # float(each) fails for a mirrored variable
        if isinstance(each, keras.Variable)
        else "a schedule"
        for each in rates
    )


def warn(cluster: Cluster, *texts: str):
    """Log warnings that every rank has come to. Only the chief logs, and each text only once."""
    if cluster.is_chief:
        for text in texts:
            _warn_once(text)


@functools.cache
def _warn_once(text: str):
    logger.warning(text)


def _fact(callback: keras.callbacks.Callback, is_before: bool) -> Fact:
    kind = next((each for each in _DECIDING if isinstance(callback, each)), None)
    decides = None
    if isinstance(callback, Syncing):
        kind = type(callback)
        decides = f"{kind.__name__}({callback.matching_arguments()})"
    elif kind is not None:
        arguments = ", ".join(f"{name}={getattr(callback, name)!r}" for name in _DECIDING[kind])
        decides = f"{type(callback).__name__}({arguments})"
    own = vars(callback)  # not getattr: a user's property may raise before training
    paths = [own.get(name) for name in _PATHS]
    follows = isinstance(
        callback, keras.callbacks.EarlyStopping | keras.callbacks.ReduceLROnPlateau
    )
    follows |= bool(own.get("save_best_only"))
    return {
        "name": type(callback).__name__,
        "kind": kind.__name__ if kind else None,
        "decides": decides,
        # EarlyStopping that does not restore weights may be on one rank only: when it stops that
        # rank, all ranks stop.
        "strict": own.get("restore_best_weights", True),
        "syncs": isinstance(callback, Syncing),
        "swaps": isinstance(callback, keras.callbacks.SwapEMAWeights),
        "monitor": own.get("monitor") if is_before and follows else None,
        "paths": [_absolute(each) for each in paths if isinstance(each, str | os.PathLike)],
    }


def _absolute(path: str | os.PathLike) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(text)


def _differences(everyone: list[list[Fact]], ranks: tuple[int, ...]):
    """Yield a warning for each harmless difference between callbacks. Raise if one is harmful."""
    for kind in sorted({each["kind"] for own in everyone for each in own if each["kind"]}):
        chosen = [[each for each in own if each["kind"] == kind] for own in everyone]
        texts = [" and ".join(each["decides"] for each in own) or f"no {kind}" for own in chosen]
        if len(set(texts)) == 1:
            continue
        have = ", ".join(f"rank {rank} has {text}" for rank, text in zip(ranks, texts, strict=True))
        if any(each["syncs"] for own in chosen for each in own):
            raise ValueError(
                f"The ranks differ in their callbacks: {have}. On a rank that has this callback, "
                "it waits for all other ranks. Pass it on every rank, with the same arguments, or "
                "on none: not inside `if cluster.is_chief`. If the launcher requests it, give "
                "every worker the same environment variables."
            )
        if any(each["strict"] for own in chosen for each in own):
            raise ValueError(
                f"The ranks differ in their callbacks: {have}. This callback sets weights, "
                "learning rates or the initial epoch on its own rank only. Pass the same one on "
                "every rank."
            )
        yield (
            f"The ranks differ in their callbacks: {have}. When this callback stops one rank, all "
            "ranks stop."
        )


def _own_logs(everyone: list[list[Fact]]):
    """Yield a warning for each callback that reads logs but comes before GossipPGA."""
    found = {each["name"]: each["monitor"] for own in everyone for each in own if each["monitor"]}
    for name, monitor in found.items():
        yield (
            f"{name} comes before GossipPGA in the list of callbacks, so it monitors each rank's "
            f"own {monitor!r} instead of the mean over ranks. Put GossipPGA before it."
        )


def _shared_paths(everyone: list[list[Fact]], ranks: tuple[int, ...]):
    """Yield a warning for each path that several ranks write to."""
    written = [
        (each["name"], path, rank)
        for own, rank in zip(everyone, ranks, strict=True)
        for each in own
        for path in each["paths"]
    ]
    for (name, path), found in itertools.groupby(sorted(written), key=lambda each: each[:2]):
        writers = sorted({rank for *_, rank in found})
        if len(writers) == 1:
            continue
        advice = (
            f"pass it on rank 0 only: if cluster.is_chief: callbacks.append({name}(…))"
            if name != "BackupAndRestore"  # each rank resumes from its own backup
            else 'give each rank its own path: BackupAndRestore(f"backup/{cluster.rank}")'
        )
        yield (
            f"{name} writes to the same path on ranks {', '.join(map(str, writers))}: {path}. "
            f"Unless each rank has its own disk, {advice}."
        )
