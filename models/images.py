"""Batches of images: random changes to train on, the same picture each time to validate on.

A batch is `(images, labels)`: float32 `[batch, height, width, channels]` and int32 `[batch]`.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

CROP = 224  # pixels a side, of images that have no common size
_RESIZED = 256  # pixels of the shorter side from which the middle is cut to validate on
# Of the training images: red, green, blue, from 0 to 1.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


@dataclasses.dataclass(frozen=True)
class Images:
    """How examples become batches.

    Attributes:
      input_shape: height, width, channels of what a model receives.
      classes: number of classes; labels are 0 … classes-1.
      mean, std: of each channel, for values from 0 to 1; by default those stay as they are.
      shift: pixels by which an image is moved at most, in both directions, to train on.
      flip: whether half of the images are mirrored to train on.
      encoded: the examples are files of any size: JPEG, or what `tf.io.decode_image` takes.
    """

    kind = "images"

    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    shift: int = 0
    flip: bool = False
    encoded: bool = False

    @property
    def arguments(self) -> dict:
        """What a model is built with."""
        return {"input_shape": self.input_shape, "classes": self.classes}

    def training(
        self, examples: "tf.data.Dataset", batch_size: int, augment: bool = True
    ) -> "tf.data.Dataset":
        """Full batches, each image changed at random where `augment` is set."""
        if not augment:
            return self._plain(examples, batch_size, drop_remainder=True)
        if self.encoded:
            changed = _each(examples, lambda file: self._augmented(random_crop(file)), False)
            return changed.batch(batch_size, drop_remainder=True)
        batches = examples.batch(batch_size, drop_remainder=True)
        return batches.map(lambda images, labels: (self._augmented(images), labels))

    def validation(self, examples: "tf.data.Dataset", batch_size: int) -> "tf.data.Dataset":
        """Batches of images as they are; of files of any size, their middle."""
        return self._plain(examples, batch_size, drop_remainder=False)

    def _plain(self, examples, batch_size: int, drop_remainder: bool):
        if self.encoded:
            scaled = _each(examples, lambda file: self._scaled(middle(file)))
            return scaled.batch(batch_size, drop_remainder)
        batches = examples.batch(batch_size, drop_remainder)
        return batches.map(lambda images, labels: (self._scaled(images), labels))

    def _augmented(self, images):
        import tensorflow as tf

        images = self._scaled(images)
        if self.shift:
            images = shifted(images, self.shift)
        return tf.image.random_flip_left_right(images) if self.flip else images

    def _scaled(self, images):
        import tensorflow as tf

        top = 255 if self.encoded else images.dtype.max if images.dtype.is_integer else 1
        # As large as an image: to broadcast along the last axis takes twice the time.
        mean, std = (np.full(self.input_shape, each, np.float32) for each in (self.mean, self.std))
        return tf.cast(images, tf.float32) * (1 / (top * std)) - mean / std


def _each(examples, change: Callable, deterministic: bool = True):
    """Files go through all changes one by one: a large image stays in the processor's cache."""
    import tensorflow as tf

    return examples.map(
        lambda file, label: (change(file), label), tf.data.AUTOTUNE, deterministic=deterministic
    )


def shifted(images: "tf.Tensor", pixels: int) -> "tf.Tensor":
    """Each image moved by up to `pixels` in both directions; what comes in is 0.

    The same as a border of `pixels` and a random crop. After scaling, as here, 0 is the mean: He et
    al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Args:
      images: `[batch, height, width, channels]`.
    """
    import tensorflow as tf

    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]])
    low, high = 0, 2 * pixels + 1
    rows = tf.random.uniform(tf.stack([count, 1]), low, high, tf.int32) + tf.range(height)
    columns = tf.random.uniform(tf.stack([count, 1]), low, high, tf.int32) + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def random_crop(encoded: "tf.Tensor") -> "tf.Tensor":
    """A random part of an image file, resized: float32 `[CROP, CROP, 3]` in 0 … 255.

    8 to 100 % of the area, 3/4 to 4/3 as wide as high: Szegedy et al., "Going Deeper with
    Convolutions", CVPR 2015, section 6. The draw is TensorFlow's; after ten that do not fit it is
    the whole image.
    """
    import tensorflow as tf

    def window(shape):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    return _cut(encoded, window)


def middle(encoded: "tf.Tensor") -> "tf.Tensor":
    """The middle of an image file: float32 `[CROP, CROP, 3]` in 0 … 255.

    To resize the shorter side to 256 and then to cut 224 x 224 would be the same, but for less than
    a pixel of the file; this decodes and resizes only what stays.
    """
    import tensorflow as tf

    def window(shape):
        height, width = shape[0], shape[1]
        side = tf.minimum(height, width) * CROP // _RESIZED
        return tf.stack([(height - side) // 2, (width - side) // 2, side, side])

    return _cut(encoded, window)


def _cut(encoded, window):
    """The window, as `[top, left, height, width]` of the image's shape, resized."""
    import tensorflow as tf

    def jpeg():
        return tf.io.decode_and_crop_jpeg(
            encoded, window(tf.io.extract_jpeg_shape(encoded)), channels=3
        )

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return image[top : top + height, left : left + width]

    cut = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.image.resize(cut, [CROP, CROP])
