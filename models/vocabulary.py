"""WordPiece vocabularies: trained, read and kept.

    tokens = vocabulary.cached(path, lambda: vocabulary.train(documents, 4096))
    ids = vocabulary.tokenizer(tokens).encode("A text.").ids

A vocabulary is a list of tokens; the first has id 0. Text is put into lower case, without accents.
"""

import collections
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import tokenizers
from tokenizers import normalizers, pre_tokenizers, trainers

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 1000  # characters at most, as in the tokenizers library


def tokenizer(tokens: list[str]) -> tokenizers.Tokenizer:
    """BERT's, in lower case. A text's own "[MASK]" is a bracket and a word, not the special one."""
    ids = {token: number for number, token in enumerate(tokens)}
    built = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=UNK))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return built


def train(documents: Sequence[str], size: int) -> list[str]:
    """A WordPiece vocabulary of at most `size` tokens in lower case: the same one every time.

    `BertWordPieceTokenizer.train` gives another set each time: of two equally frequent pairs it
    merges the one with the lower ids, and gives the pieces `##a`, `##b`, … ids in the order of a
    hash table. Here the characters and their pieces come first, in a fixed order.
    """
    blank = tokenizer([])
    counts = collections.Counter()
    for document in documents:
        counts.update(blank.normalizer.normalize_str(document))
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = [character for character in by_count if not character.isspace()][:_ALPHABET]
    within_words = [  # "a," are two words
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
    """Return the tokens of a `vocab.txt`: one a line, the first has id 0.

    Raises:
      ValueError: there is no such file, or it is no vocabulary.
    """
    try:
        content = pathlib.Path(path).expanduser().read_text("utf-8")
    except OSError as error:
        raise ValueError(
            f"The vocabulary {path} cannot be read ({error.strerror}). Name a vocab.txt with one "
            "token a line, or leave it out and one is trained."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(
            f"The vocabulary {path} is not text in UTF-8. Name a vocab.txt with one token a line."
        ) from None
    # Not splitlines: a token may be a character that ends a line elsewhere, U+2028 for one.
    tokens = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        raise ValueError(
            f"The vocabulary {path} lacks {', '.join(missing)} among its {len(tokens)} lines. It "
            f"must have {', '.join(SPECIAL)}, each on a line of its own."
        )
    twice = [token for token, count in collections.Counter(tokens).items() if count > 1]
    if twice:
        lines = [number for number, token in enumerate(tokens, 1) if token == twice[0]]
        raise ValueError(
            f"The vocabulary {path} has {twice[0]!r} on lines {lines[0]} and {lines[1]}. Each "
            "token must be there once."
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
            "that you may write to, or a vocabulary that is there."
        ) from None


def cached(path: pathlib.Path, make: Callable[[], list[str]]) -> list[str]:
    """Return the vocabulary at `path`; make and write it where there is none.

    Processes that do so at the same time each write a file of their own and move it: nobody ever
    reads half of one.
    """
    if not path.exists():
        content = "\n".join(make()) + "\n"
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as partial:
            # Not a temporary file, which other users may not read.
            file = pathlib.Path(partial, path.name)
            file.write_text(content, "utf-8")
            file.replace(path)
    return load(path)
