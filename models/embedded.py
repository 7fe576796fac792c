"""Data sets that come with Python or with an installed library, held in memory.

    source, recipe = embedded.digits(None)
    examples = source.training(rank=0, size=4, classes_per_worker=None)

Each function takes a `text.Maker`, which images do not use.
"""

from typing import Any

import numpy as np

from models import images, sources, text


def digits(wordpiece: text.Maker | None) -> tuple[sources.InMemory, images.Images]:
    """Images `[1797, 8, 8, 1]` and labels; every 5th validates.

    They are inside scikit-learn, nothing is downloaded. Source: Alpaydin and Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
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
    """The Python language reference, 79 topics inside Python itself; every 6th validates.

    That is a tenth of its 465 kB. The text is that of the running Python: other versions differ.
    """
    from pydoc_data.topics import topics as by_title

    topics = [by_title[title] for title in sorted(by_title)]
    validation = topics[::6]
    training = [topic for number, topic in enumerate(topics) if number % 6]
    recipe = wordpiece(4096, "\0".join(training), lambda: training)
    return sources.InMemory((recipe.rows(training),), (recipe.rows(validation),)), recipe
