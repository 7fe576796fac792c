"""Train a model that has its own `train_step`: mixtures of two images (mixup).

    gossip-pga run --workers=2 examples/custom_train_step.py

`GossipPGA` needs nothing from `train_step`: it averages after each step, whatever the step does.
Every worker has its own random numbers, because `GossipPGA` does not copy the state of a
`SeedGenerator`. Source of mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR
2018. The last line is the accuracy on digits that the model has not seen. It is above 0.95.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga


class MixUp(keras.Model):
    """Train a network on mixtures of examples.

    Args:
      network: maps examples, `[batch, features]`, to logits.
      seed: this worker's seed.
    """

    def __init__(self, network: keras.Model, seed: int):
        super().__init__()
        self.network = network
        self.seeds = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        """Return the logits, `[batch, 10]`."""
        return self.network(images, training=training)

    def train_step(self, data):
        """Mix each example with another one of the batch, and train on the mixtures."""
        images, labels = data
        share = keras.random.beta((tf.shape(images)[0], 1), 0.2, 0.2, seed=self.seeds)
        mixed_images = share * images + (1 - share) * images[::-1]
        mixed_labels = share * labels + (1 - share) * labels[::-1]
        with tf.GradientTape() as tape:
            logits = self(mixed_images, training=True)
            loss = self.compute_loss(y=mixed_labels, y_pred=logits)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        for metric in self.metrics:
            values = (loss,) if metric.name == "loss" else (mixed_labels, logits)
            metric.update_state(*values)
        return self.get_metrics_result()


cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)

x, labels = load_digits(return_X_y=True)
x, y = x.astype("float32") / 16, np.eye(10, dtype="float32")[labels]
x, x_test, y, y_test = train_test_split(x, y, test_size=300, random_state=0)
dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset).shuffle(len(x)).batch(64 // cluster.size)

dense = keras.layers.Dense
network = keras.Sequential([keras.Input((64,)), dense(128, "relu"), dense(128, "relu"), dense(10)])
model = MixUp(network, seed=cluster.rank)
model.build((None, 64))  # before fit
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.CategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
gossip = pga.GossipPGA(H=6)
verbose = 2 if cluster.is_chief else 0
model.fit(dataset, epochs=20, shuffle=False, callbacks=[gossip], verbose=verbose)

if cluster.is_chief:
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
