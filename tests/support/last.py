"""Make one rank begin each exchange after all others, however loaded the machine is."""

import itertools
import pathlib
import time

import keras

from tests.support import deadlines


class BeginsLast(keras.callbacks.Callback):
    """Hold one rank up before each exchange until all others have come to it, and then for longer.

    A rank that only slept would not begin last whenever the machine stops another one for longer.
    The exchanges at the start of `fit` are not held up. Put this callback right before `GossipPGA`,
    on all ranks, which must train equally many batches.

    Args:
      cluster: the cluster of this worker.
      last: the rank that begins last.
      folder: an existing empty directory, the same for all ranks.
      seconds: how long to hold the rank up after the others have come.
    """

    def __init__(self, cluster, last: int, folder, seconds: float):
        super().__init__()
        self._folder, self._seconds = pathlib.Path(folder), seconds
        self._is_last = cluster.rank == last
        self._names = [str(rank) for rank in range(cluster.size) if rank != last]
        self._own_name = str(cluster.rank)
        self._exchanges = itertools.count()

    def _arrive(self):
        exchange = next(self._exchanges)
        if not self._is_last:
            (self._folder / f"{exchange}-{self._own_name}").touch()
            return
        files = [self._folder / f"{exchange}-{name}" for name in self._names]
        deadline = deadlines.Deadline(120)
        deadline.until(lambda: all(file.exists() for file in files), every_s=0.01)
        time.sleep(self._seconds)

    def on_epoch_begin(self, epoch, logs=None):
        self._arrive()

    def on_train_batch_end(self, batch, logs=None):
        self._arrive()

    def on_test_begin(self, logs=None):
        self._arrive()

    def on_epoch_end(self, epoch, logs=None):
        self._arrive()

    def on_train_end(self, logs=None):
        self._arrive()
