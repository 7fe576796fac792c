"""Transfer what a network has learned: train new last layers, then fine-tune all layers.

    gossip-pga run --workers=2 examples/transfer_learning.py

A base is trained on images of the digits 0 to 4. A model with this base learns the digits 5 to 9
from 200 images in two phases: with a frozen base, and then with all layers and a smaller learning
rate. After `trainable` has changed, the model is compiled again, and `fit` gets a new `GossipPGA`.
The last line is the accuracy on the other images of the digits 5 to 9. It is above 0.85.
"""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import tf_gossip_pga as pga

cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)


def train(model: keras.Model, learning_rate: float, x, y, epochs: int) -> None:
    """Compile a model, and train it on all workers."""
    model.compile(
        keras.optimizers.Adam(learning_rate * cluster.size**0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    model.fit(
        cluster.shard(dataset).shuffle(len(x)).batch(32 // cluster.size),
        epochs=epochs,
        shuffle=False,  # the dataset shuffles
        callbacks=[pga.GossipPGA(H=6)],
        verbose=2 if cluster.is_chief else 0,
    )


def with_last_layers(base: keras.Model) -> keras.Model:
    """Return a model of this base with new last layers, for five classes."""
    last = [keras.layers.Dense(32, "relu"), keras.layers.Dense(5)]
    return keras.Sequential([keras.Input((8, 8, 1)), base, *last])


images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
is_new = labels >= 5
x_old, y_old = images[~is_new], labels[~is_new]
x_new, y_new = images[is_new], labels[is_new] - 5
x, y, x_test, y_test = x_new[:200], y_new[:200], x_new[200:], y_new[200:]

base = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
    ]
)
train(with_last_layers(base), 1e-3, x_old, y_old, epochs=8)

model = with_last_layers(base)
base.trainable = False
train(model, 3e-3, x, y, epochs=15)
frozen = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]

base.trainable = True
train(model, 1e-3, x, y, epochs=15)
if cluster.is_chief:
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"with a frozen base: {frozen:.3f}")
    print(f"accuracy: {accuracy:.3f}")
