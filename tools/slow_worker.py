"""Train ResNet-20 on handwritten digits while one worker is slow, to look at the timeline.

    gossip-pga run --workers=4 --timeline=trace.json --timeline-steps=37:48 -m tools.slow_worker

Rank 2 sleeps before each step, which stands for a worker on a slower machine.
"""

from __future__ import annotations

import time

import tf_gossip_pga as pga

SLOW, SLEEP_S = 2, 0.2
BATCH, STEPS = 16, 48


def main():
    """Train one epoch as one worker."""
    cluster = pga.initialize()
    import keras

    import models
    from models import embedded

    class Sleep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            """Sleep on the slow rank."""
            if cluster.rank == SLOW:
                time.sleep(SLEEP_S)

    source, _ = embedded.digits(None)
    dataset = source.training(cluster.rank, cluster.size).batch(BATCH).repeat()
    model = models.build("resnet20", input_shape=(8, 8, 1), classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    callbacks = [pga.GossipPGA(H=6), Sleep()]
    model.fit(dataset, steps_per_epoch=STEPS, callbacks=callbacks, verbose="auto")


if __name__ == "__main__":
    main()
