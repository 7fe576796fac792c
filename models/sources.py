"""Give each rank its part of the examples: arrays, TensorFlow Datasets, or rows of documents.

    source = sources.InMemory((images, labels), (images, labels))
    examples = source.training(rank=0, size=4)     # a tf.data.Dataset, in a new order each time

Each rank gets a disjoint part, both for training and for validation. TensorFlow is imported only
when examples are read.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from models import text

if TYPE_CHECKING:
    import tensorflow as tf

_SHUFFLED_BYTES = 1 << 28  # shuffle buffer: 256 MiB, about 2000 images of ImageNet
_SHUFFLED_ROWS = 1 << 14  # shuffle buffer for rows of text: 8 MiB with 128 tokens per row
_HELD_OUT = 10_000  # maximum number of examples held out if there is no validation split
_GROUP = 128  # documents tokenized together; leftover tokens that do not fill a row are dropped


class InMemory:
    """Examples in memory, as arrays whose first axis is the example.

    Args:
      training: `(images, labels)`, or `(rows,)` for text.
      validation: the same for validation.
    """

    def __init__(self, training: tuple[np.ndarray, ...], validation: tuple[np.ndarray, ...]):
        self._training, self._validation = training, validation
        self.training_examples, self.validation_examples = len(training[0]), len(validation[0])

    def shares(self, size: int, classes_per_worker: int | None = None) -> list[int]:
        """Return the number of training examples of each rank.

        Args:
          size: number of ranks.
          classes_per_worker: number of classes that each rank sees. Default None: all.
        """
        return [len(self._part(rank, size, classes_per_worker)) for rank in range(size)]

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """Return this rank's training examples as a `tf.data.Dataset`, reshuffled on each pass.

        Args:
          rank: this rank.
          size: number of ranks.
          classes_per_worker: number of classes that each rank sees. Default None: all.
        """
        part = self._part(rank, size, classes_per_worker)
        return _slices(self._training, part).shuffle(len(part))

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """Return this rank's validation examples in a fixed order, the same number on every rank.

        Args:
          rank: this rank.
          size: number of ranks.
        """
        share = self.validation_examples // size
        return _slices(self._validation, np.arange(share) * size + rank)

    def _part(self, rank: int, size: int, classes_per_worker: int | None = None) -> np.ndarray:
        """Return the indices of this rank's training examples."""
        if classes_per_worker is None:
            return np.arange(rank, self.training_examples, size)
        labels = self._training[1]
        classes = labels.max() + 1
        seen = [
            {(classes_per_worker * each + j) % classes for j in range(classes_per_worker)}
            for each in range(size)
        ]
        parts = []
        for label in seen[rank]:
            ranks = [each for each in range(size) if label in seen[each]]
            parts.append(np.flatnonzero(labels == label)[ranks.index(rank) :: len(ranks)])
        return np.sort(np.concatenate(parts))


def _slices(arrays: tuple[np.ndarray, ...], chosen: np.ndarray) -> "tf.data.Dataset":
    import tensorflow as tf

    first, *others = (each[chosen] for each in arrays)
    options = tf.data.Options()
    # There is nothing to tune, and the tuning thread may sleep for about ten seconds before an
    # iterator can end. With many processes, there is always one that makes the others wait.
    options.autotune.enabled = False
    slices = tf.data.Dataset.from_tensor_slices((first, *others) if others else first)
    return slices.with_options(options)


class Prepared:
    """Read examples of a prepared data set.

    Training uses the split `train`. Validation uses the split `validation`, or else `test`. If the
    data set has neither, validation uses the last 5% of `train`, at most 10,000 examples, and
    training uses the rest.

    Args:
      builder: the `tfds.core.DatasetBuilder` of a prepared data set.
      pick: function that maps an example, a dict of features, to the values to keep.
      decoders: as in `builder.as_dataset`. Default None.
    """

    def __init__(self, builder, pick: Callable, decoders: dict | None = None):
        self._builder, self._pick, self._decoders = builder, pick, decoders
        splits = builder.info.splits
        total = splits["train"].num_examples
        others = [name for name in ("validation", "test") if name in splits]
        if others:
            self._validation = (others[0], 0, splits[others[0]].num_examples)
            kept = total
        else:
            kept = total - min(total // 20, _HELD_OUT)
            self._validation = ("train", kept, total)
        self.training_examples = kept
        self.validation_examples = self._validation[2] - self._validation[1]

    def shares(self, size: int, classes_per_worker: int | None = None) -> list[int]:
        """Return the number of training examples of each rank. The numbers differ by at most one.

        Args:
          size: number of ranks.
          classes_per_worker: not used.
        """
        return [end - start for start, end in itertools.pairwise(self._bounds(size))]

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """Return this rank's training examples as a `tf.data.Dataset`, reshuffled on each pass.

        Args:
          rank: this rank.
          size: number of ranks.
          classes_per_worker: not used.
        """
        examples = self.in_files(rank, size)
        specs: Any = examples.element_spec
        train = self._builder.info.splits["train"]
        # A decoded example may be larger than on disk: a 10 kB image may take 200 kB.
        here = [spec.shape.num_elements() * spec.dtype.size for spec in specs if spec.shape.rank]
        each = max(1, train.num_bytes // train.num_examples, *here)
        return examples.shuffle(max(1, min(_SHUFFLED_BYTES // each, self.shares(size)[rank])))

    def in_files(self, rank: int, size: int) -> "tf.data.Dataset":
        """Return this rank's training examples. Only the order of files is reshuffled on each pass.

        Args:
          rank: this rank.
          size: number of ranks.
        """
        return self._read("train", *self._bounds(size)[rank : rank + 2], shuffle=True)

    def _bounds(self, size: int) -> list[int]:
        return [self.training_examples * rank // size for rank in range(size + 1)]

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """Return this rank's validation examples in a fixed order, the same number on every rank.

        Args:
          rank: this rank.
          size: number of ranks.
        """
        name, start, _ = self._validation
        share = self.validation_examples // size
        return self._read(name, start + share * rank, start + share * (rank + 1))

    def first(self, count: int) -> "tf.data.Dataset":
        """Return the first training examples of the data set.

        Args:
          count: number of examples.
        """
        return self._read("train", 0, count)

    def _read(self, split: str, start: int, end: int, shuffle: bool = False):
        examples = self._builder.as_dataset(
            split=f"{split}[{start}:{end}]", shuffle_files=shuffle, decoders=self._decoders
        )
        return examples.map(self._pick)


class Rows:
    """Read rows of tokens from prepared documents. The number of rows is known only after reading.

    Args:
      documents: reads the documents.
      wordpiece: cuts documents into rows.
    """

    training_examples = validation_examples = None

    def __init__(self, documents: Prepared, wordpiece: text.WordPiece):
        self._documents, self._wordpiece = documents, wordpiece
        self.documents = documents.training_examples  # number of documents for training

    def shares(self, size: int, classes_per_worker: int | None = None) -> None:
        """Return None: the number of rows is unknown.

        Args:
          size: not used.
          classes_per_worker: not used.
        """

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """Return the rows of this rank's documents, reshuffled on each pass.

        Args:
          rank: this rank.
          size: number of ranks.
          classes_per_worker: not used.
        """
        return self._rows(self._documents.in_files(rank, size)).shuffle(_SHUFFLED_ROWS)

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """Return every `size`-th row of all documents, the same number on every rank.

        The number of rows in a document is unknown in advance, so equal shares of documents would
        not give equal shares of rows. Therefore, every rank tokenizes all documents, which is cheap
        compared to running a model.

        Args:
          rank: this rank.
          size: number of ranks.
        """
        together = self._rows(self._documents.validation(0, 1)).batch(size, drop_remainder=True)
        return together.map(lambda rows: rows[rank])

    def _rows(self, documents):
        import tensorflow as tf

        self._wordpiece.rows([])  # train a missing vocabulary here, not in a thread of tf.data

        def rows(documents):
            return self._wordpiece.rows([decoded(each) for each in documents])

        def group(documents):
            found = tf.numpy_function(rows, [documents], tf.int32)
            return tf.ensure_shape(found, [None, self._wordpiece.length])

        return documents.batch(_GROUP).map(group, tf.data.AUTOTUNE).unbatch()


def decoded(document: bytes) -> str:
    """Return a document of TensorFlow Datasets as text.

    Args:
      document: text in UTF-8. Invalid bytes are replaced.
    """
    return document.decode("utf-8", "replace")  # one bad byte must not end a long run


Source = InMemory | Prepared | Rows
