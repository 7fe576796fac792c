"""Train on a `keras.utils.PyDataset`: Python code that makes batches, here with moved images.

    gossip-pga run --workers=2 examples/py_dataset.py

`cluster.shard` divides only a `tf.data.Dataset`. A `PyDataset` divides its examples itself, by
`cluster.rank` and `cluster.size`, so that all workers have equally many batches. The images are
scikit-learn's handwritten digits. The last line is the accuracy on digits that the model has not
seen. It is above 0.9.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga


class MovedDigits(keras.utils.PyDataset):
    """Serve one worker's batches. Each image moves by up to one pixel, in a new way each time.

    Args:
      images: images of all workers, `[count, 8, 8, 1]`.
      labels: their labels, `[count]`.
      batch_size: number of this worker's images in a batch.
      rank: this worker.
      size: number of workers.
      **arguments: those of `keras.utils.PyDataset`.
    """

    def __init__(self, images, labels, batch_size: int, rank: int, size: int, **arguments):
        super().__init__(**arguments)
        part = slice(rank, len(images) // size * size, size)  # equally many on every worker
        self._images, self._labels, self._batch_size = images[part], labels[part], batch_size
        self._random = np.random.default_rng(rank)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._images) // self._batch_size

    def __getitem__(self, index: int):
        chosen = self._order[index * self._batch_size :][: self._batch_size]
        moves = self._random.integers(-1, 2, size=(len(chosen), 2))
        pairs = zip(self._images[chosen], moves, strict=True)
        return np.stack([np.roll(*pair, (0, 1)) for pair in pairs]), self._labels[chosen]

    def on_epoch_end(self) -> None:
        """Choose a new order."""
        self._order = self._random.permutation(len(self._images))


cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, test_size=300, random_state=0)

dense, convolve = keras.layers.Dense, keras.layers.Conv2D(32, 3, activation="relu")
layers = [convolve, keras.layers.Flatten(), dense(64, "relu"), dense(10)]
model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
digits = MovedDigits(x, y, 64 // cluster.size, cluster.rank, cluster.size)
verbose = 2 if cluster.is_chief else 0
model.fit(digits, epochs=25, shuffle=False, callbacks=[pga.GossipPGA(H=6)], verbose=verbose)

if cluster.is_chief:
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
