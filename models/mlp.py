"""Build a small fully connected network."""

import keras
from keras import layers


def mlp(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return a network with two hidden layers of width 64.

    It is small enough for studies with many workers on one machine.

    Args:
      input_shape: shape of one image, any rank.
      classes: number of classes.

    Returns:
      A model from images `[batch, *input_shape]` float32 to logits `[batch, classes]` float32.
    """
    images = keras.Input(input_shape, name="images")
    x = layers.Flatten()(images)
    for _ in range(2):
        x = layers.Dense(64, "relu")(x)
    return keras.Model(images, layers.Dense(classes, dtype="float32", name="logits")(x), name="mlp")
