"""Residual networks for images.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

import keras
from keras import layers


def resnet20(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """ResNet-20 for small images (He et al. 2016, section 4.2).

    A 3x3 convolution, three stages of three basic blocks with 16, 32 and 64 filters (the second and
    third stage halve the image), global average pooling and a dense layer: 20 layers with weights.
    Shortcuts have no parameters (the paper's option A). For 32 x 32 x 3 images and 10 classes it
    has 269 722 trainable parameters, and 1 376 moving statistics of its BatchNorms.

    Two departures: BatchNorm's moving averages have the momentum 0.9 rather than Keras' 0.99, so
    that they are of use after some dozen steps; and the output is logits, not probabilities, which
    is numerically better behind a loss with `from_logits=True`.

    Args:
      input_shape: `(height, width, channels)`, any size; height and width may be None.
      classes: number of classes.

    Returns:
      A model from images `[batch, height, width, channels]` float32, values around 0 … 1, to logits
      `[batch, classes]` float32.

    Example:

        model = resnet20((32, 32, 3), 10)
    """
    images = keras.Input(input_shape, name="images")
    x = _convolution(images, 16)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    for filters in (16, 32, 64):
        for block in range(3):
            x = _basic_block(x, filters, strides=2 if filters > 16 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(classes, name="logits")(x), name="resnet20")


def _basic_block(x, filters: int, strides: int):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""
    y = _convolution(x, filters, strides)
    y = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.BatchNormalization(momentum=0.9)(_convolution(y, filters))
    return layers.Activation("relu")(layers.Add()([_shortcut(x, filters, strides), y]))


def _shortcut(x, filters: int, strides: int):
    """The identity; where the shape changes, every other pixel and zeros for the new channels."""
    if strides > 1:
        x = layers.MaxPooling2D(pool_size=1, strides=strides)(x)
    new = filters - x.shape[-1]
    return keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [new // 2, new - new // 2]]) if new else x


def _convolution(x, filters: int, strides: int = 1):
    """3x3, no bias: the BatchNorm that always follows has one."""
    return layers.Conv2D(
        filters,
        3,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
