"""Return the part of a `tf.data.Dataset` that one of several workers reads.

The launcher imports this module. So that the launcher does not load TensorFlow, this module imports
TensorFlow only inside the function that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

_INFINITE, _UNKNOWN = -1, -2  # tf.data.INFINITE_CARDINALITY and UNKNOWN_CARDINALITY


def shard(dataset: tf.data.Dataset, place: int, workers: int) -> tf.data.Dataset:
    """Return the elements whose index e satisfies `e % workers == place`.

    Elements at the end are dropped so that every worker gets the same number of elements.

    Args:
      dataset: a `tf.data.Dataset` that yields the same elements in the same order on every rank.
      place: index of this worker among the surviving workers, from 0.
      workers: number of surviving workers.

    Returns:
      A `tf.data.Dataset`.

    Raises:
      TypeError: `dataset` is not a `tf.data.Dataset`.
      ValueError: the dataset has fewer elements than there are surviving workers.
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
            f"The dataset has {elements} elements, fewer than the {workers} workers, so some "
            "workers would have no data. Use fewer workers, or shard before batching."
        )
    return dataset.take(elements // workers * workers).shard(workers, place)


def _shard_of_unknown_length(dataset: Any, place: int, workers: int) -> tf.data.Dataset:
    """Return the element at index `place` of each complete group of `workers` elements."""
    import tensorflow as tf

    def own(_: Any, group: Any) -> tf.data.Dataset:
        # `group` is a dataset, or a nested structure of datasets if the elements are nested.
        return tf.data.Dataset.zip(group).skip(place).take(1)

    # Because of `enumerate`, every window is a pair (indices, elements), whatever the structure of
    # the elements. `flat_map` therefore always calls `own` with two arguments.
    return dataset.enumerate().window(workers, drop_remainder=True).flat_map(own)
