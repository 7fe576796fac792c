"""Find the variables and optimizers of a model, and decide how each is exchanged.

Keras tracks the variables of layers. It does not track a `tf.Variable` that a layer creates
directly, nor any optimizer other than the one passed to `compile`. This module finds these
variables and optimizers by walking through the attributes of the model and its layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_gossip_pga.exchange.averager import Variables
from tf_gossip_pga.exchange.outer_state import OuterState

# Dtypes that a global average can average.
_AVERAGED = (tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128)

# Dtypes that are not numeric and cannot be sent.
_OPAQUE = (tf.string, tf.resource, tf.variant)


@dataclasses.dataclass(frozen=True)
class Held:
    """A variable of a model or of one of its optimizers.

    Attributes:
      path: the names of the layers that hold it and its own name, as in Keras' `path`.
      kind: `"trainable"`, `"frozen"`, `"random"` (the state of a random generator) or
        `"optimizer"`.
      value: the `tf.Variable` itself, not Keras' wrapper.
      is_raw: whether Keras does not track the variable, and so does not save it with the model.
        Default False.
    """

    path: str
    kind: str
    value: Any  # a mirrored variable on a worker with several devices
    is_raw: bool = False

    @property
    def is_sendable(self) -> bool:
        """Return whether the variable can be sent: it is numeric, with a fully defined shape."""
        return self.value.dtype not in _OPAQUE and self.value.shape.is_fully_defined()

    @property
    def is_averaged(self) -> bool:
        """Return whether global averages include this variable, unless `local` names it."""
        is_model = self.kind in ("trainable", "frozen")
        return is_model and self.is_sendable and self.value.dtype in _AVERAGED

    @property
    def is_slot(self) -> bool:
        """Return whether this variable is an optimizer slot, such as momentum.

        Slots are the optimizer's non-scalar floating-point variables.
        """
        is_number = self.value.dtype in _AVERAGED
        return self.kind == "optimizer" and self.value.shape.rank != 0 and is_number

    def is_local(self, names: Collection[str]) -> bool:
        """Return whether one of the names is this variable's path or a component of that path.

        Optimizer variables are never local.
        """
        if self.kind == "optimizer":
            return False
        return self.path in names or not {*self.path.split("/")}.isdisjoint(names)

    def assign(self, value):
        """Assign a value to the variable."""
        self.value.assign(value)


def variables_of(
    model: keras.Model,
    optimizer_state: str,
    local: Collection[str],
    outer: OuterState | None = None,
) -> Variables:
    """Return the variables that a run exchanges, grouped by how they are exchanged.

    Args:
      model: a compiled model with built optimizers.
      optimizer_state: the argument `optimizer_state` of `GossipPGA`.
      local: the argument `local` of `GossipPGA`.
      outer: the state of the outer optimizer. Default None: no outer optimizer.
    """
    sent = [each for each in held(model) if each.is_sendable and not each.is_local(local)]
    averaged = [each for each in sent if each.is_averaged]
    slots = [each.value for each in sent if each.is_slot]
    return Variables(
        parameters=[each.value for each in averaged if each.kind == "trainable"],
        statistics=[each.value for each in averaged if each.kind == "frozen"],
        others=[each.value for each in sent if not each.is_averaged and each.kind != "random"],
        slots=[] if optimizer_state == "local" else slots,
        outer=outer,
    )


def held(model: keras.Model) -> list[Held]:
    """Return the variables of a model and its built optimizers, each once, in a fixed order."""
    optimizers = [
        Held(v.path, "optimizer", v.value)
        for optimizer, _ in optimizers_of(model)
        for v in optimizer.variables
    ]
    return _unique([*held_by_layers(model), *optimizers])


def held_by_layers(model: keras.Model) -> list[Held]:
    """Return a model's variables without its optimizers', each once, in a fixed order."""
    found = [(path, thing) for path, _, thing in walk(model)]
    random = {
        id(thing.state) for _, thing in found if isinstance(thing, keras.random.SeedGenerator)
    }
    known = [
        Held(v.path, "random" if id(v) in random else _kind(v), v.value) for v in model.variables
    ]
    raw = [
        Held(path, _kind(thing), thing, is_raw=True)
        for path, thing in found
        if isinstance(thing, tf.Variable)
    ]
    return _unique([*known, *raw])


def optimizers_of(model: keras.Model) -> list[tuple[keras.optimizers.Optimizer, Any]]:
    """Return the optimizers of a model, each with the layer that holds it.

    The optimizer passed to `compile` comes first, if there is one. The others are found in
    attributes.
    """
    own = [] if model.optimizer is None else [(model.optimizer, model)]
    held_elsewhere = [
        (thing, layer)
        for _, layer, thing in walk(model)
        if isinstance(thing, keras.optimizers.Optimizer) and thing is not model.optimizer
    ]
    return own + held_elsewhere


def build(model: keras.Model):
    """Build the variables of all optimizers. Keras would build them only in the first step.

    Also mark a model without its own `call` as built, because Keras saves and loads weights only
    for built models. Such a model calls its layers in its `train_step`.
    """
    if not has_call(model):
        model.built = True
    for optimizer, layer in optimizers_of(model):
        if not optimizer.built:
            optimizer.build(layer.trainable_variables)


def has_call(model: keras.Model) -> bool:
    """Return whether a model defines `call`. One with its own `train_step` need not define it."""
    return type(model).call is not keras.Model.call


def walk(model: keras.Model) -> Iterator[tuple[str, Any, Any]]:
    """Yield the objects in the attributes of a model and its layers, each once.

    Objects come in the order in which the attributes were assigned, which is the same on all ranks.

    Yields:
      `(path, layer, thing)`: the object's path (the names of the layer that holds it and of its
      attribute), that layer, and the object itself. The object has one of the types in `_FOUND`.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any, Any]] = [(model.name, model, model)]
    while waiting:
        path, layer, thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield path, layer, thing
        if isinstance(thing, keras.layers.Layer):
            path, layer = thing.name, thing
        children = [(f"{path}/{name}", layer, child) for name, child in _children(thing)]
        waiting += reversed(children)


_CONTAINERS = (keras.layers.Layer, tf.Module, dict, list, tuple)
_FOUND = (
    *_CONTAINERS,
    tf.Variable,
    keras.optimizers.Optimizer,
    keras.random.SeedGenerator,
    tf.saved_model.experimental.TrackableResource,  # lookup tables
)


def _children(thing) -> list[tuple[str, Any]]:
    """Return a container's attributes or elements of the types in `_FOUND`, with their names."""
    if isinstance(thing, (keras.layers.Layer, tf.Module)):
        pairs = vars(thing).items()
    elif isinstance(thing, dict):
        pairs = thing.items()
    elif isinstance(thing, (list, tuple)):
        pairs = enumerate(thing)
    else:
        return []
    # Skip the _self_… lists, in which Keras and TensorFlow keep attributes without their names.
    return [
        (str(name), child)
        for name, child in pairs
        if isinstance(child, _FOUND) and not str(name).startswith("_self_")
    ]


def _unique(variables: list[Held]) -> list[Held]:
    """Keep only the first entry for each variable."""
    first: dict[int, Held] = {}
    for each in variables:
        first.setdefault(id(each.value), each)
    return list(first.values())


def _kind(variable) -> str:
    return "trainable" if variable.trainable else "frozen"
