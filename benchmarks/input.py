"""Measure input pipelines in images or tokens per second, and per core and second.

    python benchmarks/input.py --output=output/input.json

The rate per core is the number of examples divided by the user and system CPU time of the whole
process, which does nothing else. It shows how many cores a worker needs to feed a model, and other
programs hardly affect it.

Instead of real data from TensorFlow Datasets, the benchmark generates data sets under the same
names: random clouds of 500 x 375 pixels for ImageNet, noise for CIFAR-10, and the Python language
reference for text. They are small and stay in the page cache. Reading real data from disk takes
additional time.
"""

import argparse
import contextlib
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, report
from models import inputs

if TYPE_CHECKING:
    import tensorflow as tf

WARM_UP = 4  # untimed batches: tracing, filling buffers, AUTOTUNE
SHARDS = 4
BATCH = 32
LENGTH = 128  # tokens per row
ROWS = [
    ("imagenet2012", "training"),
    ("imagenet2012", "validation"),
    ("cifar10", "training"),
    ("digits", "training"),
    ("python_docs", "training"),
    ("python_docs", "validation"),
    ("lm1b", "training"),
]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
    """
    parser = cli.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement")
    parser.add_argument("--repetitions", type=int, default=3, help="measurements of each row")
    parser.add_argument("--images", type=int, default=512, help="number of images to generate")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args(argv)


def clouds(random: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """Return a JPEG file of multi-scale noise: about 90 kB, almost as large as ImageNet's.

    Args:
      random: source of randomness.
      height: in pixels. Default 375.
      width: in pixels. Default 500.
    """
    import tensorflow as tf

    image = np.full((height, width, 3), 128.0)
    for scale, contrast in ((125, 45), (25, 20), (5, 14), (2, 26)):
        coarse = random.normal(0, contrast, (height // scale, width // scale, 3))
        image += tf.image.resize(coarse, (height, width), "bicubic")
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return tf.io.encode_jpeg(pixels, quality=90).numpy()


def examples(name: str, images: int) -> Iterator[dict]:
    """Yield examples of a generated data set, in the format of the real builder's features.

    Args:
      name: name of the data set in TensorFlow Datasets.
      images: number of images. CIFAR-10 gets ten times as many.
    """
    from pydoc_data.topics import topics

    random = np.random.default_rng(0)
    if name == "imagenet2012":
        for number in range(images):
            file = io.BytesIO(clouds(random))
            yield {"image": file, "label": number % 1000, "file_name": f"{number}.JPEG"}
    elif name == "cifar10":
        for number in range(10 * images):
            noise = random.integers(0, 256, (32, 32, 3), np.uint8)
            yield {"image": noise, "label": number % 10, "id": str(number)}
    else:
        yield from ({"text": topic} for topic in topics.values())


def prepare(name: str, images: int, data_dir: str) -> None:
    """Write a generated data set in the format of the real one.

    Args:
      name: name of the data set in TensorFlow Datasets.
      images: number of images.
      data_dir: the directory for data sets.
    """
    import tensorflow_datasets as tfds

    real = tfds.builder(name, data_dir=data_dir)

    class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Build the generated data set."""

        VERSION = real.version
        code_path = None  # otherwise, the builder looks for checksums next to its code

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=real.info.features,
                supervised_keys=real.info.supervised_keys,
            )

        def _split_generators(self, download_manager):
            return {split: self._generate_examples() for split in ("train", "validation")}

        def _generate_examples(self):
            return enumerate(examples(name, images))

    Generated.name = name
    config = tfds.download.DownloadConfig(num_shards=SHARDS)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        Generated(data_dir=data_dir).download_and_prepare(download_config=config)


def pipelines(images: int, data_dir: str) -> "Iterator[tuple[str, str, int, tf.data.Dataset]]":
    """Yield for each row its name, its unit, the units per example, and endless batches.

    Args:
      images: number of images to generate.
      data_dir: the directory for data sets.
    """
    for name in ("imagenet2012", "cifar10", "lm1b"):
        prepare(name, images, data_dir)
    for name, part in ROWS:
        data = inputs.find(name, data_dir=data_dir, sequence_length=LENGTH)
        unit, each = ("tokens", LENGTH) if data.kind == "text" else ("images", 1)
        batches = getattr(data, part)(rank=0, size=1, batch_size=BATCH)
        yield f"{name}, {part}", unit, each, batches.repeat()


def measure(batches: "tf.data.Dataset", seconds: float) -> tuple[int, float, float]:
    """Measure a pipeline.

    Args:
      batches: endless batches.
      seconds: how long to measure, approximately.

    Returns:
      Number of examples delivered, CPU time in seconds, and elapsed time in seconds.
    """
    import tensorflow as tf

    iterator = iter(batches)
    for _ in range(WARM_UP):
        next(iterator)
    count, cpu, started = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not count:
        count += int(tf.shape(tf.nest.flatten(next(iterator))[0])[0])
    return count, time.process_time() - cpu, elapsed


def row(
    name: str, unit: str, each: int, batches: "tf.data.Dataset", options: argparse.Namespace
) -> dict:
    """Return one row with medians over the repetitions.

    Args:
      name: name of the row.
      unit: what is counted, e.g. `"tokens"`.
      each: number of units per example.
      batches: endless batches.
      options: the options of the command line.
    """
    found = [measure(batches, options.seconds) for _ in range(options.repetitions)]
    return {
        "name": name,
        "unit": unit,
        "per_core_second": float(np.median([count * each / cpu for count, cpu, _ in found])),
        "per_second": float(np.median([count * each / wall for count, _, wall in found])),
        "repetitions": options.repetitions,
    }


def main() -> None:
    """Measure all pipelines, and report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    options = parse()
    print(report.machine())
    with tempfile.TemporaryDirectory() as data_dir:
        rows = [row(*each, options) for each in pipelines(options.images, data_dir)]
    print(f"\n{'':26}{'per core and second':>20}{'per second':>14}")
    for each in rows:
        figures = f"{each['per_core_second']:20,.0f}{each['per_second']:14,.0f}"
        print(f"{each['name']:26}{figures}  {each['unit']}")
    if options.output:
        report.write(options.output, rows=rows, ratios={})


if __name__ == "__main__":
    main()
