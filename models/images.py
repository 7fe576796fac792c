"""Make batches of images: randomly augmented for training, always the same for validation.

A batch is `(images, labels)`: float32 `[batch, height, width, channels]` and int32 `[batch]`.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

CROP = 224  # side of the square cut out of an image of any size, in pixels
_RESIZED = 256  # shorter side in pixels to which a validation image is resized before the cut
# Statistics of the red, green and blue channels in the training images, for values from 0 to 1.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


@dataclasses.dataclass(frozen=True)
class Images:
    """Describe how examples become batches.

    Attributes:
      kind: `"images"`.
      input_shape: height, width and channels of the images that a model receives.
      classes: number of classes. Labels are 0 … classes-1.
      mean, std: mean and standard deviation of each channel, for values from 0 to 1. The default
        leaves these values unchanged.
      shift: maximum shift of a training image in each direction, in pixels. Default 0.
      flip: whether to mirror each training image with probability 1/2. Default False.
      encoded: whether examples are encoded files of any size: JPEG, or another format that
        `tf.io.decode_image` reads. Default False.
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
        """Arguments of `models.build`."""
        return {"input_shape": self.input_shape, "classes": self.classes}

    def training(
        self, examples: "tf.data.Dataset", batch_size: int, augment: bool = True
    ) -> "tf.data.Dataset":
        """Return full batches for training.

        Args:
          examples: a `tf.data.Dataset` of `(image, label)`.
          batch_size: number of images per batch.
          augment: whether to randomly augment each image. Default True.
        """
        if not augment:
            return self._plain(examples, batch_size, drop_remainder=True)
        if self.encoded:
            changed = _each(examples, lambda file: self._augmented(random_crop(file)), False)
            return changed.batch(batch_size, drop_remainder=True)
        batches = examples.batch(batch_size, drop_remainder=True)
        return batches.map(lambda images, labels: (self._augmented(images), labels))

    def validation(self, examples: "tf.data.Dataset", batch_size: int) -> "tf.data.Dataset":
        """Return batches for validation: images without augmentation, or centers of encoded files.

        Args:
          examples: a `tf.data.Dataset` of `(image, label)`.
          batch_size: number of images per batch. The last batch may be smaller.
        """
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
        # Arrays of the size of an image, because broadcasting along the last axis takes twice as
        # long.
        mean, std = (np.full(self.input_shape, each, np.float32) for each in (self.mean, self.std))
        return tf.cast(images, tf.float32) * (1 / (top * std)) - mean / std


def _each(examples, change: Callable, deterministic: bool = True):
    """Apply a change to each image before batching, while the image is in the CPU cache."""
    import tensorflow as tf

    return examples.map(
        lambda file, label: (change(file), label), tf.data.AUTOTUNE, deterministic=deterministic
    )


def shifted(images: "tf.Tensor", pixels: int) -> "tf.Tensor":
    """Move each image by a random number of pixels in each direction, and fill with 0.

    This is equivalent to padding by `pixels` and taking a random crop. The images must be scaled
    already, so that 0 is the mean of each channel. Source: He et al., "Deep Residual Learning for
    Image Recognition", CVPR 2016, section 4.2.

    Args:
      images: `[batch, height, width, channels]`.
      pixels: maximum shift in each direction.
    """
    import tensorflow as tf

    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]])
    low, high = 0, 2 * pixels + 1
    rows = tf.random.uniform(tf.stack([count, 1]), low, high, tf.int32) + tf.range(height)
    columns = tf.random.uniform(tf.stack([count, 1]), low, high, tf.int32) + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def random_crop(encoded: "tf.Tensor") -> "tf.Tensor":
    """Return a random part of an image file, resized to `[CROP, CROP, 3]` float32 in 0 … 255.

    The part covers 8 to 100% of the area, and its ratio of width to height is 3/4 to 4/3. If ten
    random draws do not fit into the image, TensorFlow returns the whole image.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.

    Args:
      encoded: the content of the file, a string scalar.
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
    """Return the center of an image file, resized to `[CROP, CROP, 3]` float32 in 0 … 255.

    The usual method resizes the shorter side to 256 pixels and then cuts out 224 x 224. This
    function decodes and resizes only the part that remains. That part differs from the usual one
    by less than one pixel of the file.

    Args:
      encoded: the content of the file, a string scalar.
    """
    import tensorflow as tf

    def window(shape):
        height, width = shape[0], shape[1]
        side = tf.minimum(height, width) * CROP // _RESIZED
        return tf.stack([(height - side) // 2, (width - side) // 2, side, side])

    return _cut(encoded, window)


def _cut(encoded, window):
    """Cut a window out of an image file, and resize it.

    Args:
      encoded: the content of the file, a string scalar.
      window: function from the shape of the image to `[top, left, height, width]`.
    """
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
