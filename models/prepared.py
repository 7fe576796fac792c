"""Find data sets of TensorFlow Datasets that are already prepared on disk.

    source, recipe = prepared.find("cifar10", data_dir=None, wordpiece=make, embedded=[])
    examples = source.training(rank=0, size=4)

Nothing is downloaded. TensorFlow is imported only when examples are read. Finding a data set and
its features requires only TensorFlow Datasets.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Sequence

from models import images, sources, text

_FIRST = 20_000  # maximum number of documents to train a vocabulary on
_VOCABULARY = 30522  # number of tokens in a vocabulary, as in BERT
_CATALOGUE = "https://www.tensorflow.org/datasets/catalog"
_NAME = re.compile(r"(?P<stem>\w+)(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


def find(
    name: str, data_dir: str | None, wordpiece: text.Maker, embedded: Sequence[str]
) -> tuple[sources.Source, images.Images | text.WordPiece]:
    """Return the source of a data set's examples, and the recipe that makes batches of them.

    Args:
      name: `set` or `set/config`, optionally with `:version`.
      data_dir: directory of prepared data sets; None: the default of TensorFlow Datasets.
      wordpiece: makes the recipe for text.
      embedded: names of embedded data sets, for the error message.

    Raises:
      ValueError: the name is unknown, the data set has neither labeled images nor text, or it is
        not prepared.
    """
    builder = _builder(name, data_dir, embedded)
    names, body = _image_and_label(builder), _text(builder)
    if names is not None:
        _check_prepared(builder, name, data_dir)
        return _images(builder, *names)
    if body is not None:
        _check_prepared(builder, name, data_dir)
        return _rows(builder, body, wordpiece)
    raise ValueError(
        f"The dataset {name} has neither an image with a class to predict nor plain text (texts "
        "next to images, sound or video do not count). Choose another dataset. Its features: "
        f"{builder.info.features}"
    )


def _builder(name: str, data_dir: str | None, embedded: Sequence[str]):
    import tensorflow_datasets as tfds

    match = _NAME.fullmatch(name)
    stem = match["stem"] if match else name
    # For an unknown name, tfds.builder would import TensorFlow, and look for community data sets on
    # the network.
    catalog = tfds.list_builders(with_community_datasets=False)
    if not match or (stem not in catalog and not _on_disk(stem, data_dir)):
        close = ", ".join(difflib.get_close_matches(stem, [*embedded, *catalog], n=6))
        raise ValueError(
            f"Unknown dataset {name!r}. {f'Similar names: {close}. ' if close else ''}Embedded: "
            f"{', '.join(embedded)}. Any other name must be that of a set of TensorFlow Datasets "
            f"({_CATALOGUE}): name or name/config, followed by :version for a version other than "
            "the newest."
        )
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # builder code runs here, and may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"TensorFlow Datasets refuses {name!r}: {reason[:400]}") from error


def _on_disk(stem: str, data_dir: str | None) -> bool:
    from tensorflow_datasets.core import constants

    return (pathlib.Path(data_dir or constants.DATA_DIR) / stem).is_dir()


def _check_prepared(builder, name: str, data_dir: str | None):
    """Raise `ValueError` with the command to prepare the data set unless it is on disk."""
    if not builder.info.splits:
        where = f", data_dir={data_dir!r}" if data_dir else ""
        manual = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
        raise ValueError(
            f"The dataset {name} is not prepared: there is nothing in {builder.data_path}. Prepare "
            'it once, which may download much: python -c "import tensorflow_datasets as tfds; '
            f'tfds.builder({name!r}{where}).download_and_prepare()". Or name another data_dir.'
            + (f" Before that, download by hand: {manual}" if manual else "")
        )
    if "train" not in builder.info.splits:
        raise ValueError(
            f"The dataset {name} has no split 'train' but {', '.join(builder.info.splits)}. Use "
            "a data set that has one."
        )


def _image_and_label(builder) -> tuple[str, str] | None:
    """Return the names of the image and label features, or None if there is no such pair."""
    import tensorflow_datasets as tfds

    pictures = _features(builder, tfds.features.Image)
    labels = _features(builder, tfds.features.ClassLabel)
    match builder.info.supervised_keys:
        case (str(picture), str(label)) if picture in pictures and label in labels:
            return picture, label
    return (pictures[0], labels[0]) if pictures and labels else None


def _text(builder) -> str | None:
    """Return the name of the text feature: `text`, or else the first in alphabetical order.

    Return None for data sets with images, sound or video, whose texts are file names and the like.
    """
    import tensorflow_datasets as tfds

    media = (tfds.features.Image, tfds.features.Audio, tfds.features.Video)
    names = _features(builder, tfds.features.Text)
    if not names or _features(builder, media):
        return None
    return "text" if "text" in names else names[0]


def _features(builder, of: type | tuple[type, ...]) -> list[str]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        return []
    return sorted(name for name, feature in features.items() if isinstance(feature, of))


def _images(builder, image: str, label: str) -> tuple[sources.Prepared, images.Images]:
    """Return the source and recipe of images.

    Images of different sizes are read as encoded files, to decode only the part that is needed.
    """
    import tensorflow_datasets as tfds

    def pick(example):
        import tensorflow as tf

        return example[image], tf.cast(example[label], tf.int32)

    shape = builder.info.features[image].shape
    classes = builder.info.features[label].num_classes
    if None in shape:
        shape = (images.CROP, images.CROP, 3)
        mean, std = images.IMAGENET["mean"], images.IMAGENET["std"]
        recipe = images.Images(shape, classes, mean, std, flip=True, encoded=True)
        return sources.Prepared(builder, pick, {image: tfds.decode.SkipDecoding()}), recipe
    recipe = images.Images(shape, classes)
    channels = {"cifar10": images.CIFAR10, "cifar100": images.CIFAR100}.get(builder.name)
    if channels:
        recipe = dataclasses.replace(
            recipe, mean=channels["mean"], std=channels["std"], shift=4, flip=True
        )
    return sources.Prepared(builder, pick), recipe


def _rows(builder, body: str, wordpiece: text.Maker) -> tuple[sources.Rows, text.WordPiece]:
    documents = sources.Prepared(builder, lambda example: example[body])
    count = min(_FIRST, documents.training_examples)
    train = builder.info.splits["train"]
    recipe = wordpiece(
        _VOCABULARY,
        f"{body} of {count} of {builder.info.full_name} {train.shard_lengths} {train.num_bytes}",
        lambda: [
            sources.decoded(bytes(each)) for each in documents.first(count).as_numpy_iterator()
        ],
    )
    return sources.Rows(documents, recipe), recipe
