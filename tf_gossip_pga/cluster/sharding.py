"""Return the part of a `tf.data.Dataset` that one of several workers reads.

TensorFlow is imported where a dataset is there already, so that a launcher needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

_INFINITE, _UNKNOWN = -1, -2  # tf.data.INFINITE_CARDINALITY and UNKNOWN_CARDINALITY


def shard(dataset: tf.data.Dataset, place: int, workers: int) -> tf.data.Dataset:
    """Return every element e with `e % workers == place`, as many for each place.

    Raises:
      TypeError: not a `tf.data.Dataset`.
      ValueError: fewer elements than workers.
    """
    if not hasattr(dataset, "cardinality"):
        raise TypeError(
            "cluster.shard needs a tf.data.Dataset, received "
            f"{type(dataset).__name__}. Wrap arrays with "
            "tf.data.Dataset.from_tensor_slices((x, y))."
        )
    if workers == 1:
        return dataset
    elements = int(dataset.cardinality())
    if elements == _INFINITE:
        return dataset.shard(workers, place)
    if elements == _UNKNOWN:
        return _shard_of_unknown_length(dataset, place, workers)
    if elements < workers:
        raise ValueError(
            f"The dataset has {elements} elements, fewer than the {workers} workers, so that "
            "some would have nothing to train on. Use fewer workers or shard before batching."
        )
    return dataset.take(elements // workers * workers).shard(workers, place)


def _shard_of_unknown_length(dataset: Any, place: int, workers: int) -> tf.data.Dataset:
    """Return one element of each whole group of `workers` elements."""
    import tensorflow as tf

    def own(_: Any, group: Any) -> tf.data.Dataset:
        # The group is a dataset, or a nest of them.
        return tf.data.Dataset.zip(group).skip(place).take(1)

    # enumerate: the window then is a pair, whatever the elements are.
    return dataset.enumerate().window(workers, drop_remainder=True).flat_map(own)
