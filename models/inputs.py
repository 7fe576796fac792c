"""Data sets as endless training batches and one pass of validation batches, by name.

    data = inputs.find("digits")
    batches = data.training(rank=0, size=4, batch_size=32)     # this rank's part
    for images, labels in data.validation(rank=0, size=1, batch_size=256):
        ...

The parts of all ranks are disjoint. `images` and `text` say what a batch is, `sources` who reads
what; `embedded` has the sets that need no download, `prepared` those of TensorFlow Datasets.

TensorFlow is imported when data are read, so that train.py can check its flags without it.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from models import embedded, images, prepared, sources, text
from models import vocabulary as vocabularies

if TYPE_CHECKING:
    import tensorflow as tf

_SEQUENCE_LENGTHS = (8, 512)  # the shortest and the longest row; 512 is the longest of BERT
EMBEDDED = {"digits": embedded.digits, "python_docs": embedded.python_docs}


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
      name: as it was asked for.
      source: examples on which all ranks agree.
      recipe: how examples become batches: `images.Images` or `text.WordPiece`.
    """

    name: str
    source: sources.Source
    recipe: images.Images | text.WordPiece

    @property
    def kind(self) -> str:
        """Either "images" or "text"."""
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
        self,
        rank: int,
        size: int,
        batch_size: int,
        classes_per_worker: int | None = None,
        augment: bool = True,
    ) -> "tf.data.Dataset":
        """An endless `tf.data.Dataset` of full batches of this rank's part.

        Each pass has a new order, and the next begins in the batch in which one ends.

        Args:
          classes_per_worker: rank r sees classes `(k * r + j) % classes` for j < k alone; ranks
            that see the same class share its examples. Default: every rank sees all classes.
          augment: whether images are changed at random.
        """
        import tensorflow as tf

        shares = self.shares(size, classes_per_worker)
        if shares and not shares[rank]:
            raise ValueError(
                f"Rank {rank} has nothing to train on: {self.name} has {self.training_examples} "
                f"training examples, received {size} workers. Use fewer workers."
            )
        examples = self.source.training(rank, size, classes_per_worker)
        batches = self.recipe.training(examples.repeat(), batch_size, augment)
        return batches.prefetch(tf.data.AUTOTUNE)

    def validation(self, rank: int, size: int, batch_size: int) -> "tf.data.Dataset":
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
        in_memory = isinstance(self.source, sources.InMemory)
        if not in_memory or not isinstance(self.recipe, images.Images):
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

    recipe: text.WordPiece

    @property
    def vocabulary(self) -> list[str]:
        """The tokens; the first has id 0."""
        return self.recipe.vocabulary

    def unigram_cross_entropy(self) -> float:
        """Nats a token: what the validation text costs the best model without context."""
        return self.recipe.unigram_cross_entropy(self.source.validation(0, 1))


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
    data_dir = data_dir and os.path.expanduser(data_dir)
    wordpiece = functools.partial(_wordpiece, name, data_dir, vocabulary, sequence_length)
    if name in EMBEDDED:
        source, recipe = EMBEDDED[name](wordpiece)
    else:
        source, recipe = prepared.find(name, data_dir, wordpiece, list(EMBEDDED))
    if vocabulary is not None and recipe.kind != "text":
        raise ValueError(
            f"{name} has images, received vocabulary={vocabulary!r}. Leave the vocabulary out."
        )
    return (Text if recipe.kind == "text" else Data)(name, source, recipe)


def _wordpiece(
    name: str,
    data_dir: str | None,
    given: str | None,
    length: int,
    size: int,
    trained_on: str,
    documents: Callable[[], list[str]],
) -> text.WordPiece:
    """With the vocabulary given, or one of `size` tokens trained once on `documents()` and kept.

    Args:
      trained_on: what identifies the documents: another vocabulary is trained where it changes.
    """
    if given is not None:
        tokens = vocabularies.load(given)
        return text.WordPiece(lambda: tokens, length)
    chosen = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in chosen:
        raise ValueError(
            f"A trained vocabulary is kept on a disk, received data_dir={chosen}. Give a "
            "vocabulary that is there."
        )
    digest = hashlib.sha256(trained_on.encode()).hexdigest()[:12]
    file = f"{re.sub('[/:]', '-', name)}-{size}-{digest}.txt"
    path = pathlib.Path(chosen).expanduser() / "wordpiece" / file
    vocabularies.check_kept(path)
    read = functools.partial(
        vocabularies.cached, path, lambda: vocabularies.train(documents(), size)
    )
    return text.WordPiece(read, length)
