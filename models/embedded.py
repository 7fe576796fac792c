"""Load data sets that come with Python or an installed library into memory.

    source, recipe = embedded.digits(None)
    examples = source.training(rank=0, size=4, classes_per_worker=None)

Each function takes a `text.Maker`, which only text data sets use.
"""

from typing import Any

import numpy as np

from models import images, sources, text


def digits(wordpiece: text.Maker | None) -> tuple[sources.InMemory, images.Images]:
    """Return 1797 images of handwritten digits, `[8, 8, 1]`, and their labels.

    Every 5th image is used for validation. The images come with scikit-learn, without a download.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.

    Args:
      wordpiece: not used.
    """
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    pixels = (digits.images[..., np.newaxis] / 16).astype(np.float32)  # ink from 0 to 16
    labels = digits.target.astype(np.int32)
    validates = np.arange(len(labels)) % 5 == 0
    source = sources.InMemory(
        (pixels[~validates], labels[~validates]), (pixels[validates], labels[validates])
    )
    return source, images.Images((8, 8, 1), 10, shift=1)


def python_docs(wordpiece: text.Maker) -> tuple[sources.InMemory, text.WordPiece]:
    """Return the language reference that comes with Python: 79 topics, 465 kB.

    Every 6th topic is used for validation, about a tenth of the text. The text depends on the
    version of Python.

    Args:
      wordpiece: makes the recipe, with a vocabulary of 4096 tokens.
    """
    from pydoc_data.topics import topics as by_title

    topics = [by_title[title] for title in sorted(by_title)]
    validation = topics[::6]
    training = [topic for number, topic in enumerate(topics) if number % 6]
    recipe = wordpiece(4096, "\0".join(training), lambda: training)
    return sources.InMemory((recipe.rows(training),), (recipe.rows(validation),)), recipe
