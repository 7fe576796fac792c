"""Kill a worker, and see the others finish the same `fit`.

    gossip-pga run --workers=3 --min-workers=2 examples/survive_a_loss.py

Each worker prints the command that kills it. Enter one of these commands in another terminal: the
other workers print that they continue, and finish. Without `on_worker_lost="continue"`, they would
end with `pga.WorkerLost`. Any worker may die, also the chief: then another worker is the chief. The
last line is the accuracy on digits that the model has not seen. It is above 0.93.
"""

import os

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga

cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)
print(f"To kill rank {cluster.rank}: kill -9 {os.getpid()}", flush=True)

images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, test_size=300, random_state=0)
dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset).shuffle(len(x)).batch(48 // cluster.size)

dense = keras.layers.Dense
model = keras.Sequential([keras.Input((64,)), dense(64, "relu"), dense(64, "relu"), dense(10)])
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(
    dataset,
    epochs=40,
    shuffle=False,  # the dataset shuffles
    callbacks=[pga.GossipPGA(H=6, on_worker_lost="continue", min_workers=2)],
    verbose=2,  # on every worker: any of them may be the last
)

if cluster.is_chief:  # the lowest of the remaining ranks
    print(f"Ranks {', '.join(map(str, cluster.members))} have finished.")
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
