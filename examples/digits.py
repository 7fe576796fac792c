"""Train a small network on drawn digits, in a script that survives preemption and lost workers.

    python examples/digits.py                                         # one worker
    python -m tf_gossip_pga.launch --workers=4 examples/digits.py     # four on this machine
    srun python examples/digits.py                                    # one for each task of Slurm

The images are the digits of a seven-segment display, 8 by 8 pixels, with noise.
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tf_gossip_pga as pga

# Rows and columns of the seven segments, and for each digit, which segments are lit.
ALL, UPPER, LOWER = slice(0, 4), slice(0, 4), slice(3, 7)
SEGMENTS = [(0, ALL), (UPPER, 0), (UPPER, 3), (3, ALL), (LOWER, 0), (LOWER, 3), (6, ALL)]
DIGITS = ["1110111", "0010010", "1011101", "1011011", "0111010"]
DIGITS += ["1101011", "1101111", "1010010", "1111111", "1111011"]


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, `[count, 8, 8]`, and their labels."""
    shapes = np.zeros((10, 7, 4))
    for shape, digit in zip(shapes, DIGITS, strict=True):
        for segment, is_lit in zip(SEGMENTS, digit, strict=True):
            shape[segment] += int(is_lit)
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=count)
    images = random.normal(0, 0.3, (count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        row, column = random.integers((2, 5))
        image[row : row + 7, column : column + 4] += shapes[label].clip(max=1)
    return images.astype("float32"), labels


def main() -> None:
    """Train as one worker of the cluster in which this process was started."""
    parser = argparse.ArgumentParser(description="Train a small network on drawn digits.")
    parser.add_argument("--directory", type=pathlib.Path, default="digits", help="for all output")
    parser.add_argument("--epochs", type=int, default=20, help="number of epochs (default: 20)")
    options = parser.parse_args()

    cluster = pga.initialize()  # before the first tensor, model or dataset
    dataset = cluster.shard(tf.data.Dataset.from_tensor_slices(draw(6000, seed=0)))
    dataset = dataset.shuffle(6000).batch(120 // cluster.size)

    hidden = keras.layers.Dense(64, "relu")
    layers = [keras.Input((8, 8)), keras.layers.Flatten(), hidden, keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    adam = keras.optimizers.Adam(3e-3 * cluster.size**0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(adam, loss, metrics=["accuracy"])

    gossip = pga.GossipPGA(H=6, on_worker_lost="continue")
    checkpoint = pga.Checkpoint(gossip, options.directory)
    callbacks = [gossip, checkpoint]
    if cluster.is_chief:
        callbacks.append(keras.callbacks.CSVLogger(options.directory / "log.csv", append=True))
    model.fit(
        dataset,
        validation_data=draw(1000, seed=1),
        epochs=options.epochs,
        initial_epoch=checkpoint.restore(model),
        shuffle=False,  # the dataset shuffles
        callbacks=callbacks,
        verbose=2 if cluster.is_chief else 0,
    )
    checkpoint.exit_if_preempted()  # after SIGTERM: ends with code 75, to be started again
    if cluster.is_chief:
        model.save(options.directory / "digits.keras")


if __name__ == "__main__":
    main()
