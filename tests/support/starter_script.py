"""A user's script, which tests start by `srun`, `mpirun`, ssh and others.

    python -m tests.support.starter_script FOLDER

It trains, and saves checkpoints in the folder, until the folder contains a file `stop`.
"""

import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_gossip_pga as pga


def main(folder: pathlib.Path):
    cluster = pga.initialize()
    print("start", os.getpid(), "rank", cluster.rank, "of", cluster.size, flush=True)
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(240, 4)).astype("float32")
    data = cluster.shard(tf.data.Dataset.from_tensor_slices((x, x.sum(axis=1)))).batch(10)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    gossip = pga.GossipPGA(H=4, on_worker_lost="continue")
    checkpoint = pga.Checkpoint(gossip, folder)

    def stop_if_asked(epoch, logs):
        model.stop_training |= (folder / "stop").exists()

    stopping = keras.callbacks.LambdaCallback(on_epoch_end=stop_if_asked)
    first = checkpoint.restore(model)
    callbacks = [gossip, stopping, checkpoint]
    model.fit(data, epochs=10**6, initial_epoch=first, verbose=0, callbacks=callbacks)
    members = ",".join(map(str, cluster.members))
    total = float(sum(np.abs(each).sum() for each in model.get_weights()))
    print("trained", "rank", cluster.rank, "members", members, "sum", total, flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
