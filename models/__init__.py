"""Keras models and tf.data input for `train.py`; knows nothing of gossip.

    model = models.build("resnet20", (8, 8, 1), 10)
    data = inputs.find("digits")

Contents:
  build: a model of `MODELS` by name.
  inputs: the data sets by name.
"""

import importlib

# Name of a model -> the room that has a function of this name. A room, and with it Keras, is loaded
# when its model is built: train.py checks its flags in a process without TensorFlow.
MODELS = {"resnet20": "resnet"}


def check(name: str):
    """Raises `ValueError` unless `name` is a model."""
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(sorted(MODELS))}.")


def build(name: str, input_shape: tuple[int, ...], classes: int):
    """A new `keras.Model`, not compiled, whose output is logits `[batch, classes]`.

    Args:
      name: one of `MODELS`.
      input_shape: shape of one example.
      classes: number of classes.

    Raises:
      ValueError: the name is unknown.
    """
    check(name)
    room = importlib.import_module(f"{__name__}.{MODELS[name]}")
    return getattr(room, name)(input_shape, classes)
