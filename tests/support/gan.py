"""Define a GAN: a model with two optimizers, a `train_step` and no `call`."""

import keras
import numpy as np
import tensorflow as tf

LATENT, WIDTH = 3, 4


class Gan(keras.Model):
    """Train a generator and a discriminator; keep a `tf.Variable`, which Keras does not track."""

    def __init__(self, rank: int):
        super().__init__()
        keras.utils.set_random_seed(rank)
        dense = keras.layers.Dense
        self.generator = keras.Sequential([keras.Input((LATENT,)), dense(WIDTH)])
        self.discriminator = keras.Sequential([keras.Input((WIDTH,)), dense(1)])
        self.noise = keras.random.SeedGenerator(rank)
        self.steps = tf.Variable(0)

    def compile(self, discriminator, generator):
        """Set the optimizers of the discriminator and the generator."""
        super().compile()
        self.d_optimizer, self.g_optimizer = discriminator, generator

    def train_step(self, real):
        """Train both on a batch of real examples, `[n, WIDTH]`."""
        count = tf.shape(real)[0]
        made = keras.random.normal((count, LATENT), seed=self.noise)
        with tf.GradientTape(persistent=True) as tape:
            fake = self.discriminator(self.generator(made))
            d_loss = tf.reduce_mean(
                tf.nn.softplus(fake) + tf.nn.softplus(-self.discriminator(real))
            )
            g_loss = tf.reduce_mean(tf.nn.softplus(-fake))
        for model, loss, optimizer in (
            (self.discriminator, d_loss, self.d_optimizer),
            (self.generator, g_loss, self.g_optimizer),
        ):
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        self.steps.assign_add(1)
        return {"loss": d_loss, "g_loss": g_loss}


def a_gan(rank: int) -> Gan:
    """Return a compiled GAN with initial weights that depend on the rank."""
    gan = Gan(rank)
    gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01, momentum=0.9))
    return gan


def data(rank: int, rows: int = 24) -> np.ndarray:
    """Return the examples of a rank, `[rows, WIDTH]`."""
    return np.random.default_rng(rank).normal(size=(rows, WIDTH)).astype("float32")
