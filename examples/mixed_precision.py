"""Compute in bfloat16, keep the weights in float32, and send gossips in bfloat16.

    gossip-pga run --workers=2 examples/mixed_precision.py

With the policy `mixed_bfloat16`, layers compute in bfloat16 and keep their weights in float32.
`GossipPGA` averages the weights. With `wire_dtype="bfloat16"`, gossips also send half as many
bytes; global averages stay exact. The images are scikit-learn's handwritten digits. The last line
is the accuracy on digits that the model has not seen. It is above 0.93.
"""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga

cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)
keras.mixed_precision.set_global_policy("mixed_bfloat16")  # on every worker, before the model

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, test_size=300, random_state=0)
dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset).shuffle(len(x)).batch(64 // cluster.size)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, dtype="float32"),  # the loss needs more than bfloat16's 8 bits
    ]
)
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
gossip = pga.GossipPGA(H=6, wire_dtype="bfloat16")
verbose = 2 if cluster.is_chief else 0
model.fit(dataset, epochs=12, shuffle=False, callbacks=[gossip], verbose=verbose)

if cluster.is_chief:
    first = model.layers[0]
    print(f"weights: {first.kernel.dtype}, computation: {first.compute_dtype}")
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
