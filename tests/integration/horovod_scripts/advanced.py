"""Classify augmented digits, in the shape of Horovod's keras_mnist_advanced.py."""

import argparse

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from keras.layers import BatchNormalization, Conv2D, Dense, Flatten
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--batch-size", type=int, default=50)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--lr", type=float, default=0.02)
args = parser.parse_args()

hvd.init()

# Pin a GPU to the local rank.
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
y = keras.utils.to_categorical(y, 10)
(x_train, y_train), (x_test, y_test) = (x[:1500], y[:1500]), (x[1500:], y[1500:])
train_batches = len(x_train) // args.batch_size
test_batches = len(x_test) // args.batch_size


class Augmented(keras.utils.PyDataset):
    """Yield batches of shifted digits in a random order."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return train_batches

    def __getitem__(self, index):
        chosen = np.random.randint(len(self.x), size=args.batch_size)
        return np.roll(self.x[chosen], np.random.randint(-1, 2), axis=2), self.y[chosen]


model = keras.Sequential(
    [
        Conv2D(8, kernel_size=(3, 3), activation="relu"),
        BatchNormalization(),
        Flatten(),
        Dense(32, activation="relu"),
        Dense(10, activation="softmax"),
    ]
)

scaled_lr = args.lr * hvd.size()
opt = keras.optimizers.SGD(learning_rate=scaled_lr, momentum=0.9)
opt = hvd.DistributedOptimizer(opt)

model.compile(
    loss=keras.losses.categorical_crossentropy,
    optimizer=opt,
    metrics=["accuracy"],
)

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=2, verbose=1),
    keras.callbacks.ReduceLROnPlateau(patience=10, verbose=1),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("./checkpoint-{epoch}.keras"))

history = model.fit(
    Augmented(x_train, y_train),
    steps_per_epoch=train_batches // hvd.size(),
    callbacks=callbacks,
    epochs=args.epochs,
    verbose=1 if hvd.rank() == 0 else 0,
    validation_data=(x_test, y_test),
    validation_steps=3 * test_batches // hvd.size(),
)
score = model.evaluate(x_test, y_test, verbose=0)
print("Test loss:", score[0])
print("Test accuracy:", score[1])

np.savez(f"weights-{hvd.rank()}.npz", *model.get_weights())
np.savez(f"logs-{hvd.rank()}.npz", loss=history.history["loss"], lr=history.history["lr"])
