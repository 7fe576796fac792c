"""Train with two workers that Ray starts: `python examples/ray_train.py`."""

import pathlib
import sys

import ray.train
from ray.train.tensorflow import TensorflowTrainer


def train_worker(config: dict) -> None:
    """Train as one of Ray's workers, for each of which Ray sets `TF_CONFIG`."""
    import keras
    import numpy as np

    import tf_gossip_pga as pga

    cluster = pga.initialize()  # first, as in every script
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(cluster.rank).normal(size=(256, 8)).astype("float32")

    gossip = pga.GossipPGA(H=6)
    checkpoint = pga.Checkpoint(gossip, config["directory"] + "/checkpoints")
    model.fit(
        x,
        x.sum(1, keepdims=True),
        epochs=5,
        initial_epoch=checkpoint.restore(model),
        callbacks=[gossip, checkpoint],
        verbose=2 if cluster.is_chief else 0,
    )
    if cluster.is_chief:
        model.save(config["directory"] + "/model.keras")


def main(directory: str) -> None:
    """Start the workers with Ray, which starts them again after a failure.

    Args:
      directory: an absolute path, on a disk that all nodes share.
    """
    TensorflowTrainer(
        train_worker,
        train_loop_config={"directory": directory},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(failure_config=ray.train.FailureConfig(max_failures=3)),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path("runs/ray").resolve()))
