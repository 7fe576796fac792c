"""Train a convolutional network on images, and keep its best epoch.

    gossip-pga run --workers=2 examples/image_classification.py

This is the usual Keras script for image classification: rescaling, augmentation, convolutions,
`ModelCheckpoint`, evaluation. Four lines differ, and each has a comment with a number. The images
are scikit-learn's handwritten digits, 8 by 8 pixels. The last line is the accuracy of the best
epoch's model on images that it has not seen. It is above 0.95.
"""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga

cluster = pga.initialize()  # 1. before the first tensor, model or dataset
keras.utils.set_random_seed(cluster.rank)

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32")
x, x_test, y, y_test = train_test_split(images, labels, test_size=300, random_state=0)
x, x_validation, y, y_validation = train_test_split(x, y, test_size=300, random_state=0)

dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset)  # 2. this worker's part
dataset = dataset.shuffle(len(x)).batch(64 // cluster.size)  # 64 images in a step of all workers

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 16),
        keras.layers.RandomTranslation(0.05, 0.05),
        keras.layers.RandomRotation(0.02),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

callbacks = [pga.GossipPGA(H=6)]  # 3. first in the list
if cluster.is_chief:  # 4. only one worker writes files
    best = keras.callbacks.ModelCheckpoint(
        "best.keras", monitor="val_accuracy", save_best_only=True
    )
    callbacks.append(best)
model.fit(
    dataset,
    validation_data=(x_validation, y_validation),
    epochs=25,
    shuffle=False,  # the dataset shuffles
    callbacks=callbacks,
    verbose=2 if cluster.is_chief else 0,
)

if cluster.is_chief:
    model = keras.models.load_model("best.keras")
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
