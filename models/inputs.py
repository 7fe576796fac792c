"""Data sets as endless training batches and one pass of validation batches, by name.

    data = inputs.find("digits")
    batches = data.training(rank=0, size=4, batch_size=32)     # this rank's part
    for images, labels in data.validation(rank=0, size=1, batch_size=256):
        ...

The parts of all ranks are disjoint. `images` and `text` say what a batch is; `prepared` reads what
TensorFlow Datasets has on disk.

TensorFlow is imported when data are read, so that train.py can check its flags without it.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib

import numpy as np

from models import images, text

_SEQUENCE_LENGTHS = (8, 512)  # the shortest and the longest row; 512 is the longest of BERT


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
      name: as it was asked for.
      source: examples on which all ranks agree: `InMemory`, or one of `prepared`.
      recipe: how examples become batches: `images.Images` or `text.WordPiece`.
    """

    name: str
    source: object
    recipe: images.Images | text.WordPiece

    @property
    def kind(self) -> str:
        """ "images" or "text"."""
        return self.recipe.kind

    @property
    def arguments(self) -> dict:
        """What `models.build` is told of the data."""
        return self.recipe.arguments

    @property
    def training_examples(self) -> int | None:
        """Images or rows of text to train on; None where that is known only after reading."""
        return self.source.training_examples

    @property
    def validation_examples(self) -> int | None:
        """Images or rows of text to validate on; None where that is known only after reading."""
        return self.source.validation_examples

    def shares(self, size: int, classes_per_worker: int | None = None) -> list[int] | None:
        """Training examples of each rank; None where that is known only after reading."""
        self._check_classes(classes_per_worker)
        return self.source.shares(size, classes_per_worker)

    def training(
        self, rank: int, size: int, batch_size: int, classes_per_worker: int | None = None
    ):
        """An endless `tf.data.Dataset` of full batches of this rank's part, changed at random.

        Each pass has a new order, and the next begins in the batch in which one ends.

        Args:
          classes_per_worker: rank r sees classes `(k * r + j) % classes` for j < k alone; ranks
            that see the same class share its examples. Default: every rank sees all classes.
        """
        import tensorflow as tf

        shares = self.shares(size, classes_per_worker)
        if shares and not shares[rank]:
            raise ValueError(
                f"Rank {rank} has nothing to train on: {self.name} has {self.training_examples} "
                f"training examples, received {size} workers. Use fewer workers."
            )
        examples = self.source.training(rank, size, classes_per_worker)
        return self.recipe.training(examples.repeat(), batch_size).prefetch(tf.data.AUTOTUNE)

    def validation(self, rank: int, size: int, batch_size: int):
        """One pass over this rank's part, as a `tf.data.Dataset`, the same each time.

        All ranks have the same number of examples; up to size - 1 of the set are left out. The last
        batch may be smaller.
        """
        import tensorflow as tf

        if self.validation_examples is not None and self.validation_examples < size:
            raise ValueError(
                f"{self.name} has {self.validation_examples} validation examples, received {size} "
                "workers. Use fewer workers, or validate on one."
            )
        examples = self.source.validation(rank, size)
        return self.recipe.validation(examples, batch_size).prefetch(tf.data.AUTOTUNE)

    def _check_classes(self, classes_per_worker: int | None):
        if classes_per_worker is None:
            return
        if not isinstance(self.source, InMemory) or self.kind != "images":
            raise ValueError(
                f"classes_per_worker={classes_per_worker} needs images with labels that are held "
                f"in memory, as digits; {self.name} is not. Leave it out."
            )
        if not 1 <= classes_per_worker <= self.recipe.classes:
            raise ValueError(
                f"classes_per_worker must be from 1 to {self.recipe.classes}, the classes of "
                f"{self.name}, received {classes_per_worker}."
            )


class Text(Data):
    """A data set of text."""

    @property
    def vocabulary(self) -> list[str]:
        """The tokens; the first has id 0."""
        return self.recipe.vocabulary

    def unigram_cross_entropy(self) -> float:
        """Nats a token: what the validation text costs the best model without context."""
        return self.recipe.unigram_cross_entropy(self.source.validation(0, 1))


class InMemory:
    """Examples as arrays; the first axis counts them.

    Args:
      training, validation: `(images, labels)`, or rows of text in a tuple of one.
    """

    def __init__(self, training: tuple[np.ndarray, ...], validation: tuple[np.ndarray, ...]):
        self._training, self._validation = training, validation
        self.training_examples, self.validation_examples = len(training[0]), len(validation[0])

    def shares(self, size: int, classes_per_worker: int | None) -> list[int]:
        """Training examples of each rank."""
        return [len(self._part(rank, size, classes_per_worker)) for rank in range(size)]

    def training(self, rank: int, size: int, classes_per_worker: int | None):
        """This rank's examples, in a new order each time, as a `tf.data.Dataset`."""
        part = self._part(rank, size, classes_per_worker)
        return _slices(self._training, part).shuffle(len(part))

    def validation(self, rank: int, size: int):
        """This rank's examples in their own order."""
        share = self.validation_examples // size
        return _slices(self._validation, np.arange(share) * size + rank)

    def _part(self, rank: int, size: int, classes_per_worker: int | None) -> np.ndarray:
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


def _slices(arrays: tuple[np.ndarray, ...], chosen: np.ndarray):
    import tensorflow as tf

    examples = tuple(each[chosen] for each in arrays)
    return tf.data.Dataset.from_tensor_slices(examples if len(examples) > 1 else examples[0])


def find(
    name: str,
    data_dir: str | None = None,
    vocabulary: str | None = None,
    sequence_length: int = 64,
) -> Data:
    """The data set of this name.

    Args:
      name: one of `EMBEDDED`, or a set of TensorFlow Datasets that has been prepared.
      data_dir: where TensorFlow Datasets keeps its files and we keep vocabularies; default:
        TFDS_DATA_DIR, or ~/tensorflow_datasets.
      vocabulary: of text, path of a file with one token a line; default: trained once and kept.
      sequence_length: of text, tokens of a row, from 8 to 512.

    Raises:
      ValueError: there is no such set, or it cannot be used with these arguments.
    """
    shortest, longest = _SEQUENCE_LENGTHS
    if not shortest <= sequence_length <= longest:
        raise ValueError(
            f"sequence_length must be from {shortest} to {longest} tokens, received "
            f"{sequence_length}."
        )
    if name not in EMBEDDED:
        known = ", ".join(sorted(EMBEDDED))
        raise ValueError(f"Unknown dataset {name!r}. Known datasets: {known}.")
    read = EMBEDDED[name]
    data = read(_Choices(name, data_dir, vocabulary, sequence_length))
    if vocabulary is not None and data.kind != "text":
        raise ValueError(
            f"{name} are images, received vocabulary={vocabulary!r}. Leave the vocabulary out."
        )
    return data


@dataclasses.dataclass(frozen=True)
class _Choices:
    """The arguments of `find`."""

    name: str
    data_dir: str | None
    vocabulary: str | None
    sequence_length: int

    def wordpiece(self, size: int, trained_on: str, documents) -> text.WordPiece:
        """The vocabulary given, or one of `size` tokens trained once on `documents()` and kept."""
        if self.vocabulary is not None:
            tokens = text.load(self.vocabulary)
            return text.WordPiece(lambda: tokens, self.sequence_length)
        digest = hashlib.sha256(trained_on.encode()).hexdigest()[:12]
        file = f"{self.name.replace('/', '-')}-{size}-{digest}.txt"
        path = _directory(self.data_dir) / "wordpiece" / file
        read = functools.partial(text.cached, path, lambda: text.train(documents(), size))
        return text.WordPiece(read, self.sequence_length)


def _directory(data_dir: str | None) -> pathlib.Path:
    """Where TensorFlow Datasets keeps its files."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser()


def _digits(choices: _Choices) -> Data:
    """Images `[1797, 8, 8, 1]` and labels; every 5th validates.

    They are inside scikit-learn, nothing is downloaded. Source: Alpaydin and Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = (digits.images[..., np.newaxis] / 16).astype(np.float32)  # ink from 0 to 16
    labels = digits.target.astype(np.int32)
    validates = np.arange(len(labels)) % 5 == 0
    source = InMemory(
        (pixels[~validates], labels[~validates]), (pixels[validates], labels[validates])
    )
    return Data(choices.name, source, images.Images((8, 8, 1), 10, shift=1))


def _python_docs(choices: _Choices) -> Text:
    """The Python language reference, 79 topics inside Python itself; every 6th validates.

    That is a tenth of its 465 kB. The text is that of the running Python: other versions differ.
    """
    from pydoc_data.topics import topics

    topics = [topics[title] for title in sorted(topics)]
    validation = topics[::6]
    training = [topic for number, topic in enumerate(topics) if number % 6]
    wordpiece = choices.wordpiece(4096, "\0".join(training), lambda: training)
    source = InMemory((wordpiece.rows(training),), (wordpiece.rows(validation),))
    return Text(choices.name, source, wordpiece)


EMBEDDED = {"digits": _digits, "python_docs": _python_docs}  # nothing to download
