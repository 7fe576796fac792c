"""Keras models, how each is trained, and their data; knows nothing of gossip.

    model = models.build("resnet20", input_shape=(8, 8, 1), classes=10)
    recipe = recipes.RECIPES["resnet20"]
    data = inputs.find(recipe.dataset)

Contents:
  build: a model of `MODELS` by name.
  kind: what a model reads, images or text.
  inputs: the data sets by name.
  recipes: optimizer, learning rate and loss by a model's name.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Name of a model -> the module that has a function of this name. A module, and with it Keras, is
# loaded when its model is built: train.py checks its flags in a process without TensorFlow.
MODELS = {
    "mlp": "mlp",
    "resnet20": "resnet",
    "resnet50": "resnet",
    "bert_tiny": "bert",
    "bert_base": "bert",
    "bert_large": "bert",
}

# Argument of `build` -> the layer of a saved model, and the field of its configuration, with it.
FOUND_IN = {
    "images": {"input_shape": ("images", "batch_shape"), "classes": ("logits", "units")},
    "text": {"vocabulary_size": ("masked_lm_head", "vocabulary_size")},
}


def check(name: str) -> None:
    """Raise `ValueError` unless `name` is a model."""
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(sorted(MODELS))}.")


def kind(name: str) -> str:
    """Return `"images"` for a classifier of images, `"text"` for a masked language model.

    Raises:
      ValueError: the name is unknown.
    """
    check(name)
    return "text" if MODELS[name] == "bert" else "images"


def build(name: str, **arguments) -> "keras.Model":
    """Return a new model, not compiled, from inputs to logits `[batch, …, classes]` float32.

    Args:
      name: one of `MODELS`.
      **arguments: what the model's function takes: `input_shape` (of one image) and `classes` for
        images, `vocabulary_size` for text.

    Raises:
      ValueError: the name is unknown.
    """
    check(name)
    module = importlib.import_module(f"{__name__}.{MODELS[name]}")
    return getattr(module, name)(**arguments)
