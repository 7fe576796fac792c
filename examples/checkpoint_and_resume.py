"""Stop a job in the middle, even with SIGKILL, and let the same command continue it.

    gossip-pga run --workers=2 examples/checkpoint_and_resume.py

Stop the job after some epochs: with Ctrl-C, with `kill`, or by `kill -9` of a worker. Then run the
same command again: it prints in which epoch it begins. `pga.Checkpoint` saves the model and the
state of all workers in `checkpoints` after each epoch. After SIGTERM (`kill`), the workers also
save within the epoch, and the job ends with the exit code 75. The last line is the accuracy on
digits that the model has not seen. It is above 0.93.
"""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_gossip_pga as pga

cluster = pga.initialize()
keras.utils.set_random_seed(cluster.rank)

images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, test_size=300, random_state=0)
dataset = tf.data.Dataset.from_tensor_slices((x, y))
dataset = cluster.shard(dataset).shuffle(len(x)).batch(64 // cluster.size)

dense = keras.layers.Dense
model = keras.Sequential([keras.Input((64,)), dense(64, "relu"), dense(64, "relu"), dense(10)])
model.compile(
    keras.optimizers.Adam(1e-3 * cluster.size**0.5),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

gossip = pga.GossipPGA(H=6)
checkpoint = pga.Checkpoint(gossip, "checkpoints")
first = checkpoint.restore(model)  # on every worker; 0 without a checkpoint
if cluster.is_chief:
    print(f"Training begins in epoch {first + 1}.")
model.fit(
    dataset,
    epochs=40,
    initial_epoch=first,
    shuffle=False,  # the dataset shuffles
    callbacks=[gossip, checkpoint],  # in this order
    verbose=2 if cluster.is_chief else 0,
)
checkpoint.exit_if_preempted()  # with code 75, after SIGTERM

if cluster.is_chief:
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy: {accuracy:.3f}")
