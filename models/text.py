"""Cut text into rows of WordPiece tokens, with masked tokens to predict as in BERT.

    wordpiece = text.WordPiece(lambda: vocabulary.train(documents, 4096), length=64)
    rows = wordpiece.rows(documents)                   # int32 [rows, 64]
    batches = wordpiece.validation(tf.data.Dataset.from_tensor_slices(rows), 32)

A batch is `(inputs, mask_ids, mask_weights)`. `inputs` is a dict of int32 tensors: `token_ids`,
`segment_ids` (all 0: a row is one segment) and `padding_mask` (all 1: a row is full), each
`[batch, length]`, and `mask_positions`, `[batch, masks]`. `mask_ids`, int32 `[batch, masks]`, are
the tokens to predict. `mask_weights`, float32 `[batch, masks]`, are 1 for tokens to predict, and 0
for the unused positions of a row with fewer such tokens.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", NAACL 2019, section 3.1 and appendix A.1. Departures: there is no next-sentence
prediction, and a row may begin and end anywhere in the text.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models import vocabulary

if TYPE_CHECKING:
    import tensorflow as tf

_SELECTED = 0.15  # fraction of a row's non-special tokens that is selected for prediction
# Fractions of the selected tokens to replace by [MASK] and by a random token. The rest stay.
_MASKED, _RANDOM = 0.8, 0.1


class WordPiece:
    """Cut documents into rows of one length, and batch the rows, with one vocabulary.

    Args:
      read: function that returns the vocabulary. Called when the vocabulary is first needed.
      length: number of tokens per row, including [CLS] and [SEP].

    Attributes:
      kind: `"text"`.
      length: number of tokens per row.
      masks: maximum number of masked tokens per row.
    """

    kind = "text"

    def __init__(self, read: Callable[[], list[str]], length: int):
        self._read = read
        self.length = length
        self.masks = math.ceil(_SELECTED * (length - 2))

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their ids, from 0."""
        return self._read()

    @property
    def arguments(self) -> dict:
        """Arguments of `models.build`."""
        return {"vocabulary_size": len(self.vocabulary)}

    @functools.cached_property
    def special(self) -> list[int]:
        """Ids of the tokens that are never selected. Predicting [UNK] would teach nothing."""
        return [self.vocabulary.index(token) for token in vocabulary.SPECIAL]

    @functools.cached_property
    def _tokenizer(self):
        return vocabulary.tokenizer(self.vocabulary)

    def rows(self, documents: Sequence[str]) -> np.ndarray:
        """Cut the tokens of documents into rows.

        A row consists of [CLS], `length - 2` tokens and [SEP]. A [SEP] also separates two
        documents. Leftover tokens that do not fill a row are dropped.

        Args:
          documents: the texts.

        Returns:
          `[rows, length]` int32.
        """
        _, _, first, last, _ = self.special
        tokens = []
        for encoded in self._tokenizer.encode_batch_fast(documents, add_special_tokens=False):
            tokens += [*encoded.ids, last]
        tokens, width = tokens[:-1], self.length - 2
        cut = np.array(tokens[: len(tokens) // width * width], np.int32).reshape(-1, width)
        return np.pad(cut, [(0, 0), (1, 1)], constant_values=(first, last))

    def training(
        self, rows: "tf.data.Dataset", batch_size: int, augment: bool = True
    ) -> "tf.data.Dataset":
        """Return full batches for training, with new random masks each time a row is used.

        Args:
          rows: a `tf.data.Dataset` of rows.
          batch_size: number of rows per batch.
          augment: not used, because masks are always random.
        """
        import keras_hub

        masker = keras_hub.layers.MaskedLMMaskGenerator(
            vocabulary_size=len(self.vocabulary),
            mask_selection_rate=_SELECTED,
            mask_token_id=self.special[-1],
            mask_selection_length=self.masks,
            unselectable_token_ids=self.special,
            mask_token_rate=_MASKED,
            random_token_rate=_RANDOM,
            dtype="float32",  # dtype of the weights, independent of the dtype policy
        )

        def mask(rows):
            masked = masker(rows)
            names = ("token_ids", "mask_positions", "mask_ids", "mask_weights")
            return self._batch(rows, *(masked[name] for name in names))

        return rows.batch(batch_size, drop_remainder=True).map(mask)

    def validation(self, rows: "tf.data.Dataset", batch_size: int) -> "tf.data.Dataset":
        """Return batches for validation. A row has the same masks in every pass and on every rank.

        Args:
          rows: a `tf.data.Dataset` of rows.
          batch_size: number of rows per batch. The last batch may be smaller.
        """
        import tensorflow as tf

        dtypes = [tf.int32, tf.int32, tf.int32, tf.float32]
        return rows.batch(batch_size).map(
            lambda rows: self._batch(rows, *tf.numpy_function(self.fixed_masks, [rows], dtypes))
        )

    def fixed_masks(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Mask rows as in `training`, but with random numbers seeded by the tokens of the row.

        Args:
          rows: `[batch, length]` int32.

        Returns:
          token_ids, `[batch, length]`; mask_positions, mask_ids and mask_weights, each
          `[batch, masks]`.
        """
        token_ids = rows.copy()
        positions, ids = (np.zeros([len(rows), self.masks], np.int32) for _ in range(2))
        weights = np.zeros([len(rows), self.masks], np.float32)
        for number, row in enumerate(rows):
            random = np.random.default_rng(row)
            selectable = np.flatnonzero(~np.isin(row, self.special))
            count = math.ceil(_SELECTED * len(selectable))
            chosen = np.sort(random.permutation(selectable)[:count])
            positions[number, :count], ids[number, :count] = chosen, row[chosen]
            weights[number, :count] = 1
            share, other = random.random(count), random.integers(len(self.vocabulary), size=count)
            kept = np.where(share < _MASKED + _RANDOM, other, row[chosen])
            token_ids[number, chosen] = np.where(share < _MASKED, self.special[-1], kept)
        return token_ids, positions, ids, weights

    def _batch(self, rows, token_ids, positions, ids, weights):
        import tensorflow as tf

        token_ids = tf.ensure_shape(token_ids, rows.shape)
        shape = [rows.shape[0], self.masks]
        positions, ids, weights = (
            tf.ensure_shape(each, shape) for each in (positions, ids, weights)
        )
        inputs = {
            "token_ids": token_ids,
            "segment_ids": tf.zeros_like(token_ids),
            "padding_mask": tf.ones_like(token_ids),
            "mask_positions": tf.cast(positions, tf.int32),
        }
        return inputs, tf.cast(ids, tf.int32), weights

    def unigram_cross_entropy(self, rows: "tf.data.Dataset") -> float:
        """Return the cross-entropy of the best context-free model, in nats per token.

            H = -sum_t p_t log p_t

        The model always predicts the frequencies p of the tokens in these rows. Special tokens do
        not count.

        Args:
          rows: a `tf.data.Dataset` of rows.
        """
        counts = np.zeros(len(self.vocabulary))
        for batch in rows.batch(1024).as_numpy_iterator():
            counts += np.bincount(batch.ravel(), minlength=len(counts))
        counts[self.special] = 0
        frequencies = counts[counts > 0] / counts.sum()
        return float(-(frequencies * np.log(frequencies)).sum())


# Function that makes a `WordPiece`. Arguments: size of the vocabulary, a text that identifies the
# documents to train the vocabulary on, and a function that returns these documents.
Maker = Callable[[int, str, Callable[[], list[str]]], WordPiece]
