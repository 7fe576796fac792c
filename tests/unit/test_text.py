"""models/vocabulary.py and models/text.py: vocabularies, rows and masks."""

import concurrent.futures
import math
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import text, vocabulary
from tests.support import deadlines

SPECIAL = list(vocabulary.SPECIAL)
WORDS = [*SPECIAL, "a", "b", "c", "##c", ",", "[", "]", "mask"]
PAD, UNK, CLS, SEP, MASK, A, B, C, INNER_C, COMMA, OPEN, CLOSE, LITERAL = range(13)


def wordpiece(tokens=WORDS, length=8):
    return text.WordPiece(lambda: tokens, length)


def test_training_a_vocabulary_twice_gives_the_same():
    documents = [f"Ünlike words, like {n:b}! The {'un' * (n % 3)}likeliest." for n in range(300)]
    first = vocabulary.train(documents, 200)
    assert first == vocabulary.train(documents, 200)
    assert first[:5] == SPECIAL
    assert len(first) == len(set(first)) == 200
    # Lower case, without accents, merged where frequent; and no piece that cannot follow a letter.
    assert {"like", "words", "unlike", "!"} <= set(first)
    assert not {"U", "ü", "##,", "##!"} & set(first)


def test_a_vocabulary_is_read_as_it_is_written(tmp_path):
    tokens = [*SPECIAL, "\u2028", "é"]  # splitlines would cut at U+2028
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(tokens) + "\n", "utf-8")
    assert vocabulary.load(file) == tokens
    file.write_bytes("\r\n".join(tokens).encode())
    assert vocabulary.load(file) == tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"vocab\.txt cannot be read \(No such file or directory\)\. Name a vocab\.txt"),
        (b"\xff\xfe\x00", r"vocab\.txt is not text in UTF-8"),
        (b"", r"vocab\.txt lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] among its 1 lines"),
        (b"[PAD]\n[UNK]\n[CLS]\na\n[SEP]\n", r"lacks \[MASK\] among its 5 lines"),
        ("\n".join([*SPECIAL, "a", "b", "a"]).encode(), r"has 'a' on lines 6 and 8"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        vocabulary.load(tmp_path / "vocab.txt")


def test_a_vocabulary_is_made_once_and_kept(tmp_path):
    path = tmp_path / "new" / "vocab.txt"
    vocabulary.check_kept(path)
    assert vocabulary.cached(path, lambda: WORDS) == WORDS
    assert vocabulary.cached(path, lambda: pytest.fail("made again")) == WORDS
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o044  # others may read it


def test_a_vocabulary_may_be_made_by_several_at_once(tmp_path):
    all_find_none = threading.Barrier(4)

    def make():
        all_find_none.wait(deadlines.long())
        return WORDS

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(vocabulary.cached, tmp_path / "vocab.txt", make) for _ in range(4)]
    assert [each.result() for each in asked] == [WORDS] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]


def test_a_vocabulary_that_cannot_be_kept_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"vocab\.txt cannot be written .*Name a data directory"):
        vocabulary.check_kept(tmp_path / "file" / "vocab.txt")


def test_rows_are_the_joined_documents_cut():
    rows = wordpiece().rows(["A b, a", "bc x", "a a a a a a a"])
    # a b , a [SEP] b ##c [UNK] [SEP] a a a a a a a   in sixes; four are left over
    assert rows.tolist() == [
        [CLS, A, B, COMMA, A, SEP, B, SEP],
        [CLS, INNER_C, UNK, SEP, A, A, A, SEP],
    ]
    assert rows.dtype == np.int32
    assert wordpiece().rows(["a b"]).shape == (0, 8)


def test_special_tokens_in_a_text_are_only_text():
    assert wordpiece().rows(["a [MASK] a a"])[0].tolist() == [
        *(CLS, A, OPEN, LITERAL, CLOSE, A, A, SEP)
    ]


def masked(kind, rows, batch_size=None):
    """`(inputs, mask_ids, mask_weights)` of all rows, in one batch or in several."""
    tokens = [*SPECIAL, *(f"w{number}" for number in range(995))]
    make = getattr(wordpiece(tokens, rows.shape[1]), kind)
    batches = make(tf.data.Dataset.from_tensor_slices(rows), batch_size or len(rows))
    found = list(batches.as_numpy_iterator())
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *found)


def random_rows(count, length):
    rows = np.random.default_rng(0).integers(5, 1000, (count, length)).astype(np.int32)
    rows[:, 0], rows[:, -1] = CLS, SEP
    return rows


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_masks_are_those_of_bert(kind):
    rows = random_rows(2000, 64)
    rows[::2, 20:30] = [SEP, UNK] * 5
    inputs, ids, weights = masked(kind, rows)
    positions, tokens = inputs["mask_positions"], inputs["token_ids"]
    assert {each.dtype for each in (*inputs.values(), ids)} == {np.dtype(np.int32)}
    assert weights.dtype == np.float32
    assert not inputs["segment_ids"].any() and inputs["padding_mask"].all()

    # 15 % of 62, rounded up, are 10; with ten special ones in between 15 % of 52, 8.
    assert positions.shape == ids.shape == weights.shape == (2000, 10)
    assert set(weights.sum(1)[::2]) == {8} and set(weights.sum(1)[1::2]) == {10}
    assert not ids[::2, 8:].any() and not weights[::2, 8:].any()

    selected = np.zeros(rows.shape, bool)
    for row, each, count in zip(selected, positions, weights.sum(1).astype(int), strict=True):
        row[each[:count]] = True
    assert (selected.sum(1) == weights.sum(1)).all()  # none twice
    np.testing.assert_array_equal(tokens[~selected], rows[~selected])
    np.testing.assert_array_equal(ids[weights > 0], rows[selected])
    assert rows[selected].min() > MASK  # nothing special
    # Each place about as often as any other: 15 % of 1000 rows are 161 +- 12.
    often = selected[1::2, 1:-1].sum(0)
    assert often.min() > 110 and often.max() < 215

    # Of 18 000 selected 80 % are masked (+- 0.3 %), 10 % others (+- 0.2 %), 10 % as they were.
    assert np.mean(tokens[selected] == MASK) == pytest.approx(0.8, abs=0.012)
    assert np.mean(tokens[selected] == rows[selected]) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("length", [8, 22, 42, 512])
def test_rows_without_special_tokens_use_all_places(length):
    # The last is where 15 % of 20 are 3 in one precision and a little more in another.
    rows = random_rows(20, length)
    for kind in ("training", "validation"):
        _, _, weights = masked(kind, rows)
        assert weights.shape == (20, math.ceil(0.15 * (length - 2)))
        assert weights.all()


def test_weights_stay_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        _, _, weights = masked("training", random_rows(2, 64))
    finally:
        keras.config.set_dtype_policy("float32")
    assert weights.dtype == np.float32


def test_masks_to_train_on_are_new_in_every_pass_also_with_a_seed():
    tf.random.set_seed(1)
    rows = tf.data.Dataset.from_tensors(random_rows(1, 64)[0]).repeat()
    tokens = [*SPECIAL, *(f"w{number}" for number in range(995))]
    batches = wordpiece(tokens, 64).training(rows, 1).take(20)
    places = [inputs["mask_positions"].numpy().tolist() for inputs, _, _ in batches]
    assert len({str(each) for each in places}) == 20


def test_masks_to_validate_on_are_a_matter_of_the_row_alone():
    rows = random_rows(30, 64)
    inputs, ids, _ = masked("validation", rows)
    order = np.random.default_rng(1).permutation(30)
    again, ids_again, _ = masked("validation", rows[order], batch_size=7)
    for name, values in inputs.items():
        np.testing.assert_array_equal(values[order], again[name])
    np.testing.assert_array_equal(ids[order], ids_again)
    assert len(np.unique(inputs["mask_positions"], axis=0)) == 30


def test_unigram_cross_entropy_counts_what_can_be_masked():
    # a a b c, whatever special tokens lie between: 1/2, 1/4, 1/4, so H = 1/2 ln 2 + 1/2 ln 4.
    rows = [[CLS, A, A, SEP, B, UNK, C, SEP], [CLS, A, A, SEP, B, UNK, C, SEP]]
    found = wordpiece().unigram_cross_entropy(tf.data.Dataset.from_tensor_slices(rows))
    assert found == pytest.approx(1.5 * math.log(2))
