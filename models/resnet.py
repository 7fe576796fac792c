"""Build residual networks for images.

Sources: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; Goyal
et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677.
"""

from typing import Any

import keras
from keras import layers


def resnet20(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return ResNet-20 for small images (He et al. 2016, section 4.2).

    It has a 3x3 convolution, three stages of three basic blocks with 16, 32 and 64 filters (the
    second and third stages halve the image size), global average pooling and a dense layer: 20
    layers with weights. Shortcuts have no parameters (option A of the paper). With 32 x 32 x 3
    images and 10 classes, there are 269,722 trainable parameters and 1,376 moving statistics of
    BatchNorm.

    Departures from the paper: each block is initially the identity (Goyal et al. 2017, section
    5.1). BatchNorm's moving averages have a momentum of 0.9 instead of the Keras default 0.99,
    which makes them useful after a few dozen steps. The output is logits instead of probabilities,
    which is numerically more stable with a `from_logits=True` loss.

    Args:
      input_shape: `(height, width, channels)`, of any size. Height and width may be None.
      classes: number of classes.

    Returns:
      A model from images `[batch, height, width, channels]` float32, with values around 0 … 1, to
      logits `[batch, classes]` float32.

    Example:
      >>> from models import resnet
      >>> resnet.resnet20((32, 32, 3), 10).output.shape
      (None, 10)
    """
    images = keras.Input(input_shape, name="images")
    x = _convolution(images, 16)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    for filters in (16, 32, 64):
        for block in range(3):
            x = _basic_block(x, filters, strides=2 if filters > 16 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, _logits(x, classes), name="resnet20")


def resnet50(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Return ResNet-50 in its common form, with 25,557,032 parameters for 1000 classes.

    Departures from He et al. 2016, table 1: a block that halves the image size does so in its 3x3
    convolution instead of the 1x1 convolution before it ("v1.5"). Each block is initially the
    identity, because the scale of its last BatchNorm starts at zero. This and the other initial
    weights are from Goyal et al. 2017, section 5.1. Convolutions have no bias. BatchNorm has
    momentum 0.9 and epsilon 1e-5.

    KerasHub builds the graph from Keras layers, so loading a saved model does not require KerasHub.

    Args:
      input_shape: `(height, width, channels)`, of any size. Height and width may be None.
      classes: number of classes.

    Returns:
      A model from images `[batch, height, width, channels]` float32, with mean about 0 and standard
      deviation about 1, to logits `[batch, classes]` float32.

    Example:
      >>> from models import resnet
      >>> resnet.resnet50((224, 224, 3), 1000).output.shape
      (None, 1000)
    """
    from keras_hub.models import ResNetBackbone  # takes half a second; not needed by resnet20

    backbone = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=input_shape,
    )
    images = keras.Input(input_shape, name="images")
    graph = keras.models.clone_model(
        keras.Model(backbone.input, backbone.output),
        input_tensors=images,
        clone_function=_with_initial_weights_of_goyal,
    )
    x = layers.GlobalAveragePooling2D()(graph.output)
    normal = keras.initializers.RandomNormal(stddev=0.01)
    return keras.Model(images, _logits(x, classes, normal), name="resnet50")


def _with_initial_weights_of_goyal(layer):
    """Return a copy of one of the backbone's layers, with the initial weights of Goyal et al."""
    config = layer.get_config()
    if isinstance(layer, layers.Conv2D):
        config["kernel_initializer"] = "he_normal"
    if layer.name.endswith("_3_bn"):  # the last BatchNorm of a block; a test counts these layers
        config["gamma_initializer"] = "zeros"
    return type(layer).from_config(config)


def _basic_block(x, filters: int, strides: int):
    """Return relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))).

    The scale of the outer bn is initially 0, which makes the block the identity at first.
    """
    y = _convolution(x, filters, strides)
    y = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.BatchNormalization(momentum=0.9, gamma_initializer="zeros")(_convolution(y, filters))
    return layers.Activation("relu")(layers.Add()([_shortcut(x, filters, strides), y]))


def _shortcut(x, filters: int, strides: int):
    """Return the shortcut of a block, which has no parameters (option A of the paper).

    The shortcut is x itself if the shape does not change. Otherwise, it is every other pixel of x,
    with zeros for the new channels.
    """
    if strides > 1:
        x = layers.MaxPooling2D(pool_size=1, strides=strides)(x)
    new = filters - x.shape[-1]
    return keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [new // 2, new - new // 2]]) if new else x


def _convolution(x, filters: int, strides: int = 1):
    """Apply a 3x3 convolution without bias, because the BatchNorm that always follows has one."""
    return layers.Conv2D(
        filters,
        3,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)


def _logits(x, classes: int, kernel_initializer: Any = "glorot_uniform"):
    """Return logits `[batch, classes]`, float32 regardless of the dtype policy."""
    return layers.Dense(
        classes, kernel_initializer=kernel_initializer, dtype="float32", name="logits"
    )(x)
