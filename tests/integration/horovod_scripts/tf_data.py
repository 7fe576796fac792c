"""Classify digits from tf.data, in the shape of Horovod's tensorflow2_keras_mnist.py."""

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits


def main():
    hvd.init()

    # Pin a GPU to the local rank.
    gpus = tf.config.experimental.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    dataset = tf.data.Dataset.from_tensor_slices(
        (
            tf.cast(images[..., tf.newaxis] / 16.0, tf.float32),
            tf.cast(labels, tf.int64),
        )
    )
    dataset = dataset.shard(hvd.size(), hvd.rank())
    dataset = dataset.repeat().shuffle(1000).batch(32)

    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, [3, 3], activation="relu"),
            tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
            tf.keras.layers.Dropout(0.25),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )

    scaled_lr = 0.001 * hvd.size()
    opt = tf.optimizers.Adam(scaled_lr)
    opt = hvd.DistributedOptimizer(
        opt, backward_passes_per_step=1, average_aggregated_gradients=True
    )

    model.compile(
        loss=tf.losses.SparseCategoricalCrossentropy(),
        optimizer=opt,
        metrics=["accuracy"],
    )

    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=2, verbose=1),
    ]
    if hvd.rank() == 0:
        callbacks.append(tf.keras.callbacks.ModelCheckpoint("./checkpoint-{epoch}.keras"))

    verbose = 1 if hvd.rank() == 0 else 0
    model.fit(
        dataset,
        steps_per_epoch=20 // hvd.size(),
        callbacks=callbacks,
        epochs=3,
        verbose=verbose,
    )
    np.savez(f"weights-{hvd.rank()}.npz", *model.get_weights())


if __name__ == "__main__":
    main()
