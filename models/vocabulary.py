"""Train, load and store WordPiece vocabularies.

    tokens = vocabulary.cached(path, lambda: vocabulary.train(documents, 4096))
    ids = vocabulary.tokenizer(tokens).encode("A text.").ids

A vocabulary is a list of tokens in the order of their ids, from 0. Text is converted to lowercase,
and accents are removed.
"""

import collections
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import tokenizers
from tokenizers import normalizers, pre_tokenizers, trainers

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 1000  # maximum number of characters to train on, the default of tokenizers


def tokenizer(tokens: list[str]) -> tokenizers.Tokenizer:
    """Return BERT's lowercase tokenizer.

    It splits a "[MASK]" in a text into brackets and a word, instead of using the special token.

    Args:
      tokens: the vocabulary.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    built = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=UNK))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return built


def train(documents: Sequence[str], size: int) -> list[str]:
    """Train a lowercase WordPiece vocabulary. The same documents give the same vocabulary.

    `BertWordPieceTokenizer.train` gives a different vocabulary each time. The cause is that, of two
    equally frequent pairs, it merges the one with the lower ids, but it assigns ids to the pieces
    `##a`, `##b`, … in the order of a hash table. Here, the characters and these pieces get the
    first ids, in a fixed order.

    Args:
      documents: the texts.
      size: maximum number of tokens.
    """
    blank = tokenizer([])
    counts = collections.Counter()
    for document in documents:
        counts.update(blank.normalizer.normalize_str(document))
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = [character for character in by_count if not character.isspace()][:_ALPHABET]
    within_words = [  # leave out punctuation: "a," is two words
        f"##{character}"
        for character in alphabet
        if len(blank.pre_tokenizer.pre_tokenize_str(f"a{character}")) == 1
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[*SPECIAL, *within_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    blank.train_from_iterator(documents, trainer)
    ids = blank.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def load(path: str | os.PathLike) -> list[str]:
    """Return the tokens of a `vocab.txt`, which has one token per line.

    Args:
      path: path of the file. `~` stands for the home directory.

    Raises:
      ValueError: the file does not exist, is not UTF-8, lacks a special token, or contains a token
        twice.
    """
    try:
        content = pathlib.Path(path).expanduser().read_text("utf-8")
    except OSError as error:
        raise ValueError(
            f"The vocabulary {path} cannot be read ({error.strerror}). Name a vocab.txt with one "
            "token a line, or leave it out to train one."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(
            f"The vocabulary {path} is not text in UTF-8. Name a vocab.txt with one token a line."
        ) from None
    # Not `splitlines`, which also splits at characters that may be tokens, such as U+2028.
    tokens = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        raise ValueError(
            f"The vocabulary {path} lacks {', '.join(missing)} among its {len(tokens)} lines. It "
            f"must have {', '.join(SPECIAL)}, each on a separate line."
        )
    twice = [token for token, count in collections.Counter(tokens).items() if count > 1]
    if twice:
        lines = [number for number, token in enumerate(tokens, 1) if token == twice[0]]
        raise ValueError(
            f"The vocabulary {path} has {twice[0]!r} on lines {lines[0]} and {lines[1]}. Each "
            "token must occur once."
        )
    return tokens


def check_kept(path: pathlib.Path) -> None:
    """Raise `ValueError` unless a vocabulary is at `path` or can be written there."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"The vocabulary {path} cannot be written ({error.strerror}). Name a data directory "
            "that you may write to, or an existing vocabulary."
        ) from None


def cached(path: pathlib.Path, make: Callable[[], list[str]]) -> list[str]:
    """Return the vocabulary at `path`. If there is none, make and write it first.

    Several processes may call this at the same time. Each writes its own file and then moves it to
    `path`, so no process reads an incomplete file.

    Args:
      path: path of the file. Its directory must exist.
      make: function that returns the vocabulary.
    """
    if not path.exists():
        content = "\n".join(make()) + "\n"
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as partial:
            # Not tempfile.NamedTemporaryFile: other users could not read the file.
            file = pathlib.Path(partial, path.name)
            file.write_text(content, "utf-8")
            file.replace(path)
    return load(path)
