"""Find the variables and optimizers of a model, and say what becomes of each.

Keras knows the variables of layers. Others hang on attributes: a `tf.Variable` that a layer has
made itself, an optimizer beside that of `compile`. They are found by a walk through attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_gossip_pga.exchange.averager import Variables

# What a global average can average.
_AVERAGED = (tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128)

# What has no numbers in a known place.
_OPAQUE = (tf.string, tf.resource, tf.variant)


@dataclasses.dataclass(frozen=True)
class Held:
    """A variable of a model or of one of its optimizers.

    Attributes:
      path: names of layers and of the variable, as in Keras' `path`.
      kind: `"trainable"`, `"frozen"`, `"random"` (the state of a random generator), `"optimizer"`.
      value: the `tf.Variable` itself, not Keras' object around it.
      is_raw: whether Keras does not know it, and so does not save it with the model.
    """

    path: str
    kind: str
    value: Any  # under a strategy TensorFlow's mirrored variable
    is_raw: bool = False

    @property
    def is_sendable(self) -> bool:
        """Whether it can be sent: its numbers have a type and a shape that ranks know."""
        return self.value.dtype not in _OPAQUE and self.value.shape.is_fully_defined()

    @property
    def is_averaged(self) -> bool:
        """Whether global averages average it, unless the user wants it to be local."""
        is_model = self.kind in ("trainable", "frozen")
        return is_model and self.is_sendable and self.value.dtype in _AVERAGED

    @property
    def is_slot(self) -> bool:
        """Whether it is one of its optimizer's slots (momentum and the like).

        Slots are its floating-point variables other than scalars.
        """
        is_number = self.value.dtype in _AVERAGED
        return self.kind == "optimizer" and self.value.shape.rank != 0 and is_number

    def is_local(self, names: Collection[str]) -> bool:
        """Return whether a name is that of this variable of the model, or of a layer around it."""
        if self.kind == "optimizer":
            return False
        return self.path in names or not {*self.path.split("/")}.isdisjoint(names)

    def assign(self, value):
        """Set it."""
        self.value.assign(value)


def variables_of(model: keras.Model, optimizer_state: str, local: Collection[str]) -> Variables:
    """Return what a run exchanges.

    Args:
      model: compiled, with built optimizers.
      optimizer_state: what becomes of the optimizer's slots; see `GossipPGA`.
      local: names of what each rank keeps for itself; see `GossipPGA`.
    """
    sent = [each for each in held(model) if each.is_sendable and not each.is_local(local)]
    averaged = [each for each in sent if each.is_averaged]
    slots = [each.value for each in sent if each.is_slot]
    return Variables(
        parameters=[each.value for each in averaged if each.kind == "trainable"],
        statistics=[each.value for each in averaged if each.kind == "frozen"],
        others=[each.value for each in sent if not each.is_averaged and each.kind != "random"],
        slots=[] if optimizer_state == "local" else slots,
    )


def held(model: keras.Model) -> list[Held]:
    """Return the variables of a model and of its built optimizers, each once, in a fixed order."""
    optimizers = [
        Held(v.path, "optimizer", v.value)
        for optimizer, _ in optimizers_of(model)
        for v in optimizer.variables
    ]
    return _unique([*held_by_layers(model), *optimizers])


def held_by_layers(model: keras.Model) -> list[Held]:
    """Return the variables of a model, each once, in a fixed order; not those of optimizers."""
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

    The first is that of `compile`, if it was given one; the others hang on attributes.
    """
    own = [] if model.optimizer is None else [(model.optimizer, model)]
    held_elsewhere = [
        (thing, layer)
        for _, layer, thing in walk(model)
        if isinstance(thing, keras.optimizers.Optimizer) and thing is not model.optimizer
    ]
    return own + held_elsewhere


def build(model: keras.Model):
    """Build what Keras would build in the first step: the variables of all optimizers.

    A model without a `call` of its own, whose `train_step` calls its layers, counts as built, so
    that Keras saves and loads its weights.
    """
    if not has_call(model):
        model.built = True
    for optimizer, layer in optimizers_of(model):
        if not optimizer.built:
            optimizer.build(layer.trainable_variables)


def has_call(model: keras.Model) -> bool:
    """Return whether a model can be called; one that only trains need not."""
    return type(model).call is not keras.Model.call


def walk(model: keras.Model) -> Iterator[tuple[str, Any, Any]]:
    """Yield what hangs on a model's attributes, each once, in the order of their assignment.

    Yields:
      `(path, layer, thing)`: the names of the layer that holds it and of its attribute, the layer,
      and one of the types in `_children`.
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
    """Return the attributes or elements of a container that may be of interest, with names."""
    if isinstance(thing, (keras.layers.Layer, tf.Module)):
        pairs = vars(thing).items()
    elif isinstance(thing, dict):
        pairs = thing.items()
    elif isinstance(thing, (list, tuple)):
        pairs = enumerate(thing)
    else:
        return []
    # TensorFlow's and Keras' own lists of an object's attributes would only hide their names.
    return [
        (str(name), child)
        for name, child in pairs
        if isinstance(child, _FOUND) and not str(name).startswith("_self_")
    ]


def _unique(variables: list[Held]) -> list[Held]:
    """Return the first mention of each variable."""
    first: dict[int, Held] = {}
    for each in variables:
        first.setdefault(id(each.value), each)
    return list(first.values())


def _kind(variable) -> str:
    return "trainable" if variable.trainable else "frozen"
