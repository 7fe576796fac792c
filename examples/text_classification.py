"""Classify text: which library does a paragraph of documentation come from?

    gossip-pga run --workers=2 examples/text_classification.py

The texts are paragraphs of the docstrings of Keras, NumPy and scikit-learn, as they are installed.
Every worker adapts the vocabulary to all training texts, before `cluster.shard` divides them:
otherwise, the same word would have different numbers on two workers. The paragraphs for the test
come from other files than those for the training. The last line is the accuracy on the test. It is
above 0.8; the most frequent library alone would give about 0.6.
"""

import pathlib
import re

import keras
import numpy as np
import sklearn
import tensorflow as tf

import tf_gossip_pga as pga

LIBRARIES = [keras, np, sklearn]
DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)


def paragraphs(library) -> tuple[list[str], list[str]]:
    """Return paragraphs of at least 20 words: for the training, and for the test."""
    found = [], []
    files = sorted(pathlib.Path(library.__file__).parent.rglob("*.py"))  # in one order everywhere
    for index, file in enumerate(files):
        for docstring in DOCSTRING.findall(file.read_text(encoding="utf-8")):
            texts = [text for text in docstring.split("\n\n") if len(text.split()) >= 20]
            found[index % 5 == 4].extend(texts)
    return found


cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)

training, test = zip(*map(paragraphs, LIBRARIES), strict=True)
x, x_test = (np.concatenate(part) for part in (training, test))
y, y_test = (np.repeat(range(len(part)), list(map(len, part))) for part in (training, test))

vectorize = keras.layers.TextVectorization(5000, output_sequence_length=60)
vectorize.adapt(x)  # all training texts, on every worker

dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset).shuffle(len(x)).batch(128 // cluster.size)

model = keras.Sequential(
    [
        keras.Input((), dtype="string"),
        vectorize,
        keras.layers.Embedding(5000, 32),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(len(LIBRARIES)),
    ]
)
model.compile(
    keras.optimizers.Adam(2e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
gossip = pga.GossipPGA(H=6)
verbose = 2 if cluster.is_chief else 0
model.fit(dataset, epochs=4, shuffle=False, callbacks=[gossip], verbose=verbose)

if cluster.is_chief:
    shares = np.bincount(y_test) / len(y_test)
    print(f"{len(x)} paragraphs; the most frequent library has {shares.max():.3f} of the test")
    accuracy = model.evaluate(tf.constant(x_test), y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
