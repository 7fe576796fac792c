"""Find data sets by name, and read them as batches for training and validation.

    data = inputs.find("digits")
    batches = data.training(rank=0, size=4, batch_size=32)     # this rank's part
    for images, labels in data.validation(rank=0, size=1, batch_size=256):
        ...

Training batches never end. Validation batches cover one pass. Each rank gets a disjoint part.

`images` and `text` define the batches, and `sources` defines which rank reads which examples.
`embedded` contains the data sets that need no download, and `prepared` those of TensorFlow
Datasets.

TensorFlow is imported only when examples are read, which lets train.py check its flags without it.
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

_SEQUENCE_LENGTHS = (8, 512)  # minimum and maximum row length in tokens; BERT has 512 positions
EMBEDDED = {"digits": embedded.digits, "python_docs": embedded.python_docs}


@dataclasses.dataclass(frozen=True)
class Data:
    """A named data set.

    Attributes:
      name: the name given to `find`.
      source: reads each rank's examples.
      recipe: makes batches of examples: `images.Images` or `text.WordPiece`.
    """

    name: str
    source: sources.Source
    recipe: images.Images | text.WordPiece

    @property
    def kind(self) -> str:
        """The kind of data: `"images"` or `"text"`."""
        return self.recipe.kind

    @property
    def arguments(self) -> dict:
        """Arguments of `models.build`."""
        return self.recipe.arguments

    @property
    def training_examples(self) -> int | None:
        """Number of images or rows of text for training, or None if known only after reading."""
        return self.source.training_examples

    @property
    def validation_examples(self) -> int | None:
        """Number of images or rows of text for validation, or None if known only after reading."""
        return self.source.validation_examples

    def shares(self, size: int, classes_per_worker: int | None = None) -> list[int] | None:
        """Return the number of training examples per rank, or None if known only after reading.

        Args:
          size: number of ranks.
          classes_per_worker: as in `training`. Default None: all.

        Raises:
          ValueError: `classes_per_worker` is out of range, or is given for data other than images
            in memory.
        """
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
        """Return endless full batches of this rank's part.

        Examples are reshuffled on each pass. A batch may span the end of one pass and the start of
        the next.

        Args:
          rank: this rank.
          size: number of ranks.
          batch_size: number of examples per batch.
          classes_per_worker: number k of classes that each rank sees. Rank r sees the classes
            `(k * r + j) % classes` for j < k. Ranks that see the same class divide its examples.
            Default None: all classes.
          augment: whether to randomly augment images. Default True.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          ValueError: this rank has no examples, or `classes_per_worker` does not fit the data.
        """
        import tensorflow as tf

        shares = self.shares(size, classes_per_worker)
        if shares and not shares[rank]:
            raise ValueError(
                f"Rank {rank} has nothing to train on: {self.name} has {self.training_examples} "
                f"training examples for {size} workers. Use fewer workers."
            )
        examples = self.source.training(rank, size, classes_per_worker)
        batches = self.recipe.training(examples.repeat(), batch_size, augment)
        return batches.prefetch(tf.data.AUTOTUNE)

    def validation(self, rank: int, size: int, batch_size: int) -> "tf.data.Dataset":
        """Return the batches of one pass over this rank's part, the same in every pass.

        All ranks get the same number of examples. Up to `size - 1` examples are left out.

        Args:
          rank: this rank.
          size: number of ranks.
          batch_size: number of examples per batch. The last batch may be smaller.

        Returns:
          A `tf.data.Dataset`.

        Raises:
          ValueError: there are fewer validation examples than ranks.
        """
        import tensorflow as tf

        if self.validation_examples is not None and self.validation_examples < size:
            raise ValueError(
                f"{self.name} has {self.validation_examples} validation examples for {size} "
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
                f"in memory, such as digits, received {self.name}. Leave it out."
            )
        if not 1 <= classes_per_worker <= self.recipe.classes:
            raise ValueError(
                f"classes_per_worker must be from 1 to {self.recipe.classes}, the classes of "
                f"{self.name}, received {classes_per_worker}."
            )


class Text(Data):
    """A named data set of text."""

    recipe: text.WordPiece

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their ids, from 0."""
        return self.recipe.vocabulary

    def unigram_cross_entropy(self) -> float:
        """Return the loss of the best context-free model on the validation text.

        Returns:
          The loss in nats per token; see `text.WordPiece.unigram_cross_entropy`.
        """
        return self.recipe.unigram_cross_entropy(self.source.validation(0, 1))


def find(
    name: str,
    data_dir: str | None = None,
    vocabulary: str | None = None,
    sequence_length: int = 64,
) -> Data:
    """Return the data set with a given name.

    An embedded data set is loaded immediately. The examples of a prepared data set are read from
    disk only when its batches are used.

    Args:
      name: one of `EMBEDDED`, or a prepared data set of TensorFlow Datasets.
      data_dir: directory of TensorFlow Datasets, where trained vocabularies are also stored.
        Default: the environment variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      vocabulary: for text: path of a file with one token per line. Default: a vocabulary that is
        trained once and stored.
      sequence_length: for text: number of tokens per row, from 8 to 512. Default 64.

    Raises:
      ValueError: there is no data set of this name, or it does not fit the other arguments.
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
            f"{name} has images, which need no vocabulary; received vocabulary={vocabulary!r}. "
            "Leave the vocabulary out."
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
    """Return the recipe for text, with a given vocabulary or a trained one.

    Args:
      name: name of the data set, for the file of the trained vocabulary.
      data_dir: directory for the trained vocabulary; None: the default of TensorFlow Datasets.
      given: path of an existing vocabulary; None: train one when it is first needed, and store it.
      length: number of tokens per row.
      size: maximum number of tokens in a trained vocabulary.
      trained_on: text that identifies the documents. If it changes, a new vocabulary is trained.
      documents: function that returns the documents to train the vocabulary on.
    """
    if given is not None:
        tokens = vocabularies.load(given)
        return text.WordPiece(lambda: tokens, length)
    chosen = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in chosen:
        raise ValueError(
            f"A trained vocabulary can be kept only on a local disk, received data_dir={chosen}. "
            "Give the path of an existing vocabulary, or a local data_dir."
        )
    digest = hashlib.sha256(trained_on.encode()).hexdigest()[:12]
    file = f"{re.sub('[/:]', '-', name)}-{size}-{digest}.txt"
    path = pathlib.Path(chosen).expanduser() / "wordpiece" / file
    vocabularies.check_kept(path)
    read = functools.partial(
        vocabularies.cached, path, lambda: vocabularies.train(documents(), size)
    )
    return text.WordPiece(read, length)
