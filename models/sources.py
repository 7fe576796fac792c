"""Who reads which examples: arrays in memory, files of TensorFlow Datasets, rows of documents.

    source = sources.InMemory((images, labels), (images, labels))
    examples = source.training(rank=0, size=4)     # a tf.data.Dataset, in a new order each time

The parts of all ranks are disjoint, to train on and to validate on. TensorFlow is imported when
examples are read.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from models import text

if TYPE_CHECKING:
    import tensorflow as tf

_SHUFFLED_BYTES = 1 << 28  # of examples waiting to be drawn from: 256 MiB, 2000 images of ImageNet
_SHUFFLED_ROWS = 1 << 14  # rows of text, likewise: 8 MiB with 128 tokens
_HELD_OUT = 10_000  # examples at most, of a set that has none to validate on
_GROUP = 128  # documents tokenised together; what is left over of their tokens is dropped


class InMemory:
    """Examples as arrays; the first axis counts them.

    Args:
      training, validation: `(images, labels)`, or rows of text in a tuple of one.
    """

    def __init__(self, training: tuple[np.ndarray, ...], validation: tuple[np.ndarray, ...]):
        self._training, self._validation = training, validation
        self.training_examples, self.validation_examples = len(training[0]), len(validation[0])

    def shares(self, size: int, classes_per_worker: int | None = None) -> list[int]:
        """Training examples of each rank."""
        return [len(self._part(rank, size, classes_per_worker)) for rank in range(size)]

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """This rank's examples, in a new order each time, as a `tf.data.Dataset`."""
        part = self._part(rank, size, classes_per_worker)
        return _slices(self._training, part).shuffle(len(part))

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """This rank's examples in their own order."""
        share = self.validation_examples // size
        return _slices(self._validation, np.arange(share) * size + rank)

    def _part(self, rank: int, size: int, classes_per_worker: int | None = None) -> np.ndarray:
        """Numbers of this rank's examples."""
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
    # There is nothing to tune, and the thread that tunes may sleep for some ten seconds before an
    # iterator can end: with many processes one of them always makes the others wait.
    options.autotune.enabled = False
    slices = tf.data.Dataset.from_tensor_slices((first, *others) if others else first)
    return slices.with_options(options)


class Prepared:
    """What a set has, one rank's part at a time.

    Trains on the split `train`; validates on `validation`, else on `test`, else on the last 5 % of
    `train`, 10 000 examples at most, which then are not trained on.

    Args:
      builder: of a prepared set.
      pick: takes an example, a dict by feature, and returns what is wanted of it.
      decoders: as in `builder.as_dataset`.
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
        """Training examples of each rank; they differ by one at most."""
        return [end - start for start, end in itertools.pairwise(self._bounds(size))]

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """This rank's examples, in a new order each time, as a `tf.data.Dataset`."""
        examples = self.in_files(rank, size)
        specs: Any = examples.element_spec
        train = self._builder.info.splits["train"]
        # On disk, or decoded: an image of 10 kB may take 200 kB here.
        here = [spec.shape.num_elements() * spec.dtype.size for spec in specs if spec.shape.rank]
        each = max(1, train.num_bytes // train.num_examples, *here)
        return examples.shuffle(max(1, min(_SHUFFLED_BYTES // each, self.shares(size)[rank])))

    def in_files(self, rank: int, size: int) -> "tf.data.Dataset":
        """Like `training`, but only the files come in a new order."""
        return self._read("train", *self._bounds(size)[rank : rank + 2], shuffle=True)

    def _bounds(self, size: int) -> list[int]:
        return [self.training_examples * rank // size for rank in range(size + 1)]

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """This rank's examples, as many for all ranks, in their own order."""
        name, start, _ = self._validation
        share = self.validation_examples // size
        return self._read(name, start + share * rank, start + share * (rank + 1))

    def first(self, count: int) -> "tf.data.Dataset":
        """The first examples to train on."""
        return self._read("train", 0, count)

    def _read(self, split: str, start: int, end: int, shuffle: bool = False):
        examples = self._builder.as_dataset(
            split=f"{split}[{start}:{end}]", shuffle_files=shuffle, decoders=self._decoders
        )
        return examples.map(self._pick)


class Rows:
    """Rows of the documents of `Prepared`; how many is known only after reading."""

    training_examples = validation_examples = None

    def __init__(self, documents: Prepared, wordpiece: text.WordPiece):
        self._documents, self._wordpiece = documents, wordpiece
        self.documents = documents.training_examples  # to train on

    def shares(self, size: int, classes_per_worker: int | None = None) -> None:
        """Not known."""

    def training(
        self, rank: int, size: int, classes_per_worker: int | None = None
    ) -> "tf.data.Dataset":
        """Rows of this rank's documents, in a new order each time."""
        return self._rows(self._documents.in_files(rank, size)).shuffle(_SHUFFLED_ROWS)

    def validation(self, rank: int, size: int) -> "tf.data.Dataset":
        """Every `size`-th row of all documents.

        How many rows a document has is not known before, so equal shares of rows cannot be had from
        shares of documents: every rank tokenises all of them, which is cheap beside a model.
        """
        together = self._rows(self._documents.validation(0, 1)).batch(size, drop_remainder=True)
        return together.map(lambda rows: rows[rank])

    def _rows(self, documents):
        import tensorflow as tf

        self._wordpiece.rows([])  # has a vocabulary trained here, not in a thread of tf.data

        def rows(documents):
            return self._wordpiece.rows([decoded(each) for each in documents])

        def group(documents):
            found = tf.numpy_function(rows, [documents], tf.int32)
            return tf.ensure_shape(found, [None, self._wordpiece.length])

        return documents.batch(_GROUP).map(group, tf.data.AUTOTUNE).unbatch()


def decoded(document: bytes) -> str:
    """A document as TensorFlow Datasets has it, as text."""
    return document.decode("utf-8", "replace")  # one bad byte must not end a long run


Source = InMemory | Prepared | Rows
