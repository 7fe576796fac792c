"""Build Keras models, their data sets and their training recipes.

    model = models.build("resnet20", input_shape=(8, 8, 1), classes=10)
    recipe = recipes.RECIPES["resnet20"]
    data = inputs.find(recipe.dataset)

This package does not import `tf_gossip_pga`.

Contents:
  MODELS, build: the models by name.
  check, kind: whether a name is known, and whether that model reads images or text.
  FOUND_IN: where to find the arguments of `build` in a saved model.
  inputs: the data sets by name.
  recipes: optimizer, learning rate and loss for each model.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Name of a model -> module with a function of that name. A module, and with it Keras, is imported
# only to build a model, because train.py checks its flags in a process without TensorFlow.
MODELS = {
    "mlp": "mlp",
    "resnet20": "resnet",
    "resnet50": "resnet",
    "bert_tiny": "bert",
    "bert_base": "bert",
    "bert_large": "bert",
}

# Kind -> argument of `build` -> layer of a saved model, and the field of its configuration that
# holds the argument's value.
FOUND_IN = {
    "images": {"input_shape": ("images", "batch_shape"), "classes": ("logits", "units")},
    "text": {"vocabulary_size": ("masked_lm_head", "vocabulary_size")},
}


def check(name: str) -> None:
    """Raise `ValueError` unless `name` is in `MODELS`."""
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(sorted(MODELS))}.")


def kind(name: str) -> str:
    """Return `"images"` for an image classifier, `"text"` for a masked language model.

    Args:
      name: one of `MODELS`.

    Raises:
      ValueError: the name is unknown.
    """
    check(name)
    return "text" if MODELS[name] == "bert" else "images"


def build(name: str, **arguments) -> "keras.Model":
    """Return a new, uncompiled model.

    Args:
      name: one of `MODELS`.
      **arguments: arguments of the model's function: `input_shape` (of one image) and `classes` for
        images, `vocabulary_size` for text.

    Returns:
      A model from inputs to logits `[batch, …, classes]` float32.

    Raises:
      ValueError: the name is unknown.
    """
    check(name)
    module = importlib.import_module(f"{__name__}.{MODELS[name]}")
    return getattr(module, name)(**arguments)
