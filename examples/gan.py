"""Train a GAN, which has two optimizers: a generator that draws the digit that it is asked for.

    gossip-pga run --workers=2 examples/gan.py

`GossipPGA` finds both optimizers, because they are attributes of the model. It averages the
generator and the discriminator. A classifier that was trained on scikit-learn's handwritten digits
then reads drawn digits. The last line is the share of them that it reads as the digit that was
asked for. It is above 0.8.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import tf_gossip_pga as pga

NOISE = 16


def network(inputs: int, *layers) -> keras.Sequential:
    """Return a network with two hidden layers and these last layers."""
    hidden = [keras.layers.Dense(128, "leaky_relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, *layers])


class Gan(keras.Model):
    """Train a generator and a discriminator. Both also get the digit, one-hot, `[batch, 10]`."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = network(NOISE + 10, keras.layers.Dense(64, "sigmoid"))
        self.discriminator = network(64 + 10, keras.layers.Dropout(0.3), keras.layers.Dense(1))
        self.seeds = keras.random.SeedGenerator(seed)

    def compile(self, d_optimizer, g_optimizer):
        """Set the optimizers of the discriminator and of the generator."""
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def draw(self, digits):
        """Return an image of each digit, `[batch, 64]`."""
        noise = keras.random.normal((tf.shape(digits)[0], NOISE), seed=self.seeds)
        return self.generator(tf.concat([noise, digits], 1))

    def train_step(self, data):
        """Train both networks on a batch of real images, `[batch, 64]`, and their digits."""
        images, digits = data
        with tf.GradientTape(persistent=True) as tape:
            real = self.discriminator(tf.concat([images, digits], 1), training=True)
            fake = self.discriminator(tf.concat([self.draw(digits), digits], 1), training=True)
            d_loss = tf.reduce_mean(tf.nn.softplus(fake) + tf.nn.softplus(-real))
            g_loss = tf.reduce_mean(tf.nn.softplus(-fake))
        variables = self.discriminator.trainable_variables
        self.d_optimizer.apply(tape.gradient(d_loss, variables), variables)
        variables = self.generator.trainable_variables
        self.g_optimizer.apply(tape.gradient(g_loss, variables), variables)
        return {"d_loss": d_loss, "g_loss": g_loss}


cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)
images, labels = load_digits(return_X_y=True)
images, digits = images.astype("float32") / 16, np.eye(10, dtype="float32")[labels]
dataset = tf.data.Dataset.from_tensor_slices((images, digits))
dataset = cluster.shard(dataset).shuffle(len(images)).batch(64 // cluster.size)

gan = Gan(seed=cluster.rank)
gan.compile(*(keras.optimizers.Adam(1e-3 * cluster.size**0.5, beta_1=0.5) for _ in range(2)))
verbose = 2 if cluster.is_chief else 0
gan.fit(dataset, epochs=35, shuffle=False, callbacks=[pga.GossipPGA(H=6)], verbose=verbose)

if cluster.is_chief:
    asked = np.arange(1000) % 10
    drawn = gan.draw(np.eye(10, dtype="float32")[asked]).numpy()
    accuracy = LogisticRegression(max_iter=1000).fit(images, labels).score(drawn, asked)
    print(f"accuracy: {accuracy:.3f}")
