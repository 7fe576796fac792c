"""models/inputs.py: names, what each rank reads, batches; with sets of TensorFlow Datasets too."""

import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn import datasets

from models import inputs, sources
from tests.support import deadlines, prepared

ROOT = pathlib.Path(__file__).parents[2]
SIZES = [1, 2, 5]
LENGTH = 16  # of rows of text here


class GeneratedSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set that is made here: `splits` is the number of examples of each split."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # it would look for checksums next to it
    splits = {"train": 103}  # noqa: RUF012

    def _split_generators(self, download_manager):
        return {split: self._generate_examples(count) for split, count in self.splits.items()}

    def _generate_examples(self, count):
        return ((number, self.example(number)) for number in range(count))


class PicturesOfOneSize(GeneratedSet, skip_registration=True):
    """Image number n has class n and the value n everywhere."""

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(4, 5, 3)),
            "kind": tfds.features.ClassLabel(num_classes=200),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def example(self, number):
        return {"picture": np.full((4, 5, 3), number, np.uint8), "kind": number}


class PicturesOfAnySize(GeneratedSet, skip_registration=True):
    """The same as JPEG files of many sizes, and with more than one split."""

    splits = {"train": 23, "test": 11}  # noqa: RUF012

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=200),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def example(self, number):
        image = np.full((40 + number, 80 - number, 3), number, np.uint8)
        return {"image": image, "label": number, "file_name": "x"}


class Stories(GeneratedSet, skip_registration=True):
    """Document n is the word n, 60 times: four rows and more of 14 words."""

    def _info(self):
        features = {"text": tfds.features.Text(), "about": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def example(self, number):
        return {"text": f"word{number} " * 60, "about": "nothing"}


class Numbers(GeneratedSet, skip_registration=True):
    """Neither images nor text."""

    splits = {"train": 4}  # noqa: RUF012

    def _info(self):
        features = {"number": np.int64, "picture": tfds.features.Image(shape=(4, 5, 3))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def example(self, number):
        return {"number": number, "picture": np.zeros((4, 5, 3), np.uint8)}


class Wordless(Stories, skip_registration=True):
    """Text without a split to train on."""

    splits = {"test": 4}  # noqa: RUF012


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A directory in which the sets above lie prepared, in several files."""
    directory = tmp_path_factory.mktemp("data")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=4)
    for builder in (PicturesOfOneSize, PicturesOfAnySize, Stories, Numbers, Wordless):
        builder(data_dir=directory).download_and_prepare(download_config=config)
    return directory


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A vocabulary of the words of `Stories`: number n has id n + 5."""
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(103))]
    file.write_text("\n".join(tokens))
    return file


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return inputs.find("python_docs", data_dir=str(tmp_path_factory.mktemp("docs")))


def one_pass(data, rank, size, classes_per_worker=None):
    """All training labels of a rank: its first batch, which is as large as its share."""
    share = data.shares(size, classes_per_worker)[rank]
    _, labels = next(iter(data.training(rank, size, share, classes_per_worker)))
    return labels.numpy().tolist()


def validated(data, rank, size, batch_size=4):
    """The validation labels of a rank, or its rows before they were masked."""
    found = []
    for batch in data.validation(rank, size, batch_size).as_numpy_iterator():
        if data.kind == "images":
            found += batch[1].tolist()
            continue
        (given, ids, weights), rows = batch, batch[0]["token_ids"].copy()
        for row, where, what, weight in zip(
            rows, given["mask_positions"], ids, weights, strict=True
        ):
            row[where[weight > 0]] = what[weight > 0]
        found += map(tuple, rows.tolist())
    return found


# Digits


def test_digits_are_split_into_disjoint_parts_that_cover_all():
    data = inputs.find("digits")
    everything = datasets.load_digits()
    images, labels = next(iter(data.validation(0, 1, 1000)))
    np.testing.assert_array_equal(images[..., 0] * 16, everything.images[::5])
    np.testing.assert_array_equal(labels, everything.target[::5])
    training, labels = data.source._training
    rest = np.arange(1797) % 5 > 0
    np.testing.assert_array_equal(training[..., 0] * 16, everything.images[rest])
    np.testing.assert_array_equal(labels, everything.target[rest])


def test_digits_are_what_they_say():
    data = inputs.find("digits")
    assert (data.name, data.kind) == ("digits", "images")
    assert (data.training_examples, data.validation_examples) == (1437, 360)
    assert data.arguments == {"input_shape": (8, 8, 1), "classes": 10}
    images, labels = next(iter(data.training(0, 1, 1437)))
    assert (images.shape, images.dtype) == ((1437, 8, 8, 1), tf.float32)
    assert (labels.shape, labels.dtype) == ((1437,), tf.int32)
    assert (images.numpy().min(), images.numpy().max()) == (0, 1)
    assert set(labels.numpy()) == set(range(10))


@pytest.mark.parametrize("size", SIZES)
def test_ranks_share_the_digits(size):
    data = inputs.find("digits")
    shares = data.shares(size)
    assert sum(shares) == 1437 and max(shares) - min(shares) <= 1
    parts = [data.source.training(rank, size) for rank in range(size)]
    images = [image.tobytes() for part in parts for image, _ in part.as_numpy_iterator()]
    assert len(images) == len(set(images)) == 1437
    parts = [data.source.validation(rank, size) for rank in range(size)]
    images = [image.tobytes() for part in parts for image, _ in part.as_numpy_iterator()]
    assert len(images) == len(set(images)) == 360 // size * size


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("size", SIZES)
def test_ranks_see_the_classes_that_are_theirs(size, classes):
    data = inputs.find("digits")
    seen, all_images = set(), []
    for rank, share in enumerate(data.shares(size, classes)):
        # With two classes rank 3 sees 6 and 7; with three 9, 0 and 1.
        theirs = {(classes * rank + j) % 10 for j in range(classes)}
        assert set(one_pass(data, rank, size, classes)) == theirs
        part = list(data.source.training(rank, size, classes).as_numpy_iterator())
        assert len(part) == share
        all_images += [image.tobytes() for image, _ in part]
        seen |= theirs
    labels = datasets.load_digits().target[np.arange(1797) % 5 > 0]
    assert len(set(all_images)) == len(all_images) == np.isin(labels, list(seen)).sum()


def test_ranks_share_a_class_evenly():
    # Five ranks of four classes: 0-3, 4-7, 8-1, 2-5, 6-9; every class has two of them.
    data = inputs.find("digits")
    counts = np.zeros((5, 10), int)
    for rank in range(5):
        labels = one_pass(data, rank, 5, 4)
        counts[rank] = np.bincount(labels, minlength=10)
    for label in range(10):
        first, second = counts[counts[:, label] > 0, label]
        assert 0 <= first - second <= 1


def test_training_is_endless_in_a_new_order_each_pass():
    data = inputs.find("digits")
    passes = [labels.numpy() for _, labels in data.training(1, 3, 479).take(3)]
    for labels in passes[1:]:
        np.testing.assert_array_equal(np.sort(labels), np.sort(passes[0]))
        assert (labels != passes[0]).any()


def test_batches_are_full_where_a_pass_ends():
    data = inputs.find("digits")
    batches = list(data.training(0, 5, 200).take(4))  # 288 examples
    assert [len(labels) for _, labels in batches] == [200] * 4


# Text


def test_python_docs_are_what_they_say(docs):
    assert (docs.name, docs.kind) == ("python_docs", "text")
    assert docs.arguments == {"vocabulary_size": 4096}
    assert len(docs.vocabulary) == 4096
    assert docs.vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    share = docs.validation_examples / (docs.training_examples + docs.validation_examples)
    assert 0.05 < share < 0.2
    given, ids, weights = next(iter(docs.training(0, 2, 8)))
    names = {"token_ids": 64, "segment_ids": 64, "padding_mask": 64, "mask_positions": 10}
    assert {name: each.shape[1] for name, each in given.items()} == names
    assert given["token_ids"].shape[0] == 8 and ids.shape == weights.shape == (8, 10)
    # Between a coin and one of 4096 tokens.
    assert np.log(2) < docs.unigram_cross_entropy() < np.log(4096)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_share_python_docs(docs, size):
    parts = [list(docs.source.training(rank, size).as_numpy_iterator()) for rank in range(size)]
    assert list(map(len, parts)) == docs.shares(size)
    assert sum(map(len, parts)) == docs.training_examples
    whole = sorted(row.tobytes() for row in docs.source.training(0, 1).as_numpy_iterator())
    assert sorted(row.tobytes() for part in parts for row in part) == whole
    parts = [validated(docs, rank, size, 32) for rank in range(size)]
    assert {len(part) for part in parts} == {docs.validation_examples // size}
    whole = validated(docs, 0, 1, 32)
    # Rows may be alike, so the parts are put together again: row n is of rank n % size.
    together = [row for rows in zip(*parts, strict=True) for row in rows]
    assert together == whole[: len(together)]


def test_rows_to_validate_on_are_of_other_documents(docs):
    training = {row.tobytes() for row in docs.source.training(0, 1).as_numpy_iterator()}
    validation = [row.tobytes() for row in docs.source.validation(0, 1).as_numpy_iterator()]
    assert sum(row in training for row in validation) < len(validation) / 50


@pytest.mark.slow
def test_another_process_has_the_same_vocabulary_and_the_same_masks(docs, tmp_path):
    code = """
import hashlib, sys
from models import inputs
docs = inputs.find("python_docs", data_dir=sys.argv[1])
assert "tensorflow" not in sys.modules
batches = docs.validation(1, 3, 16).as_numpy_iterator()
content = [docs.vocabulary] + [
    [given[name].tolist() for name in sorted(given)] + [ids.tolist(), weights.tolist()]
    for given, ids, weights in batches
]
print(hashlib.sha256(repr(content).encode()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.returncode == 0, done.stderr
    content = [docs.vocabulary] + [
        [given[name].tolist() for name in sorted(given)] + [ids.tolist(), weights.tolist()]
        for given, ids, weights in docs.validation(1, 3, 16).as_numpy_iterator()
    ]
    assert done.stdout.split() == [hashlib.sha256(repr(content).encode()).hexdigest()]


# Sets of TensorFlow Datasets


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "training", "validation"),
    [
        ("pictures_of_one_size", 98, 5),  # of 103 without another split, the last 5 %
        ("pictures_of_any_size", 23, 11),
    ],
)
def test_ranks_share_images_on_disk(data_dir, name, training, validation, size):
    data = inputs.find(name, data_dir=str(data_dir))
    assert (data.training_examples, data.validation_examples) == (training, validation)
    shares = data.shares(size)
    assert sum(shares) == training and max(shares) - min(shares) <= 1
    parts = [one_pass(data, rank, size) for rank in range(size)]
    assert list(map(len, parts)) == shares
    trained = sorted(np.concatenate(parts))
    parts = [validated(data, rank, size) for rank in range(size)]
    assert {len(part) for part in parts} == {validation // size}
    whole = validated(data, 0, 1)
    assert np.concatenate(parts).tolist() == whole[: validation // size * size]
    if name == "pictures_of_one_size":  # both are of one split
        assert sorted([*trained, *whole]) == list(range(103))
    else:
        assert (trained, sorted(whole)) == (list(range(23)), list(range(11)))


def test_images_on_disk_are_read_in_a_new_order_each_pass(data_dir):
    data = inputs.find("pictures_of_one_size", data_dir=str(data_dir))
    first, second = (labels.numpy() for _, labels in data.training(0, 2, 49).take(2))
    assert sorted(first) == sorted(second) and len(set(first)) == 49
    assert (first != second).any()


def test_images_on_disk_keep_their_labels(data_dir):
    data = inputs.find("pictures_of_one_size", data_dir=str(data_dir))
    assert data.arguments == {"input_shape": (4, 5, 3), "classes": 200}
    images, labels = next(iter(data.training(0, 1, 98)))
    np.testing.assert_allclose(images[:, 0, 0, 0] * 255, labels, rtol=1e-5)
    data = inputs.find("pictures_of_any_size", data_dir=str(data_dir))
    assert data.arguments == {"input_shape": (224, 224, 3), "classes": 200}
    for batches in (data.training(0, 1, 8), data.validation(0, 1, 8)):
        images, labels = next(iter(batches))
        red = images[:, 112, 112, 0] * 0.229 + 0.485
        np.testing.assert_allclose(red * 255, labels, atol=2)


def test_digits_are_moved_by_a_pixel_where_asked():
    assert inputs.find("digits").recipe.shift == 1
    images, _ = next(iter(inputs.find("digits").training(0, 1, 1437, augment=False)))
    original, _ = inputs.find("digits").source._training
    assert sorted(map(bytes, images.numpy())) == sorted(map(bytes, original))


@pytest.mark.parametrize("size", SIZES)
def test_ranks_share_documents_on_disk(data_dir, words, size):
    data = inputs.find(
        "stories", data_dir=str(data_dir), vocabulary=str(words), sequence_length=LENGTH
    )
    assert (data.kind, data.arguments) == ("text", {"vocabulary_size": 108})
    assert data.training_examples is data.validation_examples is data.shares(size) is None
    seen = []
    for rank in range(size):
        rows = list(data.source.training(rank, size).as_numpy_iterator())
        # 60 words and [SEP] of each document, less what is left over, in rows of 14.
        documents = 98 * (rank + 1) // size - 98 * rank // size
        assert len(rows) == (61 * documents - 1) // 14
        seen.append(set(np.concatenate(rows)) - {2, 3})
    assert sum(map(len, seen)) == len(set.union(*seen)) == 98

    parts = [validated(data, rank, size) for rank in range(size)]
    assert {len(part) for part in parts} == {(61 * 5 - 1) // 14 // size}  # 21 rows
    together = [row for rows in zip(*parts, strict=True) for row in rows]
    assert together == validated(data, 0, 1)[: len(together)]
    # Of the last document up to 10 of 60 words may be left over, and a row for each rank but one.
    others = {token for row in together for token in row} - {2, 3}
    assert len(others) == 5
    assert others | set.union(*seen) == set(range(5, 5 + 103))


def test_text_on_disk_is_masked_and_continues(data_dir, words):
    data = inputs.find(
        "stories", data_dir=str(data_dir), vocabulary=str(words), sequence_length=LENGTH
    )
    batches = data.training(0, 40, 16).take(5)  # two documents, 8 rows: ten passes
    assert [given["token_ids"].shape for given, _, _ in batches] == [(16, 16)] * 5
    # Five documents of 60 words, of the last of which up to 13 are left over.
    assert data.unigram_cross_entropy() == pytest.approx(np.log(5), abs=0.01)


def test_text_on_disk_trains_a_vocabulary_once(data_dir):
    data = inputs.find("stories", data_dir=str(data_dir))
    kept = data_dir / "wordpiece"
    assert not list(kept.glob("stories-*"))  # to find a set is cheap
    assert len({f"word{n}" for n in range(103)} & set(data.vocabulary)) >= 98
    assert [path.name[:14] for path in kept.glob("stories-*")] == ["stories-30522-"]
    again = inputs.find("stories", data_dir=str(data_dir))
    assert again.vocabulary == data.vocabulary


def test_ranks_agree_on_the_order_of_rows_whatever_is_tokenised_first(data_dir, words, monkeypatch):
    monkeypatch.setattr(sources, "_GROUP", 1)
    data = inputs.find(
        "stories", data_dir=str(data_dir), vocabulary=str(words), sequence_length=LENGTH
    )
    parts = [validated(data, rank, 2) for rank in range(2)]
    together = [row for rows in zip(*parts, strict=True) for row in rows]
    assert together == validated(data, 0, 1)[: len(together)]
    assert len(together) == 5 * (60 // 14)


@pytest.mark.parametrize(
    ("name", "splits", "arguments"),
    [
        ("mnist", {"train": 60, "test": 10}, ((28, 28, 1), 10)),
        ("cifar10", {"train": 60, "test": 10}, ((32, 32, 3), 10)),
        ("cifar100", {"train": 60, "test": 10}, ((32, 32, 3), 100)),
        ("imagenet2012", {"train": 60, "validation": 10, "test": 20}, ((224, 224, 3), 1000)),
    ],
)
def test_known_images(tmp_path, name, splits, arguments):
    # mock_data makes 6 random examples for any split: what they are is the real builder's word.
    prepared.as_if_prepared(name, tmp_path, **splits)
    with tfds.testing.mock_data(num_examples=6, data_dir=str(tmp_path)):
        data = inputs.find(name, data_dir=str(tmp_path))
        assert (data.training_examples, data.validation_examples) == (60, 10)
        assert tuple(data.arguments.values()) == arguments
        recipe = data.recipe
        assert (recipe.shift, recipe.flip, recipe.encoded) == {
            "mnist": (0, False, False),
            "imagenet2012": (0, True, True),
        }.get(name, (4, True, False))
        for batches in (data.training(0, 2, 4), data.validation(0, 2, 4)):
            images, labels = next(iter(batches))
            assert images.shape == (4, *arguments[0])
            assert labels.dtype == tf.int32
    # Black in 0 ... 1, or after scaling by what the set is known for.
    darkest = images.numpy().min()
    assert 0 <= darkest < 0.1 if name == "mnist" else -2.2 < darkest < -1.5


@pytest.mark.parametrize("name", ["lm1b", "wikipedia/20230601.en"])
def test_known_text(tmp_path, name):
    prepared.as_if_prepared(name, tmp_path, train=100)
    with tfds.testing.mock_data(num_examples=40, data_dir=str(tmp_path)):
        data = inputs.find(name, data_dir=str(tmp_path), sequence_length=8)
        assert data.kind == "text"
        given, ids, _ = next(iter(data.training(1, 2, 4)))
        assert (given["token_ids"].shape, ids.shape) == ((4, 8), (4, 1))


# What is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"Unknown dataset 'digit'\. Similar names: digits.* Embedded: digits, python"),
        ("imagenet", r"Similar names: imagenet.*tensorflow\.org/datasets/catalog"),
        ("no/such/name", r"Unknown dataset 'no/such/name'"),
        ("huggingface:mnist", r"Unknown dataset 'huggingface:mnist'"),
        ("", r"Unknown dataset ''"),
        ("wikipedia/nowhere", r"TensorFlow Datasets refuses 'wikipedia/nowhere': .*nowhere not"),
        ("mnist:1.2.3", r"TensorFlow Datasets refuses 'mnist:1\.2\.3': .* only: 3"),
        ("imagenet2012", r"not prepared: .* Before that, download by hand: manual_dir should"),
        ("mnist", r"mnist is not prepared: there is nothing in .*mnist/3.*download_and_prepare"),
        ("coco", r"(?s)coco has neither an image with a class .* Its features: .*bbox"),
        ("numbers", r"numbers has neither an image"),
        ("wordless", r"wordless has no split 'train' but test\."),
    ],
)
def test_sets_that_cannot_be_used(data_dir, name, message):
    with pytest.raises(ValueError, match=message):
        inputs.find(name, data_dir=str(data_dir))


def test_names_are_answered_without_tensorflow(tmp_path):
    code = """
import sys
from models import inputs
inputs.find("digits")
for name in ("nosuch", "mnist"):
    try:
        inputs.find(name, data_dir=sys.argv[1])
    except ValueError as error:
        print(str(error).partition(".")[0])
print({"tensorflow", "keras"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert done.stderr == ""
    unknown, unprepared, imported = done.stdout.splitlines()
    assert unknown == "Unknown dataset 'nosuch'"
    assert unprepared.startswith("The dataset mnist is not prepared")
    assert imported == "set()"


@pytest.mark.parametrize("length", [7, 513])
def test_rows_of_no_use_are_refused(length):
    with pytest.raises(ValueError, match=f"must be from 8 to 512 tokens, received {length}"):
        inputs.find("python_docs", sequence_length=length)


def test_a_vocabulary_that_cannot_be_had_is_refused(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"need no vocabulary; received vocabulary='x'"):
        inputs.find("digits", vocabulary="x")
    with pytest.raises(ValueError, match=r"The vocabulary /nosuch cannot be read"):
        inputs.find("python_docs", vocabulary="/nosuch")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"/file/wordpiece/python_docs-4096-.* cannot be written"):
        inputs.find("python_docs", data_dir=str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"only on a local disk, received data_dir=gs://bucket"):
        inputs.find("python_docs", data_dir="gs://bucket")


@pytest.mark.parametrize("classes", [0, 11])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(ValueError, match=f"must be from 1 to 10, .*digits, received {classes}"):
        inputs.find("digits").shares(2, classes)


def test_classes_need_images_in_memory(docs, data_dir):
    for data in (docs, inputs.find("pictures_of_one_size", data_dir=str(data_dir))):
        with pytest.raises(
            ValueError, match=f"held in memory, such as digits, received {data.name}"
        ):
            data.training(0, 2, 4, classes_per_worker=2)


def test_ranks_without_examples_are_refused(data_dir):
    data = inputs.find("pictures_of_any_size", data_dir=str(data_dir))
    with pytest.raises(ValueError, match=r"has 23 training examples for 24 workers"):
        data.training(0, 24, 1)
    with pytest.raises(ValueError, match=r"has 11 validation examples for 12 workers"):
        data.validation(0, 12, 1)
