"""Data sets as tf.data, by name.

    data = inputs.find("digits")
    training, validation = data.load()                   # examples, the same on every rank
    batches = data.batches(cluster.shard(training), 32)  # this rank's part, shuffled, augmented

A rank's part is taken between `load` and `batches`: all ranks then agree on who has which examples,
in whatever order each goes through its own.

TensorFlow is imported when data are loaded, so that train.py can check its flags without it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is loaded, and how to load it.

    Attributes:
      name: as in `DATASETS`.
      input_shape: shape of one input, without the batch.
      classes: number of classes; labels are int32 in 0 … classes-1.
      training_examples: number of examples to train on.
      read: returns `(inputs, labels)` as arrays, training and validation together.
      augment: changes a batch of training inputs at random, or None.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    training_examples: int
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    augment: Callable | None = None

    def load(self):
        """Two `tf.data.Dataset`s of `(input, label)`: to train on and, every 5th, to validate on.

        The order is the same in every process.
        """
        import tensorflow as tf

        inputs, labels = self.read()
        validates = np.arange(len(labels)) % 5 == 0
        return tuple(
            tf.data.Dataset.from_tensor_slices((inputs[chosen], labels[chosen]))
            for chosen in (~validates, validates)
        )

    def batches(self, examples, batch_size: int):
        """Shuffled, augmented training batches, all of `batch_size`; a new order each time.

        Args:
          examples: a `tf.data.Dataset` of `(input, label)`.
          batch_size: number of examples of a batch; what is left over waits for another order.
        """
        batches = examples.shuffle(self.training_examples).batch(batch_size, drop_remainder=True)
        if self.augment:
            batches = batches.map(lambda inputs, labels: (self.augment(inputs), labels))
        return batches.prefetch(2)


def find(name: str) -> Dataset:
    """The data set of this name.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise ValueError(f"Unknown dataset {name!r}. Known datasets: {known}.")
    return DATASETS[name]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 8, 8, 1]` float32 in 0 … 1 and labels `[1797]` int32.

    They are inside scikit-learn, nothing is downloaded. Source: Alpaydin and Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images[..., np.newaxis] / 16  # ink from 0 to 16
    return images.astype(np.float32), digits.target.astype(np.int32)


def _shift(images):
    """Each image moved by -1, 0 or 1 pixels in both directions; what comes in is empty.

    Args:
      images: `[batch, height, width, channels]`.
    """
    import tensorflow as tf

    count, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    rows = tf.random.uniform([count, 1], 0, 3, tf.int32) + tf.range(height)
    columns = tf.random.uniform([count, 1], 0, 3, tf.int32) + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


DATASETS = {
    "digits": Dataset(
        name="digits",
        input_shape=(8, 8, 1),
        classes=10,
        training_examples=1437,
        read=_digits,
        augment=_shift,
    )
}
