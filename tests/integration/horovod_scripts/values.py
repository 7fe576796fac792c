"""Exchange values, train on the rank's part of the data in a fixed order, and load the model."""

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

hvd.init()
rank, size = hvd.rank(), hvd.size()
assert hvd.is_initialized()
assert (hvd.local_rank(), hvd.local_size()) == (rank, size)
assert (hvd.cross_rank(), hvd.cross_size()) == (0, 1)

# ---- Values -------------------------------------------------------------------------------------

own = np.array([[rank, 2.5], [-rank, 1.0]])
mean = (size - 1) / 2
assert np.array_equal(hvd.allreduce(own), [[mean, 2.5], [-mean, 1.0]])
assert np.array_equal(hvd.allreduce(rank + 1, op=hvd.Sum), size * (size + 1) // 2)
assert np.array_equal(hvd.allreduce([rank, 5], op=hvd.Max), [size - 1, 5])
assert np.array_equal(hvd.allreduce([rank, 5], op=hvd.Min), [0, 5])
gathered = hvd.allgather(np.full([rank + 1, 2], rank))
assert np.array_equal(gathered[:, 0], np.repeat(range(size), range(1, size + 1)))
assert np.array_equal(hvd.broadcast(np.full(3, float(rank)), 1), [1, 1, 1])
settings = hvd.broadcast_object({"rank": rank, 3: (1, b"x")}, root_rank=1)
assert settings == {"rank": 1, 3: (1, b"x")}
assert hvd.allgather_object(("rank", rank)) == [("rank", each) for each in range(size)]
large = hvd.broadcast(np.full(500_000, rank, np.float32), size - 1)  # several messages
assert large.shape == (500_000,) and np.all(large == size - 1)
variable = tf.Variable([float(rank)])
hvd.broadcast_variables([variable], root_rank=1)
assert variable.numpy() == [1.0]

# ---- Training -----------------------------------------------------------------------------------

x, y = load_digits(return_X_y=True)
x = (x[:640] / 16).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((x, y[:640]))
dataset = dataset.shard(size, rank).batch(32)

keras.utils.set_random_seed(rank)  # ranks begin with different weights
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax")])
np.savez(f"initial-{rank}.npz", *model.get_weights())
opt = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1 * size, momentum=0.9))
model.compile(optimizer=opt, loss="sparse_categorical_crossentropy")


class TotalTime(keras.callbacks.Callback):
    """Exchange a value within fit."""

    def on_epoch_end(self, epoch, logs=None):
        logs["ranks"] = float(hvd.allreduce(float(hvd.rank()), op=hvd.Sum))


callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), TotalTime()]
history = model.fit(dataset, epochs=3, shuffle=False, callbacks=callbacks, verbose=0)
assert history.history["ranks"] == [size * (size - 1) / 2] * 3
np.savez(f"weights-{rank}.npz", *model.get_weights())

# ---- Loading ------------------------------------------------------------------------------------

if rank == 0:
    model.save("model.keras")
hvd.barrier()
loaded = hvd.load_model("model.keras")
assert type(loaded.optimizer) is keras.optimizers.SGD
assert type(keras.models.load_model("model.keras").optimizer) is keras.optimizers.SGD
try:
    loaded.fit(dataset, verbose=0)
except RuntimeError as error:
    assert "no callback averages" in str(error)
else:
    raise AssertionError("each rank has trained alone")
callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0)]
loaded.fit(dataset, verbose=0, callbacks=callbacks)
try:
    loaded.fit(dataset, verbose=0)  # not traced again
except RuntimeError as error:
    assert "no callback averages" in str(error)
else:
    raise AssertionError("each rank has trained alone")
hvd.shutdown()
assert not hvd.is_initialized()
